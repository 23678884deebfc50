//! Where the built binaries are.

use std::path::PathBuf;

/// The path of a built binary: in `UNDERPASS_BIN_DIR`, or in the folder of the profile that this test was built with.
pub fn binary(name: &str) -> PathBuf {
    let folder = std::env::var_os("UNDERPASS_BIN_DIR").map_or_else(|| above_the_test(2), PathBuf::from);
    let path = folder.join(name);
    assert!(path.exists(), "{} is not built; run scripts/build --debug first", path.display());
    path
}

/// The path of a program that `scripts/lib/runtimes` gets, where that was possible.
pub fn runtime(name: &str) -> Option<PathBuf> {
    Some(above_the_test(3).join("runtimes").join(name)).filter(|path| path.exists())
}

fn above_the_test(levels: usize) -> PathBuf {
    let test = std::env::current_exe().unwrap(); // target/PROFILE/deps/TEST
    test.ancestors().nth(levels).unwrap().to_path_buf()
}
