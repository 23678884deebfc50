//! Text from pods, peers and other programs as a terminal or a log can show it. Without escaping, a
//! name could move the cursor, change colours, hide text or add lines that look like others.

use std::borrow::Cow;
use std::fmt::Write;

/// Escapes everything that is not part of a single line of text, such as `\u001b` for an escape
/// character. The escapes are those of JSON, so JSON text stays valid.
pub fn line(text: &str) -> Cow<'_, str> {
    escape(text, |c| !is_control(c))
}

/// Escapes like [`line()`], but keeps line feeds and tabs.
pub fn lines(text: &str) -> Cow<'_, str> {
    escape(text, |c| matches!(c, '\n' | '\t') || !is_control(c))
}

/// Whether a character controls a terminal or the direction of text (UAX #9) instead of being
/// shown.
fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}')
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escape(text: &str, is_kept: impl Fn(char) -> bool) -> Cow<'_, str> {
    if text.chars().all(&is_kept) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_kept(c) {
            escaped.push(c);
        } else {
            // Writing to a string does not fail.
            let _ = match c {
                '\n' => escaped.write_str("\\n"),
                '\t' => escaped.write_str("\\t"),
                '\r' => escaped.write_str("\\r"),
                _ => write!(escaped, "\\u{:04x}", u32::from(c)),
            };
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_controls_a_terminal_is_escaped_and_text_is_kept() {
        for (text, expected) in [
            ("web-0 ä 名前 🦀", "web-0 ä 名前 🦀"),
            ("\u{1b}[2Jgone", "\\u001b[2Jgone"),
            ("\u{9b}31m\u{7f}", "\\u009b31m\\u007f"),
            ("a\nb\tc\r", "a\\nb\\tc\\r"),
            ("\u{202e}live", "\\u202elive"),
        ] {
            assert_eq!(line(text), expected);
        }
        assert_eq!(lines("a\nb\tc\r"), "a\nb\tc\\r");
        assert!(matches!(line("plain"), Cow::Borrowed(_)));
    }
}
