//! One HTTP/1.0 request per connection, so that the response ends with the connection.

use std::io::{self, Read, Write};

/// The status and the body of a response.
pub type Response = (u16, String);

/// Sends a request and reads the response. `headers` are whole lines.
///
/// # Errors
/// Errors of the connection, and `InvalidData` for an invalid response.
pub fn exchange(
    stream: &mut (impl Read + Write),
    request: &str,
    headers: &[String],
    body: &str,
) -> io::Result<Response> {
    let lines: String = headers.iter().map(|h| format!("{h}\r\n")).collect();
    let length = body.len();
    write!(
        stream,
        "{request} HTTP/1.0\r\nContent-Length: {length}\r\n{lines}\r\n{body}"
    )?;
    stream.flush()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let parts = answer.split_once("\r\n\r\n").and_then(|(head, body)| {
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    });
    parts.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("invalid response to {request}: {answer}"),
        )
    })
}
