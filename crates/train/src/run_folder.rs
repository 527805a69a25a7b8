//! A run's folder: how it is named, who may have it, and what is written at its start.

use std::path::Path;

/// The saved configuration's file name.
pub const CONFIG: &str = "config.toml";

/// The folder of checkpoints.
pub const CHECKPOINTS: &str = "checkpoints";

/// Says whether a run folder holds anything that looks like a checkpoint.
pub fn has_checkpoint(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder.join(CHECKPOINTS)).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("step-"))
}

/// Strips the time that default names end with.
pub(crate) fn without_time(name: &str) -> &str {
    let digits = |text: &str, n: usize| text.len() == n && text.bytes().all(|byte| byte.is_ascii_digit());
    let mut parts = name.rsplitn(3, '-');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(clock), Some(day), Some(rest)) if digits(clock, 6) && digits(day, 8) => rest,
        _ => name,
    }
}
