//! Which `mpirun` belongs to a compiler wrapper, for the tests that start ranks themselves.

use std::path::Path;

/// The launcher that was `chosen`, or the one beside the wrapper, with its suffix where several libraries share a folder
/// (`mpicc.openmpi`), or the one that the search path finds.
pub fn launcher(chosen: Option<String>, wrapper: &str, exists: impl Fn(&Path) -> bool) -> String {
    if let Some(chosen) = chosen.filter(|chosen| !chosen.is_empty()) {
        return chosen;
    }
    let wrapper = Path::new(wrapper);
    let name = wrapper.file_name().unwrap_or_default().to_string_lossy();
    let suffixed = format!("mpirun{}", name.strip_prefix("mpicc").unwrap_or_default());
    if wrapper.parent().is_none_or(|folder| folder.as_os_str().is_empty()) {
        return suffixed;
    }
    let mut beside = [suffixed.as_str(), "mpirun"].map(|name| wrapper.with_file_name(name)).into_iter();
    beside.find(|path| exists(path)).map_or("mpirun".into(), |path| path.display().to_string())
}
