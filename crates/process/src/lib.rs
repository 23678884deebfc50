//! What both long-lived programs, the agent and the proxy, do with their own process at start: end
//! on a panic that would otherwise leave them half alive, raise the limit of open files, and open
//! the listeners of their admin, metrics and readiness endpoints. Durations in options are parsed
//! here as well.

#![forbid(unsafe_code)]

mod duration;
mod line_writer;

use std::cell::Cell;
use std::error::Error;
use std::fmt::Display;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::OnceLock;

use error_code::ErrorCode;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;

pub use duration::parse_duration;
pub use line_writer::LineWriter;

/// An endpoint of the program cannot listen. Likely cause: another process uses the address.
#[derive(Debug, thiserror::Error)]
#[error("{code}: cannot listen on {address}. Next step: {}", code.next_step)]
pub struct ListenError {
    code: &'static ErrorCode,
    address: String,
    source: Box<dyn Error + Send + Sync>,
}

impl ListenError {
    /// Describes why listening on `address`, a socket address or a path, failed, under the
    /// program's own code.
    pub fn new(
        code: &'static ErrorCode,
        address: impl Display,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self {
            code,
            address: address.to_string(),
            source: source.into(),
        }
    }
}

thread_local! {
    /// Whether a panic on this thread ends only what panicked.
    static SURVIVES_PANICS: Cell<bool> = const { Cell::new(false) };
}

/// Aborts the process when a thread panics, and prints `code`: otherwise a part of the program
/// would be missing unnoticed. Threads that [`survive_panics`] are excepted.
pub fn abort_on_panic(code: &'static ErrorCode) {
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        default_hook(panic);
        if !SURVIVES_PANICS.get() {
            abort(code);
        }
    }));
}

/// Lets the calling thread survive panics, because each of its tasks serves only one client.
pub fn survive_panics() {
    SURVIVES_PANICS.set(true);
}

/// Runs a task without which the program is not complete, on a thread that survives panics: if it
/// panics, the process aborts as by [`abort_on_panic`].
pub async fn essential<T>(code: &'static ErrorCode, task: impl Future<Output = T>) -> T {
    struct AbortOnUnwind(&'static ErrorCode);
    impl Drop for AbortOnUnwind {
        fn drop(&mut self) {
            if std::thread::panicking() {
                abort(self.0);
            }
        }
    }
    let _guard = AbortOnUnwind(code);
    task.await
}

/// What the process does before it aborts.
static BEFORE_ABORT: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();

/// Runs this before the process aborts because of a panic, for example to write the end of its log.
/// Only the first call has an effect.
pub fn before_abort(last: impl Fn() + Send + Sync + 'static) {
    let _ = BEFORE_ABORT.set(Box::new(last));
}

fn abort(code: &ErrorCode) -> ! {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("unnamed");
    eprintln!("{code}: thread {name} panicked: the process ends");
    if let Some(last) = BEFORE_ABORT.get() {
        last();
    }
    std::process::abort()
}

/// Raises the soft limit of open files to the hard limit. Every connection takes two descriptors
/// and every pod up to fifteen, and container runtimes may start a program with a soft limit of
/// 1024.
pub fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && let Err(e) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!("cannot raise the limit of open files: {e}");
    }
}

/// Listens on an address, or on the IPv4 wildcard if listening on the IPv6 one fails.
///
/// # Errors
/// [`ListenError`] with the given code.
pub async fn listen(
    address: SocketAddr,
    code: &'static ErrorCode,
) -> Result<TcpListener, ListenError> {
    let bound = match TcpListener::bind(address).await {
        Err(_) if address.ip().is_unspecified() && address.is_ipv6() => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    bound.map_err(|source| ListenError::new(code, address, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a test runs in a process of its own.
    const CASE: &str = "UNDERPASS_TEST_PANIC";

    /// Panics as the environment requests.
    #[test]
    #[allow(clippy::panic)]
    fn panic_if_requested() {
        let Ok(case) = std::env::var(CASE) else {
            return;
        };
        abort_on_panic(&error_code::proxy::PANICKED);
        before_abort(|| eprintln!("written before the abort"));
        let panicking = std::thread::spawn(move || {
            if case != "ordinary" {
                survive_panics();
            }
            let task = async { panic!("a bug") };
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap();
            runtime.block_on(async {
                match case.as_str() {
                    "essential" => essential(&error_code::proxy::PANICKED, task).await,
                    _ => task.await,
                }
            });
        });
        assert!(panicking.join().is_err());
    }

    #[test]
    #[allow(clippy::disallowed_types)] // runs this program again
    fn a_panic_ends_the_process_unless_its_thread_survives_it() {
        for (case, survives) in [
            ("ordinary", false),
            ("essential", false),
            ("connection", true),
        ] {
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["tests::panic_if_requested", "--exact", "--nocapture"])
                .env(CASE, case)
                .output()
                .unwrap();
            assert_eq!(output.status.success(), survives, "{case}");
            let text = String::from_utf8_lossy(&output.stderr);
            for shown in ["UP-PROXY-018", "written before the abort"] {
                assert_eq!(text.contains(shown), !survives, "{case}: {text}");
            }
        }
    }

    #[tokio::test]
    async fn an_address_in_use_is_reported_with_its_code_and_next_step() {
        let local = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
        let code = &error_code::proxy::OWN_ADDRESS;
        let first = listen(local, code).await.unwrap();
        let address = first.local_addr().unwrap();
        let error = listen(address, code).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "{code}: cannot listen on {address}. Next step: {}",
                code.next_step
            )
        );
        assert!(error.source().is_some_and(|e| e.is::<std::io::Error>()));
    }
}
