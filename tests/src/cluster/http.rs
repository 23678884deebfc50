//! One HTTP request on a connection of its own. It says HTTP/1.0, so the answer ends where the connection does.

use std::io::{self, Read, Write};

/// An answer: its status, and its body.
pub type Answer = (u16, String);

/// Sends a request and reads the answer. `headers` are whole lines.
///
/// # Errors
/// Those of the connection, and `InvalidData` for what is no answer.
pub fn exchange(stream: &mut (impl Read + Write), request: &str, headers: &[String], body: &str) -> io::Result<Answer> {
    let lines: String = headers.iter().map(|h| format!("{h}\r\n")).collect();
    let length = body.len();
    write!(stream, "{request} HTTP/1.0\r\nContent-Length: {length}\r\n{lines}\r\n{body}")?;
    stream.flush()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let parts = answer.split_once("\r\n\r\n").and_then(|(head, body)| {
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    });
    parts.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no answer to {request}: {answer}")))
}
