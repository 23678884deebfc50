//! Where the built binaries are.

use std::path::PathBuf;

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
    match names.iter().find(|name| !runtimes().join(name).exists()) {
        Some(missing) => Err(format!("{missing} is missing (scripts/lib/runtimes gets it where that is possible)")),
        None => Ok(names.map(|name| runtimes().join(name))),
    }
}

fn above_the_test(levels: usize) -> PathBuf {
    let test = std::env::current_exe().unwrap(); // target/PROFILE/deps/TEST
    test.ancestors().nth(levels).unwrap().to_path_buf()
}
