//! Paths of the built binaries and of other files that tests need.

#![allow(clippy::disallowed_types)] // runs install(1)

use std::path::{Path, PathBuf};
use std::process::Command;

/// The path of a built binary: in `UNDERPASS_BIN_DIR`, or in the profile folder of this test.
pub fn binary(name: &str) -> PathBuf {
    let folder = std::env::var_os("UNDERPASS_BIN_DIR").map_or_else(profile, PathBuf::from);
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is not built; run scripts/build --debug first",
        path.display()
    );
    path
}

/// Makes a copy that every user can execute at once. A separate program writes it: a file that is
/// open for writing cannot be executed (ETXTBSY), and a file that is open here is briefly open in
/// every child that another test forks.
pub fn copy(program: &Path, to: &Path) {
    let status = Command::new("install")
        .args(["-m", "755"])
        .args([program, to])
        .status()
        .unwrap();
    assert!(
        status.success(),
        "install {} {}: {status}",
        program.display(),
        to.display()
    );
}

/// The folder that `scripts/lib/runtimes` fills with what is available.
pub fn runtimes() -> PathBuf {
    target().join("runtimes")
}

/// The paths of these files in [`runtimes`].
///
/// # Errors
/// Which file is missing, as the reason to skip a test.
pub fn runtime_files<const N: usize>(names: [&str; N]) -> Result<[PathBuf; N], String> {
    files(&runtimes(), names)
}

/// The paths of these files in the folder that `scripts/lib/peers` fills with what is available.
///
/// # Errors
/// Which file is missing, as the reason to skip a test.
pub fn peer_files<const N: usize>(names: [&str; N]) -> Result<[PathBuf; N], String> {
    files(&target().join("peers"), names)
}

/// The image archive that `scripts/images` builds.
///
/// # Errors
/// That it is missing, as the reason to skip a test.
pub fn image() -> Result<PathBuf, String> {
    let path = target().join(format!(
        "{}-unknown-linux-musl/underpass.tar",
        std::env::consts::ARCH
    ));
    if path.exists() {
        Ok(path)
    } else {
        Err("the image is not built (run scripts/images)".to_owned())
    }
}

/// The folder that `scripts/lib/control-plane` fills with what is available.
pub fn control_plane() -> PathBuf {
    target().join("control-plane")
}

/// The paths of these files in [`control_plane`].
///
/// # Errors
/// Which file is missing, as the reason to skip a test.
pub fn control_plane_files<const N: usize>(names: [&str; N]) -> Result<[PathBuf; N], String> {
    files(&control_plane(), names)
}

fn files<const N: usize>(folder: &Path, names: [&str; N]) -> Result<[PathBuf; N], String> {
    let script = folder.file_name().unwrap().display();
    match names.iter().find(|name| !folder.join(name).exists()) {
        Some(missing) => Err(format!("{missing} is missing (run scripts/lib/{script})")),
        None => Ok(names.map(|name| folder.join(name))),
    }
}

/// The folder of the profile that this program was built with: its own, or the one above `deps` for
/// a test.
fn profile() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let folder = program.parent().unwrap();
    if folder.ends_with("deps") {
        folder.parent().unwrap().to_owned()
    } else {
        folder.to_owned()
    }
}

fn target() -> PathBuf {
    profile().parent().unwrap().to_owned()
}
