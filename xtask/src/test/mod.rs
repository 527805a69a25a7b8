//! Placeholder.
use crate::workspace::Workspace;
#[derive(clap::Args)]
pub struct Options {}
#[derive(clap::Subcommand)]
pub enum Which {
    Train,
}
pub fn command(_: &Workspace, _: &Options) -> anyhow::Result<std::process::ExitCode> {
    anyhow::bail!("not there")
}
