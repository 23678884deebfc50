//! An application for clusters: it answers HTTP, and asks. It is the container of pods in tests, and needs nothing but itself.
//!
//! ```text
//! underpass-app pause              waits to be ended
//! underpass-app serve PORT         answers every request with its pod's name and who asks
//! underpass-app get HOST:PORT…     asks each once; prints the answers. Exit code 1 when one does not answer
//! underpass-app hold HOST:PORT     asks over and over on one connection, ten times a second, until its input ends; prints each answer
//! underpass-app knock HOST:PORT    the same with a new connection each time, as often as it can
//! ```

#![allow(clippy::unwrap_used)] // an application that cannot go on ends

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{SigSet, Signal};

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["pause"] => wait_for_the_end(),
        ["serve", port] => {
            let port: u16 = port.parse().unwrap();
            std::thread::spawn(move || serve(port));
            wait_for_the_end()
        }
        ["get", ref destinations @ ..] => {
            let answered = destinations.iter().filter(|to| told(to, get(to))).count();
            ExitCode::from(u8::from(answered < destinations.len()))
        }
        ["hold", to] => ends(to, hold),
        ["knock", to] => ends(to, knock),
        _ => panic!("pause, serve PORT, get HOST:PORT…, hold HOST:PORT or knock HOST:PORT"),
    }
}

/// The first process of a container takes no signal that it has not asked for, and has children of others to bury.
fn wait_for_the_end() -> ExitCode {
    let wanted: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD].into_iter().collect();
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
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
    }
    Ok(())
}

fn get(to: &str) -> io::Result<String> {
    ask(&mut connect(to)?)
}

/// Does something that has no end but an error.
fn ends(to: &str, work: impl FnOnce(&str) -> io::Result<()>) -> ExitCode {
    // Whoever asked for it may be gone without a word: then its input ends.
    std::thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(0)
    });
    ExitCode::from(u8::from(!told(to, work(to).map(|()| "closed".to_owned()))))
}

fn knock(to: &str) -> io::Result<()> {
    loop {
        told(to, Ok(get(to)?));
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn hold(to: &str) -> io::Result<()> {
    let mut stream = connect(to)?;
    loop {
        told(to, Ok(ask(&mut stream)?));
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn connect(to: &str) -> io::Result<TcpStream> {
    let to: SocketAddr = to.to_socket_addrs()?.next().ok_or(io::ErrorKind::AddrNotAvailable)?;
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// One request, and the body of its answer.
fn ask(stream: &mut TcpStream) -> io::Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: app\r\n\r\n")?;
    let mut answers = BufReader::new(stream);
    let header = header(&mut answers)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let length = header.iter().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or_default()];
    answers.read_exact(&mut body)?;
    Ok(String::from_utf8_lossy(&body).trim_end().to_owned())
}

/// The lines before the body; `None` at the end.
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

/// Prints what came of a question, with the time, and says whether it was answered.
fn told(to: &str, outcome: io::Result<String>) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    match &outcome {
        Ok(answer) => println!("{now} {to}: {answer}"),
        Err(why) => println!("{now} {to}: failed: {why}"),
    }
    outcome.is_ok()
}
