//! Traffic that never pauses, so that whatever is refused, cut or lost while the rules of a pod change is noticed.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use netns::NetNs;

use crate::listener::{connect, plain};

/// Longer than a lost segment or SYN takes to be sent again, several times over.
const PATIENCE: Duration = Duration::from_secs(8);
const MESSAGE: [u8; 4096] = [7; 4096];

/// What several threads send and receive. It ends when it is dropped.
#[derive(Debug, Default)]
pub struct Traffic {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    has_ended: AtomicBool,
    exchanges: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Traffic {
    /// Whoever connects to this address is answered.
    pub fn serve(&self, server: &NetNs, at: SocketAddr) {
        let listener = plain(server, at);
        std::thread::spawn(move || echo_all(&listener));
    }

    /// A client talks on one connection.
    pub fn talk(&mut self, client: &NetNs, to: SocketAddr) {
        let stream = connect(client, to).unwrap();
        self.run(format!("the connection to {to}"), move |shared| keep_talking(shared, stream));
    }

    /// A client makes one connection after the other.
    pub fn connect(&mut self, client: &NetNs, to: SocketAddr) {
        let client = client.try_clone().unwrap();
        self.run(format!("a new connection to {to}"), move |shared| keep_connecting(shared, &client, to));
    }

    fn run(&mut self, what: String, work: impl FnOnce(&Shared) -> io::Result<()> + Send + 'static) {
        let shared = self.shared.clone();
        self.threads.push(std::thread::spawn(move || {
            if let Err(e) = work(&shared) {
                shared.failures.lock().unwrap().push(format!("{what}: {e}"));
            }
        }));
    }

    /// Waits for some more exchanges; what has failed until now.
    pub fn goes_on(&self) -> Vec<String> {
        self.shared.await_exchanges(200);
        self.shared.failures.lock().unwrap().clone()
    }
}

impl Shared {
    fn await_exchanges(&self, more: usize) {
        let until = self.exchanges.load(Ordering::Relaxed) + more;
        while self.exchanges.load(Ordering::Relaxed) < until && self.failures.lock().unwrap().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn goes_on(&self) -> bool {
        !self.has_ended.load(Ordering::Relaxed)
    }

    fn exchange(&self, stream: &mut TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&MESSAGE)?;
        stream.read_exact(&mut MESSAGE.clone())?;
        self.exchanges.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

fn keep_talking(shared: &Shared, mut stream: TcpStream) -> io::Result<()> {
    while shared.goes_on() {
        shared.exchange(&mut stream)?;
    }
    Ok(())
}

fn keep_connecting(shared: &Shared, from: &NetNs, to: SocketAddr) -> io::Result<()> {
    while shared.goes_on() {
        let mut stream = from.run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap()?;
        shared.exchange(&mut stream)?;
    }
    Ok(())
}

/// Answers whoever connects with what it says, for as long as the process lives.
fn echo_all(listener: &TcpListener) {
    for mut stream in listener.incoming().flatten() {
        std::thread::spawn(move || {
            let mut message = MESSAGE;
            while stream.read_exact(&mut message).and_then(|()| stream.write_all(&message)).is_ok() {}
        });
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.shared.has_ended.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|t| drop(t.join()));
    }
}
