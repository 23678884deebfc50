//! Clients of HTTP that send requests on connections which they keep, many at once.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use netns::NetNs;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::sandbox::{PATIENCE, until};

/// Clients that send requests until [`HttpLoad::stop`].
#[derive(Debug)]
pub struct HttpLoad {
    shared: Arc<Shared>,
    thread: JoinHandle<Vec<String>>,
}

#[derive(Debug, Default)]
struct Shared {
    answered: AtomicUsize,
    is_over: AtomicBool,
}

impl HttpLoad {
    /// Starts this many clients in a network namespace, each of which sends a request when it has
    /// the last response, after a pause.
    pub fn start(from: NetNs, to: SocketAddr, clients: usize, pause: Duration) -> Self {
        let shared = Arc::<Shared>::default();
        let of_thread = shared.clone();
        let thread = std::thread::spawn(move || {
            let run = || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                runtime.unwrap().block_on(async {
                    let failures = RefCell::default();
                    let client = |_| request_until_over(to, pause, &of_thread, &failures);
                    futures_util::future::join_all((0..clients).map(client)).await;
                    failures.into_inner()
                })
            };
            from.run(run).unwrap()
        });
        Self { shared, thread }
    }

    /// Waits until this many more requests are answered.
    pub fn await_answers(&self, more: usize) {
        let answered = || self.shared.answered.load(Ordering::Relaxed);
        let goal = answered() + more;
        until("more requests are answered", || {
            (answered() >= goal).then_some(())
        });
    }

    /// Ends the clients; returns how many requests were answered, and how others failed.
    pub fn stop(self) -> (usize, Vec<String>) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        let failures = self.thread.join().unwrap();
        (self.shared.answered.load(Ordering::Relaxed), failures)
    }
}

async fn request_until_over(
    to: SocketAddr,
    pause: Duration,
    shared: &Shared,
    failures: &RefCell<Vec<String>>,
) {
    let is_over = || shared.is_over.load(Ordering::Relaxed);
    while !is_over() {
        match timeout(PATIENCE, request_until_closed(to, pause, shared)).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => failures.borrow_mut().push(e.to_string()),
            Err(_) => failures.borrow_mut().push("no answer".to_owned()),
        }
        sleep(Duration::from_millis(1)).await;
    }
}

/// Sends requests on a connection until the server closes it between two of them.
async fn request_until_closed(to: SocketAddr, pause: Duration, shared: &Shared) -> io::Result<()> {
    let mut stream = BufReader::new(TcpStream::connect(to).await?);
    while !shared.is_over.load(Ordering::Relaxed) {
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
            .await?;
        read_response(&mut stream).await?;
        shared.answered.fetch_add(1, Ordering::Relaxed);
        sleep(pause).await;
        match stream.get_ref().try_read(&mut [0]) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            _ => break,
        }
    }
    Ok(())
}

async fn read_response(stream: &mut BufReader<TcpStream>) -> io::Result<()> {
    let (mut status, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().map_err(io::Error::other)?;
        }
        status.get_or_insert(line);
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    match status {
        Some(line) if line.contains(" 200 ") => Ok(()),
        line => Err(io::Error::other(format!(
            "{line:?}: {}",
            String::from_utf8_lossy(&body)
        ))),
    }
}
