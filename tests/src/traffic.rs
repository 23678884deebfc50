//! Continuous traffic, which detects connections that are refused, cut or stalled while a pod's
//! rules change.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use netns::NetNs;
use socket2::{Domain, Socket, Type};

use crate::listener::{connect, plain};
use crate::sandbox::PATIENCE;

const MESSAGE: [u8; 4096] = [7; 4096];

/// Connections driven by background threads, which stop on drop.
#[derive(Debug, Default)]
pub struct Traffic {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    has_ended: AtomicBool,
    exchanges: AtomicUsize,
    /// Connections that were opened and exchanged a message, of IPv4 and IPv6.
    opened: [AtomicUsize; 2],
    failures: Mutex<Vec<String>>,
}

impl Traffic {
    /// Echoes all connections to this address.
    pub fn serve(&self, server: &NetNs, at: SocketAddr) {
        let listener = plain(server, at);
        std::thread::spawn(move || echo_all(&listener));
    }

    /// Adds a client that exchanges messages on one connection.
    pub fn talk(&mut self, client: &NetNs, to: SocketAddr) {
        let stream = connect(client, to).unwrap();
        self.run(format!("the connection to {to}"), move |shared| {
            keep_talking(shared, stream)
        });
    }

    /// Adds a client that opens one connection after another.
    pub fn connect(&mut self, client: &NetNs, to: SocketAddr) {
        let client = client.try_clone().unwrap();
        self.run(format!("a new connection to {to}"), move |shared| {
            keep_connecting(shared, &client, to)
        });
    }

    /// How many connections of IPv4 and of IPv6 were opened and exchanged a message.
    pub fn opened(&self) -> [usize; 2] {
        let opened = self.shared.opened.each_ref();
        opened.map(|count| count.load(Ordering::Relaxed))
    }

    fn run(&mut self, what: String, work: impl FnOnce(&Shared) -> io::Result<()> + Send + 'static) {
        let shared = self.shared.clone();
        self.threads.push(std::thread::spawn(move || {
            if let Err(e) = work(&shared) {
                shared.failures.lock().unwrap().push(format!("{what}: {e}"));
            }
        }));
    }

    /// Waits for more exchanges; returns all failures so far.
    pub fn failures(&self) -> Vec<String> {
        self.shared.await_exchanges(200);
        self.shared.failures.lock().unwrap().clone()
    }
}

impl Shared {
    fn await_exchanges(&self, more: usize) {
        let until = self.exchanges.load(Ordering::Relaxed) + more;
        while self.exchanges.load(Ordering::Relaxed) < until
            && self.failures.lock().unwrap().is_empty()
        {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn is_running(&self) -> bool {
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
    while shared.is_running() {
        shared.exchange(&mut stream)?;
    }
    Ok(())
}

fn keep_connecting(shared: &Shared, from: &NetNs, to: SocketAddr) -> io::Result<()> {
    while shared.is_running() {
        let socket = from
            .run(|| Socket::new(Domain::for_address(to), Type::STREAM, None))
            .unwrap()?;
        let connected = socket.connect_timeout(&to.into(), PATIENCE);
        let of = |e: io::Error| {
            let local = socket.local_addr().ok().and_then(|a| a.as_socket());
            let port = local.map_or(0, |a| a.port());
            io::Error::new(e.kind(), format!("from port {port}: {e}"))
        };
        connected.map_err(of)?;
        let mut stream = TcpStream::from(socket.try_clone()?);
        shared.exchange(&mut stream).map_err(of)?;
        shared.opened[usize::from(to.is_ipv6())].fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Echoes the messages of all clients until the process exits.
fn echo_all(listener: &TcpListener) {
    for mut stream in listener.incoming().flatten() {
        std::thread::spawn(move || {
            let mut message = MESSAGE;
            while stream
                .read_exact(&mut message)
                .and_then(|()| stream.write_all(&message))
                .is_ok()
            {}
        });
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.shared.has_ended.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|t| drop(t.join()));
    }
}
