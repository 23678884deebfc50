//! Both ends of a connection end it, in every order: data before each end arrives, each end arrives
//! as what it is, and nothing of the connection is left in the proxies.
#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;

use netns::NetNs;
use netns::sockopt::{reset_on_close, unacknowledged};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use underpass_tests::listener::{accept, talk};
use underpass_tests::sandbox::{MESH, PATIENCE, Sandbox, connect, listen, until};

use self::End::{Fin, Reset};

/// How an end of a connection ends it, after it has sent something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// A half-close.
    Fin,
    /// A reset.
    Reset,
}

/// What the two applications do. The second one waits until it has seen what the first one did.
#[derive(Debug, Clone, Copy)]
enum Order {
    /// Only one application ends the connection.
    One(End),
    /// An application half-closes the connection, and resets it later.
    FinThenReset,
    /// An application half-closes the connection, then the other one ends it.
    Both(End),
    /// Both applications end it at the same time.
    AtOnce(End, End),
}

const ORDERS: [Order; 8] = [
    Order::One(Reset),
    Order::FinThenReset,
    Order::Both(Fin),
    Order::Both(Reset),
    Order::AtOnce(Fin, Fin),
    Order::AtOnce(Fin, Reset),
    Order::AtOnce(Reset, Fin),
    Order::AtOnce(Reset, Reset),
];

/// The paths of a connection: by tunnel, and in plain text to a pod outside of the mesh and from
/// one. Each has two legs with a proxy between them, or three with two.
const PATHS: [(&str, &str); 3] = [
    ("client", "server"),
    ("client", "outsider"),
    ("outsider", "server"),
];

/// Sends data. Returns once the proxy has acknowledged it: a kernel discards what it has not sent
/// when the connection is reset.
fn send(stream: &mut Option<TcpStream>, data: &[u8]) {
    let stream = stream.as_mut().unwrap();
    stream.write_all(data).unwrap();
    until("the data is acknowledged", || {
        (unacknowledged(stream).unwrap() == 0).then_some(())
    });
}

/// Ends the connection, unless the other application has already reset it.
fn end(stream: &mut Option<TcpStream>, end: End) {
    match end {
        Fin => {
            let _ = stream.as_ref().unwrap().shutdown(Shutdown::Write);
        }
        Reset => {
            let _ = reset_on_close(stream.as_ref().unwrap());
            *stream = None;
        }
    }
}

/// Reads everything and the end after it.
fn read_to_end(stream: &mut TcpStream) -> (Vec<u8>, Result<(), ErrorKind>) {
    let mut all = Vec::new();
    let end = stream.read_to_end(&mut all);
    (all, end.map(|_| ()).map_err(|e| e.kind()))
}

/// Expects data and this end from an open stream.
fn expect(stream: &mut Option<TcpStream>, data: &[u8], end: End, what: &str) {
    let expected = match end {
        Fin => Ok(()),
        Reset => Err(ErrorKind::ConnectionReset),
    };
    let found = read_to_end(stream.as_mut().unwrap());
    assert_eq!(found, (data.to_vec(), expected), "{what}");
}

fn perform(order: Order, this: TcpStream, other: TcpStream, what: &str) {
    let what = format!("{order:?} {what}");
    let (ours, theirs) = ([1; 5000], [2; 7000]);
    let (mut this, mut other) = (Some(this), Some(other));
    match order {
        Order::One(how) => {
            send(&mut this, &ours);
            end(&mut this, how);
            expect(&mut other, &ours, how, &what);
        }
        Order::FinThenReset => {
            send(&mut this, &ours);
            end(&mut this, Fin);
            expect(&mut other, &ours, Fin, &what);
            end(&mut this, Reset);
            let error = until(&what, || other.as_ref().unwrap().take_error().unwrap());
            assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{what}");
        }
        Order::Both(how) => {
            send(&mut this, &ours);
            end(&mut this, Fin);
            expect(&mut other, &ours, Fin, &what);
            send(&mut other, &theirs);
            end(&mut other, how);
            expect(&mut this, &theirs, how, &what);
        }
        Order::AtOnce(first, second) => {
            send(&mut this, &ours);
            send(&mut other, &theirs);
            end(&mut this, first);
            end(&mut other, second);
            // What a reset socket has received is lost, so only the other one is read.
            if other.is_some() {
                expect(&mut other, &ours, first, &what);
            }
            if this.is_some() {
                expect(&mut this, &theirs, second, &what);
            }
        }
    }
}

/// Open connections, and descriptors of the proxy of a node.
fn used(sandbox: &Sandbox, node: &str) -> (u64, usize) {
    let status = sandbox.get(node, "127.0.0.1:15000", "/status").1;
    let status: Value = serde_json::from_str(&status).unwrap();
    let pid = &sandbox.node(node)["proxy_pid"];
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    (status["connections"].as_u64().unwrap(), files.count())
}

#[test]
fn ends_arrive_in_every_order_after_the_data_before_them_and_leave_nothing() {
    let idle = [("POOL_UNUSED_RELEASE_TIMEOUT", "1s")]; // of tunnels
    let sandbox = Sandbox::up_in("end-orders", MESH, &idle);
    let paths = PATHS.map(|(from, to)| {
        let port = 9090 + u16::from(from == "outsider");
        (from, to, listen(&sandbox.pod(to), port))
    });
    let pairs = |order: Order| {
        for (from, to, listener) in &paths {
            let port = listener.local_addr().unwrap().port();
            for ip in sandbox.ips(to) {
                for is_client in [true, false] {
                    let to = SocketAddr::new(ip, port);
                    let mut client = connect(&sandbox.pod(from), to).unwrap();
                    let mut server = accept(listener).unwrap().0;
                    talk(&mut client, &mut server); // all legs are connected
                    let who = if is_client { "client" } else { "server" };
                    let what = format!("from {from} to {to} at {ip}, first by the {who}");
                    match is_client {
                        true => perform(order, client, server, &what),
                        false => perform(order, server, client, &what),
                    }
                }
            }
        }
    };
    pairs(Order::Both(Fin)); // opens the tunnels, and what is kept from the first connection on
    let nodes = ["node-1", "node-2"];
    let before = nodes.map(|node| used(&sandbox, node).1);
    for order in ORDERS {
        pairs(order);
    }
    for (node, files) in nodes.into_iter().zip(before) {
        until("all connections of the proxy have ended", || {
            let (connections, now) = used(&sandbox, node);
            // A pipe of `splice` may be kept for the next connection.
            (connections == 0 && now <= files + 4).then_some(())
        });
    }
}

/// Connects without consuming the error of a connection that was reset since.
fn connect_and_keep_error(netns: &NetNs, to: SocketAddr) -> TcpStream {
    let opened = netns.run(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), None)?;
        match socket.connect(&to.into()) {
            Err(e) if e.raw_os_error() == Some(Errno::EINPROGRESS as i32) => {}
            connected => connected?,
        }
        let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
        poll(&mut polled, PollTimeout::try_from(PATIENCE).unwrap())?;
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        std::io::Result::Ok(socket)
    });
    opened.unwrap().unwrap().into()
}

/// The application is done with a connection before the proxy has noticed that it is open, at least
/// with some of many connections at once.
#[test]
fn what_precedes_an_early_reset_arrives_and_is_no_failure_to_connect() {
    const AT_ONCE: usize = 16;
    const ROUNDS: usize = 10;
    let sandbox = Sandbox::up("early-reset");
    let sent = [3; 2000];
    for (from, to) in PATHS {
        let port = 9090 + u16::from(from == "outsider");
        let (netns, listener) = (sandbox.pod(from), listen(&sandbox.pod(to), port));
        let to = SocketAddr::new(sandbox.ips(to)[0], port);
        let receive = || {
            for _ in 0..ROUNDS {
                let mut stream = connect_and_keep_error(&netns, to);
                let received = read_to_end(&mut stream);
                let expected = (sent.to_vec(), Err(ErrorKind::ConnectionReset));
                assert_eq!(received, expected, "from {from} to {to}");
            }
        };
        std::thread::scope(|scope| {
            let clients = [(); AT_ONCE].map(|()| scope.spawn(receive));
            for _ in 0..AT_ONCE * ROUNDS {
                let mut stream = Some(accept(&listener).unwrap().0);
                send(&mut stream, &sent);
                end(&mut stream, Reset);
            }
            for client in clients {
                client.join().unwrap();
            }
        });
    }
    for node in ["node-1", "node-2"] {
        let log = sandbox.log(node, "proxy");
        assert!(!log.contains("UP-PROXY-003"), "{log}");
    }
}
