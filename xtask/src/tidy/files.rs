//! What every file keeps to: a bounded size, and a head that says what a source file holds.

use super::{Complaint, TrackedFile};

/// The largest file that git may hold.
const LIMIT_BYTES: u64 = 512 * 1024;

/// Complains about files that are too large and sources without a head.
pub fn check(files: &[TrackedFile]) -> Vec<Complaint> {
    let large = files.iter().filter(|file| file.bytes > LIMIT_BYTES && file.path != "Cargo.lock");
    let large = large.map(|file| {
        Complaint::new(&file.path, 1, format!("{} KiB, and the limit is {} KiB", file.bytes >> 10, LIMIT_BYTES >> 10))
    });
    let headless = files.iter().filter(|file| is_module(&file.path) && !opens_with_head(file));
    let headless = headless.map(|file| Complaint::new(&file.path, 1, "does not open with //! and what lives here"));
    large.chain(headless).collect()
}

fn is_module(path: &str) -> bool {
    let in_member = ["crates/", "benches/", "xtask/"].iter().any(|folder| path.starts_with(folder));
    in_member && path.contains("/src/") && path.ends_with(".rs")
}

fn opens_with_head(file: &TrackedFile) -> bool {
    file.text.as_deref().is_some_and(|text| text.starts_with("//! "))
}

#[cfg(test)]
mod tests {
    use super::super::made_up;
    use super::*;

    #[test]
    fn large_files_are_reported_but_for_the_lock_file() {
        let large = "x".repeat(LIMIT_BYTES as usize + 1);
        let files = made_up(&[("Cargo.lock", &large), ("data/a.bin", &large), ("data/b.bin", &large[1..])]);
        let found: Vec<String> = check(&files).into_iter().map(|complaint| complaint.path).collect();
        assert_eq!(found, ["data/a.bin"]);
    }

    #[test]
    fn a_module_opens_with_its_head() {
        let files = made_up(&[
            ("crates/plan/src/mesh.rs", "//! Meshes.\n"),
            ("crates/plan/src/late.rs", "use std::fmt;\n//! Late.\n"),
            ("crates/plan/tests/free.rs", "fn f() {}\n"),
        ]);
        let found: Vec<String> = check(&files).into_iter().map(|complaint| complaint.path).collect();
        assert_eq!(found, ["crates/plan/src/late.rs"]);
    }
}
