//! Connections over loopback with `openssl s_client` and `openssl s_server`, which update their
//! keys when `k` is typed, and request the same from the other end when `K` is typed.
#![allow(clippy::disallowed_types)] // OpenSSL is the other end

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use rustls::SupportedCipherSuite;
use rustls::crypto::aws_lc_rs::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384};

use super::handshake::{Certificate, Handshake, Transport, client_config, server_config};
use super::{receive, take};
use crate::{Event, RecordLayer};

const SUITES: [SupportedCipherSuite; 2] = [TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384];
/// Only to detect a hang.
const DEADLINE: Duration = Duration::from_secs(60);

/// A running `openssl`.
struct OpenSsl {
    process: Child,
    input: ChildStdin,
    output: Receiver<Vec<u8>>,
    printed: Vec<u8>,
}

impl OpenSsl {
    /// Starts it, or skips the test if it is not installed.
    fn start(arguments: &[&str]) -> Option<Self> {
        let started = Command::new("openssl")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut process) = started else {
            let thread = thread::current();
            let test = thread.name().and_then(|name| name.rsplit("::").next());
            let test = test.unwrap_or("unnamed");
            // Past the capture of libtest, like the other tests that report this.
            let line = format!("skipped: {test}: openssl is not installed\n");
            let _ = std::io::stderr().write_all(line.as_bytes());
            return None;
        };
        let (sender, output) = channel();
        let mut stdout = process.stdout.take().unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stdout.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        Some(Self {
            input: process.stdin.take().unwrap(),
            process,
            output,
            printed: Vec::new(),
        })
    }

    /// Types a line in one write: `openssl` takes whatever it reads at once as one command.
    fn type_line(&mut self, line: &str) {
        let line = format!("{line}\n");
        self.input.write_all(line.as_bytes()).unwrap();
    }

    /// Waits until it has printed this text.
    fn wait_for(&mut self, text: &str) {
        self.wait(|printed| printed.contains(text).then_some(()));
    }

    /// Waits until something is found in what it has printed.
    fn wait<T>(&mut self, find: impl Fn(&str) -> Option<T>) -> T {
        loop {
            let printed = String::from_utf8_lossy(&self.printed);
            if let Some(found) = find(&printed) {
                return found;
            }
            match self.output.recv_timeout(DEADLINE) {
                Ok(bytes) => self.printed.extend(bytes),
                Err(error) => panic!("{error} after {printed}"),
            }
        }
    }
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One end of a connection with `openssl`.
struct Conversation {
    layer: RecordLayer,
    socket: TcpStream,
    openssl: OpenSsl,
    data: Vec<u8>,
}

impl Conversation {
    fn receive(&mut self) -> Event {
        let bytes = self.socket.receive();
        let (data, event) = receive(&mut self.layer, &bytes).unwrap();
        self.data.extend(data);
        event
    }

    fn expect(&mut self, line: &str) {
        while !self.data.ends_with(format!("{line}\n").as_bytes()) {
            assert_eq!(self.receive(), Event::NeedMore);
        }
    }

    fn send(&mut self) {
        let bytes = take(self.layer.outgoing());
        self.socket.send(&bytes);
    }

    /// Sends a line, and waits until the other end has printed it.
    fn say(&mut self, line: &str) {
        self.layer.seal(format!("{line}\n").as_bytes()).unwrap();
        self.send();
        self.openssl.wait_for(line);
    }

    fn run(mut self) {
        self.openssl.type_line("from openssl");
        self.expect("from openssl");
        self.say("said first");

        // It requests an update: the answer precedes the next data.
        self.openssl.type_line("K");
        while !self.has_request() {
            assert_eq!(self.receive(), Event::NeedMore);
        }
        self.say("said with new keys");
        self.openssl.type_line("from new keys");
        self.expect("from new keys");

        // It updates its own keys only. What it sends next is under them.
        self.openssl.type_line("k");
        while !self.has_update() {
            assert_eq!(self.receive(), Event::NeedMore);
        }
        self.openssl.type_line("from newer keys");
        self.expect("from newer keys");
        self.say("said with the same keys");

        // This end requests an update, which openssl answers.
        self.layer.refresh_traffic_keys().unwrap();
        self.say("said after a request");
        self.openssl.type_line("from requested keys");
        self.expect("from requested keys");
        self.layer.seal(&[b'x'; 100_000]).unwrap();
        self.say("said in bulk");

        self.layer.close().unwrap();
        self.send();
        while self.receive() != Event::Closed {}
        assert_eq!(self.layer.end_of_input(), Ok(()));
    }

    fn has_request(&mut self) -> bool {
        self.inspect(|state| state["owes_key_update"] == true)
    }

    /// Under the keys of a new generation, nothing was received yet.
    fn has_update(&mut self) -> bool {
        self.inspect(|state| state["rx"]["sequence"] == 0)
    }

    fn inspect(&mut self, holds: impl Fn(&serde_json::Value) -> bool) -> bool {
        let other = super::client(super::SUITES[0]);
        let state = std::mem::replace(&mut self.layer, other).freeze();
        let holds = holds(&serde_json::to_value(&state).unwrap());
        self.layer = state.thaw().unwrap();
        holds
    }
}

#[test]
fn openssl_as_a_client_updates_keys_in_both_directions() {
    for suite in SUITES {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let Some(openssl) = OpenSsl::start(&["s_client", "-connect", &address, "-tls1_3"]) else {
            return;
        };
        let (mut socket, _) = listener.accept().unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut ours = Handshake::server(&server_config(suite));
        ours.turn(b"", &mut socket);
        let conversation = Conversation {
            layer: ours.take_over().unwrap(),
            socket,
            openssl,
            data: Vec::new(),
        };
        conversation.run();
    }
}

#[test]
fn openssl_as_a_server_updates_keys_in_both_directions() {
    for suite in SUITES {
        let certificate = Certificate::generate();
        let (file, key) = (certificate.file(), certificate.key_file());
        let options = [
            "-accept",
            "127.0.0.1:0",
            "-naccept",
            "1",
            "-tls1_3",
            "-cert",
        ];
        let files = [file.to_str().unwrap(), "-key", key.to_str().unwrap()];
        let arguments = [&["s_server"], &options[..], &files].concat();
        let Some(mut openssl) = OpenSsl::start(&arguments) else {
            return;
        };
        let port: u16 = openssl.wait(|printed| {
            let (_, behind) = printed.split_once("ACCEPT 127.0.0.1:")?;
            let (port, _) = behind.split_once('\n')?;
            port.trim().parse().ok()
        });
        let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut ours = Handshake::client(&client_config(suite));
        ours.turn(b"", &mut socket);
        let conversation = Conversation {
            layer: ours.take_over().unwrap(),
            socket,
            openssl,
            data: Vec::new(),
        };
        conversation.run();
    }
}
