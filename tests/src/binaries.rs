//! Where the built binaries are.

use std::path::{Path, PathBuf};

/// The path of a built binary: in `UNDERPASS_BIN_DIR`, or in the folder of the profile that this test was built with.
pub fn binary(name: &str) -> PathBuf {
    let folder = std::env::var_os("UNDERPASS_BIN_DIR").map_or_else(|| above_the_test(2), PathBuf::from);
    let path = folder.join(name);
    assert!(path.exists(), "{} is not built; run scripts/build --debug first", path.display());
    path
}

/// The folder that `scripts/lib/runtimes` fills, as far as that is possible.
pub fn runtimes() -> PathBuf {
    above_the_test(3).join("runtimes")
}

/// The paths of these files in it, or which one is missing.
///
/// # Errors
/// Why a test that needs them cannot run.
pub fn runtime_files<const N: usize>(names: [&str; N]) -> Result<[PathBuf; N], String> {
    files(&runtimes(), names)
}

/// The folder that `scripts/lib/control-plane` fills, as far as that is possible.
pub fn control_plane() -> PathBuf {
    above_the_test(3).join("control-plane")
}

/// The paths of these files in it, or which one is missing.
///
/// # Errors
/// Why a test that needs them cannot run.
pub fn control_plane_files<const N: usize>(names: [&str; N]) -> Result<[PathBuf; N], String> {
    files(&control_plane(), names)
}

fn files<const N: usize>(folder: &Path, names: [&str; N]) -> Result<[PathBuf; N], String> {
    let script = folder.file_name().unwrap().display();
    match names.iter().find(|name| !folder.join(name).exists()) {
        Some(missing) => Err(format!("{missing} is missing (scripts/lib/{script} gets it where that is possible)")),
        None => Ok(names.map(|name| folder.join(name))),
    }
}

fn above_the_test(levels: usize) -> PathBuf {
    let test = std::env::current_exe().unwrap(); // target/PROFILE/deps/TEST
    test.ancestors().nth(levels).unwrap().to_path_buf()
}
