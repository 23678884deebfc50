//! Where the built binaries are.

use std::path::PathBuf;

/// The path of a built binary: in `UNDERPASS_BIN_DIR`, or in the folder of the profile that this test was built with.
pub fn binary(name: &str) -> PathBuf {
    let beside_the_test = || {
        let test = std::env::current_exe().unwrap(); // target/PROFILE/deps/TEST
        test.ancestors().nth(2).unwrap().to_path_buf()
    };
    let folder = std::env::var_os("UNDERPASS_BIN_DIR").map_or_else(beside_the_test, PathBuf::from);
    let path = folder.join(name);
    assert!(path.exists(), "{} is not built; run scripts/build --debug first", path.display());
    path
}
