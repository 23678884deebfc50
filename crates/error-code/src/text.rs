//! Splits doc comments into the texts that users see, at compile time.

/// The text before and after `label`, without surrounding spaces. Without the label, the build
/// fails.
pub(crate) const fn split(text: &'static str, label: &str) -> (&'static str, &'static str) {
    let mut at = 0;
    while at + label.len() <= text.len() {
        if starts_with(text.as_bytes().split_at(at).1, label.as_bytes()) {
            let (before, rest) = text.split_at(at);
            return (
                before.trim_ascii(),
                rest.split_at(label.len()).1.trim_ascii(),
            );
        }
        at += 1;
    }
    panic!("a doc comment lacks its cause or next step")
}

const fn starts_with(text: &[u8], start: &[u8]) -> bool {
    let mut at = 0;
    while at < start.len() && text[at] == start[at] {
        at += 1;
    }
    at == start.len()
}
