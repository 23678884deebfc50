//! Where the built binaries are.

#![allow(clippy::disallowed_types)] // install

use std::path::{Path, PathBuf};
use std::process::Command;

/// The path of a built binary: in `UNDERPASS_BIN_DIR`, or in the folder of the profile that this test was built with.
pub fn binary(name: &str) -> PathBuf {
    let folder = std::env::var_os("UNDERPASS_BIN_DIR").map_or_else(profile, PathBuf::from);
    let path = folder.join(name);
    assert!(path.exists(), "{} is not built; run scripts/build --debug first", path.display());
    path
}

/// Makes a copy that can be run at once, by every user. Another program writes it: what is open for writing cannot be run
/// (ETXTBSY), and a file that is open here is open for a moment in every process that another test starts.
pub fn copy(program: &Path, to: &Path) {
    let status = Command::new("install").args(["-m", "755"]).args([program, to]).status().unwrap();
    assert!(status.success(), "install {} {}: {status}", program.display(), to.display());
}

/// The folder that `scripts/lib/runtimes` fills, as far as that is possible.
pub fn runtimes() -> PathBuf {
    target().join("runtimes")
}

/// The paths of these files in it, or which one is missing.
///
/// # Errors
/// Why a test that needs them cannot run.
pub fn runtime_files<const N: usize>(names: [&str; N]) -> Result<[PathBuf; N], String> {
    files(&runtimes(), names)
}

/// The archive that `scripts/images` makes.
///
/// # Errors
/// Why a test that needs it cannot run.
pub fn image() -> Result<PathBuf, String> {
    let path = target().join(format!("{}-unknown-linux-musl/underpass.tar", std::env::consts::ARCH));
    if path.exists() {
        Ok(path)
    } else {
        Err("there is no image (scripts/images makes it where that is possible)".to_owned())
    }
}

/// The folder that `scripts/lib/control-plane` fills, as far as that is possible.
pub fn control_plane() -> PathBuf {
    target().join("control-plane")
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

/// The folder of the profile that this program was built with: the one that it is in, or above `deps` for a test.
fn profile() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let folder = program.parent().unwrap();
    if folder.ends_with("deps") { folder.parent().unwrap().to_owned() } else { folder.to_owned() }
}

fn target() -> PathBuf {
    profile().parent().unwrap().to_owned()
}
