//! A wall clock that a test sets, for the programs under test alone: libfaketime, preloaded. Their
//! monotonic clock stays the kernel's.

use std::fs;
use std::path::{Path, PathBuf};

/// Where Debian's package installs the library, in a folder for each architecture.
const LIBRARIES: &str = "/usr/lib";
const LIBRARY: &str = "faketime/libfaketimeMT.so.1";

/// The clock. Programs with its [`environment`](Self::environment) follow it.
#[derive(Debug)]
pub struct WallClock {
    library: String,
    file: PathBuf,
}

impl WallClock {
    /// A clock that shows the time of this machine; its state is in `folder`.
    ///
    /// # Errors
    /// That the library is missing, as the reason to skip a test.
    pub fn new(folder: &Path) -> Result<Self, String> {
        remove_leftovers();
        let folders = fs::read_dir(LIBRARIES).into_iter().flatten().flatten();
        let mut libraries = folders.map(|f| f.path().join(LIBRARY));
        let library = libraries.find(|path| path.exists());
        let library = library.ok_or("libfaketime is missing (install package faketime)")?;
        let clock = Self {
            library: library.display().to_string(),
            file: folder.join("clock"),
        };
        clock.set(0);
        Ok(clock)
    }

    /// Sets the clock to this many seconds after the time of this machine.
    pub fn set(&self, seconds: i64) {
        let staged = self.file.with_extension("new");
        fs::write(&staged, format!("{seconds:+}\n")).unwrap();
        fs::rename(staged, &self.file).unwrap();
    }

    /// The environment variables of a program that follows the clock.
    pub fn environment(&self) -> [(&str, &str); 4] {
        [
            ("LD_PRELOAD", self.library.as_str()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]
    }
}

/// Removes the shared memory of programs that were killed; others remove theirs at their end.
fn remove_leftovers() {
    for file in fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
        let name = file.file_name();
        let name = name.to_str().unwrap_or_default();
        let of = ["faketime_shm_", "sem.faketime_sem_"];
        let pid = of.iter().find_map(|start| name.strip_prefix(start));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_file(file.path()); // another test removes it as well
        }
    }
}
