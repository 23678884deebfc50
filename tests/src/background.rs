//! A runtime whose tasks run while the test blocks.

use std::future::pending;
use std::thread;

use tokio::runtime::{Builder, Handle};

/// Starts a runtime on a thread of its own. It runs until the process exits.
pub fn runtime() -> Handle {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let handle = runtime.handle().clone();
    thread::spawn(move || runtime.block_on(pending::<()>()));
    handle
}
