//! Placeholder.
use crate::workspace::Workspace;
pub fn command(_: &Workspace) -> anyhow::Result<std::process::ExitCode> {
    anyhow::bail!("not there")
}
