//! A static HTTP server and client: the container image of pods in tests.
//!
//! ```text
//! underpass-app pause                waits for SIGTERM
//! underpass-app serve PORT           answers every request with the pod's name and the client's
//!                                    address
//! underpass-app get HOST:PORT…       requests each once and prints the answers; exit code 1 if one
//!                                    fails
//! underpass-app repeat HOST:PORT     sends ten requests a second on one connection until end of
//!                                    input, and prints the answers
//! underpass-app reconnect HOST:PORT  the same with a new connection each time, as fast as possible
//! ```

#![allow(clippy::unwrap_used)] // a failure ends the application

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{SigSet, Signal};

/// Timeout of one request.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["pause"] => wait_for_signal(),
        ["serve", port] => {
            let port: u16 = port.parse().unwrap();
            std::thread::spawn(move || serve(port));
            wait_for_signal()
        }
        ["get", ref destinations @ ..] => {
            let answered = destinations.iter().filter(|to| report(to, get(to))).count();
            ExitCode::from(u8::from(answered < destinations.len()))
        }
        ["repeat", to] => run_until_error(to, repeat),
        ["reconnect", to] => run_until_error(to, reconnect),
        _ => panic!(
            "usage: pause, serve PORT, get HOST:PORT…, repeat HOST:PORT or reconnect HOST:PORT"
        ),
    }
}

/// Waits for SIGTERM or SIGINT. As PID 1 of a container this process must handle signals itself,
/// and reap orphans.
fn wait_for_signal() -> ExitCode {
    let wanted: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD]
        .into_iter()
        .collect();
    wanted.thread_block().unwrap();
    while wanted.wait().unwrap() == Signal::SIGCHLD {
        let any = nix::unistd::Pid::from_raw(-1);
        while nix::sys::wait::waitpid(any, Some(nix::sys::wait::WaitPidFlag::WNOHANG))
            .is_ok_and(|s| s != nix::sys::wait::WaitStatus::StillAlive)
        {}
    }
    std::process::exit(0)
}

fn serve(port: u16) {
    let listener = TcpListener::bind(("::", port)).unwrap();
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || answer(stream));
    }
}

/// Answers requests until the peer closes.
fn answer(mut stream: TcpStream) -> io::Result<()> {
    let pod = std::env::var("HOSTNAME").unwrap_or_default();
    let mut requests = BufReader::new(stream.try_clone()?);
    while header(&mut requests)?.is_some() {
        let body = format!("{pod} sees {}\n", stream.peer_addr()?.ip().to_canonical());
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
    }
    Ok(())
}

fn get(to: &str) -> io::Result<String> {
    request(&mut connect(to)?)
}

/// Runs until an error occurs or the input ends.
fn run_until_error(to: &str, work: impl FnOnce(&str) -> io::Result<()>) -> ExitCode {
    // The input ends when the process that started this one is gone.
    std::thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(0)
    });
    ExitCode::from(u8::from(!report(
        to,
        work(to).map(|()| "closed".to_owned()),
    )))
}

fn reconnect(to: &str) -> io::Result<()> {
    loop {
        report(to, Ok(get(to)?));
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn repeat(to: &str) -> io::Result<()> {
    let mut stream = connect(to)?;
    loop {
        report(to, Ok(request(&mut stream)?));
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn connect(to: &str) -> io::Result<TcpStream> {
    let to: SocketAddr = to
        .to_socket_addrs()?
        .next()
        .ok_or(io::ErrorKind::AddrNotAvailable)?;
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends one request and returns the body of the answer.
fn request(stream: &mut TcpStream) -> io::Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: app\r\n\r\n")?;
    let mut answers = BufReader::new(stream);
    let header = header(&mut answers)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let length = header.iter().find_map(|line| {
        line.to_lowercase()
            .strip_prefix("content-length: ")?
            .parse()
            .ok()
    });
    let mut body = vec![0; length.unwrap_or_default()];
    answers.read_exact(&mut body)?;
    Ok(String::from_utf8_lossy(&body).trim_end().to_owned())
}

/// Reads the lines before the body; `None` at the end of the connection.
fn header(from: &mut impl BufRead) -> io::Result<Option<Vec<String>>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        match line.trim_end() {
            "" => return Ok(Some(lines)),
            line => lines.push(line.to_owned()),
        }
    }
}

/// Prints the outcome of a request, with the time; returns whether it succeeded.
fn report(to: &str, outcome: io::Result<String>) -> bool {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_millis();
    match &outcome {
        Ok(answer) => println!("{now} {to}: {answer}"),
        Err(why) => println!("{now} {to}: failed: {why}"),
    }
    outcome.is_ok()
}
