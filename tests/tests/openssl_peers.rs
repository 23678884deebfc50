//! Tunnels whose other end is OpenSSL, which changes its keys again and again and requests that the
//! proxy does as well. The test plays HTTP/2 through its standard input and output.
#![allow(clippy::unwrap_used, clippy::disallowed_types)] // OpenSSL is the oracle here

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use underpass_tests::fake_waypoint::hbone;
use underpass_tests::http2_frames::{
    ACK, END_HEADERS, HEADERS, PREFACE, SETTINGS, connect_block, frame,
};
use underpass_tests::peer_program::{PeerProgram, PemFiles};
use underpass_tests::raw_tunnel::{accepted, data};
use underpass_tests::sandbox::{MESH, Sandbox, connect, read_line, serve_echo, until};
use underpass_tests::skip::skip;

const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";
const OUTSIDER: &str = "spiffe://cluster.local/ns/outside/sa/outsider";
/// How often keys change.
const UPDATES: usize = 20;

/// Starts OpenSSL's client or server.
fn start(sandbox: &Sandbox, identity: &str, arguments: &[&str]) -> PeerProgram {
    let files = PemFiles::of(sandbox, identity);
    let mut command = Command::new("openssl");
    command.args(arguments).args(["-tls1_3", "-alpn", "h2"]);
    command.arg("-cert").arg(files.certificate);
    command.arg("-key").arg(files.key);
    command.arg("-CAfile").arg(files.root);
    PeerProgram::start(sandbox, "outsider", command)
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
        let mut client = start(&sandbox, CLIENT, &arguments);
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

fn serve(sandbox: &Sandbox, ip: IpAddr) -> PeerProgram {
    let at = hbone(ip).to_string();
    let arguments = ["s_server", "-accept", &at, "-Verify", "1"];
    let server = start(sandbox, OUTSIDER, &arguments);
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
