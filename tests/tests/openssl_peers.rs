//! Tunnels whose other end is OpenSSL, which changes its keys again and again and requests that the
//! proxy does as well. The test plays HTTP/2 through its standard input and output.
#![allow(clippy::unwrap_used, clippy::disallowed_types)] // OpenSSL is the oracle here

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};

use underpass_tests::certificates::certificate;
use underpass_tests::fake_waypoint::hbone;
use underpass_tests::http2_frames::{
    ACK, END_HEADERS, HEADERS, PREFACE, SETTINGS, connect_block, frame,
};
use underpass_tests::raw_tunnel::{accepted, data};
use underpass_tests::sandbox::{MESH, Sandbox, connect, read_line, serve_echo, until};
use underpass_tests::skip::skip;

const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";
const OUTSIDER: &str = "spiffe://cluster.local/ns/outside/sa/outsider";
/// How often keys change.
const UPDATES: usize = 20;

/// OpenSSL's client or server.
struct OpenSsl {
    process: Child,
    input: ChildStdin,
    /// What it has received, and what it reports.
    output: Arc<Mutex<Vec<u8>>>,
}

impl OpenSsl {
    fn start(sandbox: &Sandbox, pod: &str, identity: &str, arguments: &[&str]) -> Self {
        let (chain, key) = credentials(sandbox, identity);
        let mut command = Command::new("openssl");
        command.args(arguments).args(["-tls1_3", "-alpn", "h2"]);
        command.arg("-cert").arg(chain).arg("-key").arg(key);
        command
            .arg("-CAfile")
            .arg(sandbox.folder().join("box/ca/root-cert.pem"));
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        netns::process::in_netns(&mut command, &sandbox.pod(pod)).unwrap();
        let process = netns::process::die_with_parent(&mut command).spawn();
        let mut process = process.unwrap();
        let output = Arc::default();
        collect(process.stdout.take().unwrap(), &output);
        collect(process.stderr.take().unwrap(), &output);
        Self {
            input: process.stdin.take().unwrap(),
            process,
            output,
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.input.write_all(bytes).unwrap();
        self.input.flush().unwrap();
    }

    fn count(&self, bytes: &[u8]) -> usize {
        let output = self.output.lock().unwrap();
        output.windows(bytes.len()).filter(|w| *w == bytes).count()
    }

    fn await_output(&self, bytes: &[u8]) {
        let what = format!("OpenSSL prints {:?}", String::from_utf8_lossy(bytes));
        until(&what, || (self.count(bytes) > 0).then_some(()));
    }
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let output = self.output.lock().unwrap();
            eprintln!("-- OpenSSL\n{}", String::from_utf8_lossy(&output));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn collect(mut from: impl Read + Send + 'static, to: &Arc<Mutex<Vec<u8>>>) {
    let to = to.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            to.lock().unwrap().extend_from_slice(&buffer[..length]);
        }
    });
}

/// Writes a certificate and its key for OpenSSL.
fn credentials(sandbox: &Sandbox, identity: &str) -> (PathBuf, PathBuf) {
    let (chain, key) = certificate(&sandbox.folder().join("box/ca"), identity);
    let files = ["peer-cert", "peer-key"].map(|name| sandbox.folder().join(name));
    std::fs::write(&files[0], &chain[0]).unwrap();
    std::fs::write(&files[1], key.secret_der()).unwrap();
    (to_pem(&files[0], "x509"), to_pem(&files[1], "pkey"))
}

fn to_pem(der: &Path, kind: &str) -> PathBuf {
    let pem = der.with_extension("pem");
    let mut command = Command::new("openssl");
    command.args([kind, "-inform", "DER", "-in"]).arg(der);
    assert!(command.arg("-out").arg(&pem).status().unwrap().success());
    pem
}

fn is_installed() -> bool {
    let version = Command::new("openssl").arg("version").output();
    version.is_ok_and(|v| v.stdout.starts_with(b"OpenSSL 3."))
}

#[test]
fn a_client_changes_its_keys_and_the_proxys() {
    if !is_installed() {
        return skip("OpenSSL 3 is not installed");
    }
    let sandbox = Sandbox::up("openssl-client");
    serve_echo(&sandbox.pod("server"), 8080);
    for ip in sandbox.ips("server") {
        let to = hbone(ip).to_string();
        let arguments = ["s_client", "-connect", &to];
        let mut client = OpenSsl::start(&sandbox, "outsider", CLIENT, &arguments);
        let block = connect_block(&SocketAddr::new(ip, 8080).to_string());
        let begin = [
            &PREFACE[..],
            &frame(SETTINGS, 0, 0, &[]),
            &frame(SETTINGS, ACK, 0, &[]),
            &frame(HEADERS, END_HEADERS, 1, &block),
            &data(1, b"the first line\n"),
        ];
        client.send(&begin.concat());
        client.await_output(b"the first line\n");
        for number in 1..=UPDATES {
            // A command is one only at the beginning of what OpenSSL reads at once.
            client.send(b"K\n");
            until("OpenSSL has sent a key update", || {
                (client.count(b"KEYUPDATE") == number).then_some(())
            });
            let line = format!("line {number}.\n");
            client.send(&data(1, line.as_bytes()));
            client.await_output(line.as_bytes());
        }
    }
}

/// A mesh in which `outsider` has a proxy, which OpenSSL is.
fn mesh_with_fake_proxy() -> String {
    MESH.replace(
        "name: outsider, namespace: outside,",
        "name: outsider, namespace: outside, protocol: HBONE,",
    )
}

fn serve(sandbox: &Sandbox, ip: IpAddr) -> OpenSsl {
    let at = hbone(ip).to_string();
    let arguments = ["s_server", "-accept", &at, "-Verify", "1"];
    let server = OpenSsl::start(sandbox, "outsider", OUTSIDER, &arguments);
    server.await_output(b"ACCEPT");
    server
}

#[test]
fn a_server_changes_its_keys_and_the_proxys() {
    if !is_installed() {
        return skip("OpenSSL 3 is not installed");
    }
    let sandbox = Sandbox::up_with("openssl-server", &mesh_with_fake_proxy());
    for ip in sandbox.ips("outsider") {
        let mut server = serve(&sandbox, ip);
        let netns = sandbox.pod("client");
        let connecting =
            std::thread::spawn(move || connect(&netns, SocketAddr::new(ip, 8080)).unwrap());
        server.await_output(&[HEADERS, END_HEADERS, 0, 0, 0, 1]);
        let settings = [frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, ACK, 0, &[])];
        let begin = [settings.concat(), accepted(1, false), data(1, b"hello\n")];
        server.send(&begin.concat());
        let mut client = connecting.join().unwrap();
        assert_eq!(read_line(&mut client).unwrap(), "hello");
        for number in 1..=UPDATES {
            server.send(b"K\n");
            let line = format!("line {number}.\n");
            client.write_all(line.as_bytes()).unwrap();
            server.await_output(line.as_bytes());
            server.send(&data(1, line.as_bytes()));
            assert_eq!(read_line(&mut client).unwrap(), line.trim_end());
        }
    }
}
