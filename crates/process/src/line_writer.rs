//! Log lines without control characters.

use std::io::{self, Write};

use error_code::printable;

/// A writer of log lines, each by one call and with a line feed at its end. Everything else that
/// could control a terminal is escaped.
#[derive(Debug)]
pub struct LineWriter<W>(pub W);

impl<W: Write> Write for LineWriter<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let (body, end) = match text.strip_suffix('\n') {
            Some(body) => (body, "\n"),
            None => (&*text, ""),
        };
        let escaped = format!("{}{end}", printable::line(body));
        self.0.write_all(escaped.as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_one_line() {
        let mut writer = LineWriter(Vec::new());
        writer.write_all(b"pod a\nINFO fake\x1b[2J\xff\n").unwrap();
        let written = String::from_utf8(writer.0).unwrap();
        assert_eq!(written, "pod a\\nINFO fake\\u001b[2J\u{fffd}\n");
    }
}
