//! The wall clock of a node is set while its agent and proxy run: only what is about dates follows
//! it, such as the validity of certificates.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use underpass_tests::control_plane::echo;
use underpass_tests::folder::folder;
use underpass_tests::machine::has_exited;
use underpass_tests::sandbox::{MESH, Sandbox, connect, read_line, serve_echo, until};
use underpass_tests::skip::skip;
use underpass_tests::wall_clock::WallClock;

const NODES: [&str; 2] = ["node-1", "node-2"];
const HOUR: i64 = 3600;
const YEAR: i64 = 365 * 24 * HOUR;
/// Certificates are valid for a day.
const LIFE: i64 = 24 * HOUR;
/// Unused tunnels are closed soon, so that a new connection opens another one.
const SHORT_IDLE: (&str, &str) = ("POOL_UNUSED_RELEASE_TIMEOUT", "1s");
/// How long open connections may take to finish. Only detects a hang.
const DEADLINE: (&str, &str) = ("CONNECTION_TERMINATION_DEADLINE", "120s");

/// A sandbox that follows a clock, with an open connection.
struct Scene {
    sandbox: Sandbox,
    clock: WallClock,
    open: TcpStream,
}

impl Scene {
    fn up(name: &str) -> Option<Self> {
        let clock = match WallClock::new(&folder(&format!("{name}-clock"))) {
            Ok(clock) => clock,
            Err(why) => {
                skip(&why);
                return None;
            }
        };
        let mut environment = clock.environment().to_vec();
        environment.extend([SHORT_IDLE, DEADLINE]);
        let sandbox = Sandbox::up_in(name, MESH, &environment);
        serve_echo(&sandbox.pod("server"), 8080);
        let open = talk(&sandbox, "client");
        Some(Self {
            sandbox,
            clock,
            open,
        })
    }

    /// The serial number of each certificate of a node.
    fn serials(&self, node: &str) -> BTreeMap<String, String> {
        let (_, status) = self.sandbox.get(node, "127.0.0.1:15000", "/status");
        let status: Value = serde_json::from_str(&status).unwrap();
        let text = |of: &Value| of.as_str().unwrap_or_default().to_owned();
        let all = status["certificates"].as_array().unwrap().iter();
        all.map(|c| (text(&c["identity"]), text(&c["serial"])))
            .collect()
    }

    fn all_serials(&self) -> [BTreeMap<String, String>; 2] {
        NODES.map(|node| self.serials(node))
    }

    /// Sets the clock, and waits until the proxies have noticed.
    fn set(&self, seconds: i64) {
        let noticed = |node| self.count(node, "event=\"clock_set\"");
        let before = NODES.map(noticed);
        self.clock.set(seconds);
        for (node, before) in NODES.into_iter().zip(before) {
            until("the proxy notices that the clock was set", || {
                (noticed(node) > before).then_some(())
            });
        }
    }

    /// How many lines of a proxy's log contain this.
    fn count(&self, node: &str, what: &str) -> usize {
        let log = self.sandbox.log(node, "proxy");
        log.lines().filter(|line| line.contains(what)).count()
    }

    /// Asserts that the open connection works, that a new tunnel can be opened, that this is in the
    /// access log and in the metrics, and that agents serve.
    fn assert_works(&mut self, when: &str) {
        self.open.write_all(b"still here\n").unwrap();
        assert_eq!(read_line(&mut self.open).unwrap(), "still here", "{when}");
        let closed = |scene: &Self| scene.count("node-1", "connection complete");
        let before = closed(self);
        drop(talk(&self.sandbox, "neighbour"));
        until("the connection is in the access log", || {
            (closed(self) > before).then_some(())
        });
        let metrics = self.sandbox.get("node-1", "127.0.0.1:15020", "/metrics").1;
        assert!(metrics.contains("source_workload=\"client\""), "{when}");
        let (code, out, err) = self.sandbox.underpass("node-1", "verify client");
        assert_eq!(code, 0, "{when}: {out}{err}");
    }
}

/// Connects a pod to the server, exchanges a message, and keeps the connection.
fn talk(sandbox: &Sandbox, from: &str) -> TcpStream {
    let to = SocketAddr::new(sandbox.ips("server")[0], 8080);
    let mut stream = connect(&sandbox.pod(from), to).unwrap();
    read_line(&mut stream).unwrap();
    echo(&mut stream).unwrap();
    stream
}

#[test]
fn certificates_follow_a_clock_that_is_set_and_connections_do_not() {
    let Some(mut scene) = Scene::up("clock-set") else {
        return;
    };
    let mut expected = NODES.map(|node| scene.count(node, "certificate issued"));
    let mut serials = scene.all_serials();
    for (offset, is_renewed, when) in [
        (HOUR, false, "an hour later"),
        (HOUR + LIFE, true, "after the end of all certificates"),
        (2 * YEAR, true, "years later"),
        (-HOUR, true, "before the first certificate"),
        (-HOUR - 30, false, "within the tolerance of authorities"),
        (0, false, "at the right time, an hour later"),
    ] {
        scene.set(offset);
        if is_renewed {
            until(&format!("all certificates are renewed {when}"), || {
                let now = scene.all_serials();
                let renewed = |(now, old): (&BTreeMap<_, _>, &BTreeMap<_, _>)| {
                    now.iter().all(|(of, serial)| old.get(of) != Some(serial))
                };
                now.iter().zip(&serials).all(renewed).then_some(())
            });
            let counts = scene.all_serials().map(|of| of.len());
            expected = [expected[0] + counts[0], expected[1] + counts[1]];
        }
        scene.assert_works(when);
        serials = scene.all_serials();
        let issued = NODES.map(|node| scene.count(node, "certificate issued"));
        assert_eq!(issued, expected, "each is renewed once, {when}");
    }
}

#[test]
fn a_drain_lasts_as_long_when_the_clock_is_set() {
    let Some(mut scene) = Scene::up("clock-drain") else {
        return;
    };
    let pid = scene.sandbox.node("node-1")["proxy_pid"].as_u64().unwrap();
    let pid = u32::try_from(pid).unwrap();
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGTERM).unwrap();
    until("the proxy drains", || {
        (scene.count("node-1", "event=\"proxy_draining\"") > 0).then_some(())
    });
    for offset in [HOUR, YEAR, -YEAR] {
        scene.clock.set(offset);
        echo(&mut scene.open).unwrap();
    }
    assert!(!has_exited(pid), "the connection is open");
    drop(scene.open);
    until("the proxy has exited", || has_exited(pid).then_some(()));
}
