//! Connections that stay open meanwhile. Processes of their own open and serve them, because the
//! files of a process are limited.

#![allow(clippy::disallowed_types)] // starts the processes

use std::io::{BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::ops::Range;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use netns::NetNs;
use nix::sys::resource::{Resource, getrlimit};

use super::arena::Contestant;
use super::load;
use crate::cni::path_of;

/// The first port of these servers.
const FIRST_PORT: u16 = 9_100;
/// Ports of each server; several, because a client has at most 32,768 ports for each.
const PORTS: u16 = 10;
/// Files that a process has open besides connections.
const OTHER_FILES: usize = 500;

/// Connections that are open until this value is dropped.
#[derive(Debug)]
pub(super) struct Held(Vec<Child>);

impl Held {
    /// Opens connections from the client of a contestant to its server, this many at a time, by
    /// the command `hold` of a program.
    pub(super) fn open(
        program: &Path,
        contestant: &Contestant,
        connections: usize,
        at_once: usize,
    ) -> Self {
        let mut held = Self(Vec::new());
        let most = most_files() - OTHER_FILES;
        let (mut left, mut first_port) = (connections, FIRST_PORT);
        while left > 0 {
            let count = most.min(left);
            let ip = contestant.server.ip().to_string();
            let port = first_port.to_string();
            let server = path_of(contestant.server.pod());
            held.start(program, &["serve", &server, &port]);
            let (count_text, at_once) = (count.to_string(), at_once.to_string());
            let client = path_of(&contestant.client);
            held.start(
                program,
                &["open", &client, &port, &ip, &count_text, &at_once],
            );
            left -= count;
            first_port += PORTS;
        }
        held
    }

    /// Starts a process, and waits until it reports that it listens or has opened its connections.
    fn start(&mut self, program: &Path, arguments: &[&str]) {
        let mut command = Command::new(program);
        command.arg("hold").args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = netns::process::die_with_parent(&mut command)
            .spawn()
            .unwrap();
        let mut ready = String::new();
        let output = process.stdout.take().unwrap();
        self.0.push(process);
        BufReader::new(output).read_line(&mut ready).unwrap();
        assert_eq!(ready, "ready\n", "{arguments:?} has failed");
    }
}

impl Drop for Held {
    /// Ends the clients before their servers.
    fn drop(&mut self) {
        for process in self.0.iter_mut().rev() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// How many files a process may have open.
pub(super) fn most_files() -> usize {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    usize::try_from(soft).unwrap()
}

/// Runs one of the processes until its input ends: in the network namespace of a path, listens at
/// ports, or opens connections to them.
///
/// # Panics
/// On any error.
pub fn run(arguments: &[String]) {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["serve", netns, first_port] => {
            let netns = NetNs::open(netns).unwrap();
            load::serve_ports(&netns, ports(first_port));
            await_end();
        }
        ["open", netns, first_port, ip, count, at_once] => {
            let netns = NetNs::open(netns).unwrap();
            let ip: IpAddr = ip.parse().unwrap();
            let [count, at_once] = [count, at_once].map(|number| number.parse().unwrap());
            let held = load::hold(&netns, ip, ports(first_port), count, at_once);
            await_end();
            drop(held);
        }
        _ => panic!("usage: hold serve NETNS PORT | hold open NETNS PORT IP COUNT AT-ONCE"),
    }
}

fn ports(first: &str) -> Range<u16> {
    let first: u16 = first.parse().unwrap();
    first..first + PORTS
}

fn await_end() {
    println!("ready");
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read(&mut [0]); // killed, or the parent has ended
}
