//! Tunnels whose other end is a program of nghttp2, or curl: each in the roles that it can play.
//! nghttp cannot send and nghttpd cannot serve a CONNECT request, which tests show.
#![allow(clippy::unwrap_used, clippy::disallowed_types)] // the programs are the oracle here

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use netns::NetNs;
use underpass_tests::binaries::peer_files;
use underpass_tests::fake_waypoint::hbone;
use underpass_tests::peer_program::{PeerProgram, PemFiles};
use underpass_tests::sandbox::{MESH, Sandbox, connect, listen, read_line, serve_echo, until};
use underpass_tests::skip::skip;

const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";
const OUTSIDER: &str = "spiffe://cluster.local/ns/outside/sa/outsider";
/// More than a stream's window and what both ends buffer.
const BULK: usize = 2 << 20;
/// Where nghttpx accepts requests of HTTP/1.1, and where it sends them.
const PLAIN_PORT: u16 = 3128;

/// A mesh in which `outsider` has a proxy, which is the program.
fn mesh_with_fake_proxy() -> String {
    MESH.replace(
        "name: outsider, namespace: outside,",
        "name: outsider, namespace: outside, protocol: HBONE,",
    )
}

/// Bytes that differ everywhere.
fn bulk() -> Vec<u8> {
    (0..BULK).map(|at| (at ^ (at >> 8)) as u8).collect()
}

/// Programs that scripts/lib/peers has put into the target folder; if one is missing, the test is
/// reported as skipped.
fn programs<const N: usize>(names: [&str; N]) -> Option<[PathBuf; N]> {
    peer_files(names).inspect_err(|reason| skip(reason)).ok()
}

/// Runs a program to its end in a pod outside the mesh.
fn output(sandbox: &Sandbox, mut command: Command) -> Output {
    netns::process::in_netns(&mut command, &sandbox.pod("outsider")).unwrap();
    netns::process::die_with_parent(&mut command);
    command.stdin(Stdio::null()).output().unwrap()
}

// ---- curl

/// Runs curl, which can speak HTTP/2 to a proxy: that of scripts/lib/peers, or this machine's.
fn curl() -> Command {
    let program = peer_files(["curl/curl"]).map_or("curl".into(), |[fetched]| fetched);
    let mut command = Command::new(&program);
    command.env("LD_LIBRARY_PATH", program.parent().unwrap());
    command.args(["--disable", "--silent", "--show-error", "--proxy-http2"]);
    command
}

fn can_speak_http2_to_a_proxy(mut curl: Command) -> bool {
    let version = curl.arg("--version").output();
    let features = version.map(|v| String::from_utf8(v.stdout).unwrap());
    features.is_ok_and(|features| features.contains("HTTP2"))
}

/// Serves HTTP/1.1 in a pod: answers what a request contained, or the bulk.
fn serve_http(netns: &NetNs, port: u16) {
    let listener = listen(netns, port);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve_request(stream));
        }
    });
}

fn serve_request(stream: TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (head, length) = read_head(&mut reader)?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    if head.starts_with("GET") {
        body = bulk();
    }
    let mut writer = stream;
    write!(writer, "HTTP/1.1 200 OK\r\nConnection: close\r\n")?;
    write!(writer, "Content-Length: {}\r\n\r\n", body.len())?;
    writer.write_all(&body)?;
    writer.shutdown(Shutdown::Write)
}

/// Reads the head of a request: its first line, and how long the body is.
fn read_head(reader: &mut impl BufRead) -> io::Result<(String, usize)> {
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            return Ok((first, length));
        }
        let line = line.to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
}

/// A request by curl through the tunnel of a pod's proxy.
fn request(files: &PemFiles, ip: IpAddr, port: u16, more: &[&str]) -> Command {
    let mut command = curl();
    command.arg("--proxytunnel");
    command.args(["--proxy", &format!("https://{}", hbone(ip))]);
    command.arg("--proxy-cert").arg(&files.certificate);
    command.arg("--proxy-key").arg(&files.key);
    // A certificate of the mesh has no host name.
    command.arg("--proxy-insecure");
    command.args(more);
    command.arg(format!("http://{}/", SocketAddr::new(ip, port)));
    command
}

#[test]
fn curl_uses_a_pods_proxy_as_its_http2_proxy() {
    if !can_speak_http2_to_a_proxy(curl()) {
        return skip("curl cannot speak HTTP/2 to a proxy (run scripts/lib/peers)");
    }
    let sandbox = Sandbox::up("curl-client");
    serve_http(&sandbox.pod("server"), 8080);
    let files = PemFiles::of(&sandbox, CLIENT);
    let upload = sandbox.folder().join("upload");
    std::fs::write(&upload, bulk()).unwrap();
    for ip in sandbox.ips("server") {
        let run = |port, more: &[&str]| output(&sandbox, request(&files, ip, port, more));
        let upload = format!("@{}", upload.display());
        for arguments in [&[][..], &["-H", "Expect:", "--data-binary", &upload]] {
            let got = run(8080, arguments);
            let errors = String::from_utf8_lossy(&got.stderr);
            assert!(got.status.success(), "{ip} {arguments:?}: {errors}");
            assert!(got.stdout == bulk(), "{ip}: {} bytes", got.stdout.len());
        }
        // Nothing listens: 503, which curl reports as a failure to receive.
        assert_eq!(run(8081, &[]).status.code(), Some(56), "{ip}");
        let refused = SocketAddr::new(ip, 8081).to_string();
        let line = sandbox.access_line("node-2", &[CLIENT, &refused, "error="]);
        assert!(line.contains("direction=\"inbound\""), "{line}");
    }
}

// ---- nghttpx

fn nghttpx(program: &Path, files: &PemFiles) -> Command {
    let mut command = Command::new(program);
    command.args(["--conf=/dev/null", "--single-process", "--http2-proxy"]);
    command.args(["--no-ocsp", "--accesslog-file=/dev/null"]);
    command.arg("--errorlog-file=/dev/stderr");
    command.arg(&files.key).arg(&files.certificate);
    command
}

/// The address as nghttpx expects it.
fn address(at: SocketAddr) -> String {
    format!("{},{}", at.ip(), at.port())
}

#[test]
fn nghttpx_connects_through_a_pods_proxy() {
    let Some([program]) = programs(["bin/nghttpx"]) else {
        return;
    };
    let sandbox = Sandbox::up("nghttpx-client");
    serve_echo(&sandbox.pod("server"), 8080);
    let files = PemFiles::of(&sandbox, CLIENT);
    let outsider = sandbox.pod("outsider");
    for (ip, at) in sandbox.ips("server").into_iter().zip([0, 1]) {
        let frontend = SocketAddr::new([127, 0, 0, 1].into(), PLAIN_PORT + at);
        let mut command = nghttpx(&program, &files);
        command.arg(format!("--frontend={};no-tls", address(frontend)));
        let backend = address(hbone(ip));
        command.arg(format!("--backend={backend};;tls;proto=h2"));
        command.arg("--client-cert-file").arg(&files.certificate);
        command.arg("--client-private-key-file").arg(&files.key);
        command.arg("--insecure"); // A certificate of the mesh has no host name.
        let _nghttpx = PeerProgram::start(&sandbox, "outsider", command);
        // Several share a connection of nghttpx, each in both directions at once.
        let echoes: Vec<_> = (0..4)
            .map(|_| {
                let mut stream = until("nghttpx listens", || connect(&outsider, frontend).ok());
                let to = SocketAddr::new(ip, 8080);
                write!(stream, "CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").unwrap();
                std::thread::spawn(move || {
                    let mut answer = BufReader::new(stream.try_clone().unwrap());
                    let (status, _) = read_head(&mut answer).unwrap();
                    assert!(status.starts_with("HTTP/1.1 200"), "{status}");
                    let mut client = String::new();
                    answer.read_line(&mut client).unwrap();
                    echo(stream, answer);
                })
            })
            .collect();
        for echo in echoes {
            echo.join().unwrap();
        }
    }
}

/// Sends the bulk, and receives it again.
fn echo(mut to: TcpStream, mut from: impl Read) {
    let sender = std::thread::spawn(move || to.write_all(&bulk()).unwrap());
    let mut received = vec![0; BULK];
    from.read_exact(&mut received).unwrap();
    assert!(received == bulk(), "the bytes differ");
    sender.join().unwrap();
}

/// The proxy behind nghttpx, which speaks HTTP/1.1: answers requests for tunnels, sends the
/// requested authority on a line, then echoes all data.
fn serve_connect(netns: &NetNs, port: u16) {
    let listener = listen(netns, port);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone()?);
                let (request, _) = read_head(&mut reader)?;
                let authority = request.split(' ').nth(1).unwrap();
                write!(stream, "HTTP/1.1 200 OK\r\n\r\n{authority}\n")?;
                io::copy(&mut reader, &mut stream)?;
                stream.shutdown(Shutdown::Write)
            });
        }
    });
}

#[test]
fn nghttpx_is_a_pods_proxy() {
    let Some([program]) = programs(["bin/nghttpx"]) else {
        return;
    };
    let sandbox = Sandbox::up_with("nghttpx-server", &mesh_with_fake_proxy());
    let files = PemFiles::of(&sandbox, OUTSIDER);
    serve_connect(&sandbox.pod("outsider"), PLAIN_PORT);
    for ip in sandbox.ips("outsider") {
        let mut command = nghttpx(&program, &files);
        command.arg(format!("--frontend={}", address(hbone(ip))));
        command.arg(format!("--backend=127.0.0.1,{PLAIN_PORT}"));
        command.arg("--verify-client");
        command.arg("--verify-client-cacert").arg(&files.root);
        let _nghttpx = PeerProgram::start(&sandbox, "outsider", command);
        await_listener(&sandbox, hbone(ip));
        let (netns, to) = (sandbox.pod("client"), SocketAddr::new(ip, 8080));
        let echoes: Vec<_> = (0..4)
            .map(|_| {
                let mut stream = connect(&netns, to).unwrap();
                std::thread::spawn(move || {
                    assert_eq!(read_line(&mut stream).unwrap(), to.to_string());
                    echo(stream.try_clone().unwrap(), stream);
                })
            })
            .collect();
        for echo in echoes {
            echo.join().unwrap();
        }
    }
}

/// Waits until a program accepts connections at an address of `outsider`.
fn await_listener(sandbox: &Sandbox, at: SocketAddr) {
    let netns = sandbox.pod("outsider");
    until("the program listens", || connect(&netns, at).ok());
}

// ---- nghttp, h2load and nghttpd: not CONNECT

fn with_certificate(program: &Path, files: &PemFiles) -> Command {
    let mut command = Command::new(program);
    command.arg("--cert").arg(&files.certificate);
    command.arg("--key").arg(&files.key);
    command
}

#[test]
fn requests_of_nghttp_that_are_no_connect_are_refused() {
    let Some([program]) = programs(["bin/nghttp"]) else {
        return;
    };
    let sandbox = Sandbox::up("nghttp-client");
    serve_echo(&sandbox.pod("server"), 8080);
    let files = PemFiles::of(&sandbox, CLIENT);
    for ip in sandbox.ips("server") {
        let url = format!("https://{}/", hbone(ip));
        for (method, answer) in [
            ("GET", ":status: 400"),
            ("POST", ":status: 400"),
            // With a scheme and a path, which RFC 9113 section 8.5 forbids.
            ("CONNECT", "error_code=PROTOCOL_ERROR"),
        ] {
            let mut command = with_certificate(&program, &files);
            command.args(["--verbose", "--no-verify-peer", "-H"]);
            command.arg(format!(":method: {method}")).arg(&url);
            let printed = String::from_utf8(output(&sandbox, command).stdout).unwrap();
            assert!(printed.contains(answer), "{method}: {printed}");
        }
    }
}

/// nghttpd serves files; it is what a port of a pod without a proxy may be.
#[test]
fn a_server_that_is_no_proxy_refuses_connections_with_a_reason() {
    let Some([program]) = programs(["bin/nghttpd"]) else {
        return;
    };
    let sandbox = Sandbox::up_with("nghttpd-server", &mesh_with_fake_proxy());
    let files = PemFiles::of(&sandbox, OUTSIDER);
    for ip in sandbox.ips("outsider") {
        let at = hbone(ip);
        let mut command = Command::new(&program);
        command.arg("--verify-client").arg("--address");
        command.arg(at.ip().to_string()).arg("--htdocs").arg("/dev");
        command.arg(at.port().to_string());
        command.arg(&files.key).arg(&files.certificate);
        let _nghttpd = PeerProgram::start(&sandbox, "outsider", command);
        await_listener(&sandbox, at);
        let mut stream = connect(&sandbox.pod("client"), SocketAddr::new(ip, 8080)).unwrap();
        let end = stream.read(&mut [0]).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::ConnectionReset, "{ip}");
        let line = sandbox.access_line("node-1", &[&at.to_string(), "error="]);
        assert!(line.contains("direction=\"outbound\""), "{line}");
    }
}
