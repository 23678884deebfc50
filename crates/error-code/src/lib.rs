//! Every error code of Underpass, in one place: what happened, the likely cause, the next step.
//!
//! The doc comment of a code is its text: users see it, and `docs/errors.md` is generated from it
//! (a test keeps it up to date). A released code never changes its meaning and is never reused.

#![forbid(unsafe_code)]

use std::fmt;

/// A failure as users see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorCode {
    /// `UP-AREA-NNN`, stable across releases.
    pub code: &'static str,
    /// What happened, in one sentence.
    pub what: &'static str,
    /// The most likely cause.
    pub cause: &'static str,
    /// What to do next.
    pub next_step: &'static str,
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code)
    }
}

/// Declares the codes of one area and lists them in `ALL`. The doc comment of a code is its text:
/// what happened, then the paragraphs "Cause:" and "Next step:", on as many lines as needed.
macro_rules! codes {
    ($( $(#[doc = $text:literal])+ $name:ident = $code:literal; )*) => {
        $(
            #[doc = concat!($code, ":")]
            $(#[doc = $text])+
            pub const $name: $crate::ErrorCode = {
                let (what, rest) = $crate::text::split(concat!($($text),+), " Cause: ");
                let (cause, next_step) = $crate::text::split(rest, " Next step: ");
                $crate::ErrorCode { code: $code, what, cause, next_step }
            };
        )*
        /// The codes of this area, in order.
        pub const ALL: &[$crate::ErrorCode] = &[$( $name ),*];
    };
}

pub mod agent;
pub mod check;
pub mod cli;
pub mod cni;
pub mod control;
pub mod mesh;
pub mod printable;
pub mod proxy;
pub mod redirect;
pub mod sandbox;
mod text;

/// All areas with their codes, in the order used by the documentation.
pub const AREAS: &[(&str, &[ErrorCode])] = &[
    ("CNI plugin", cni::ALL),
    ("Redirection", redirect::ALL),
    ("Node agent", agent::ALL),
    ("Proxy", proxy::ALL),
    ("Control plane", control::ALL),
    ("Mesh file", mesh::ALL),
    ("Sandbox", sandbox::ALL),
    ("Command line", cli::ALL),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_well_formed() {
        let mut seen = std::collections::BTreeSet::new();
        for code in AREAS.iter().flat_map(|(_, codes)| codes.iter()) {
            let parts: Vec<&str> = code.code.split('-').collect();
            assert!(
                matches!(
                    parts[..],
                    ["UP", area, n]
                        if area.chars().all(|c| c.is_ascii_uppercase()) && n.len() == 3
                ),
                "{code} is not UP-AREA-NNN"
            );
            assert!(seen.insert(code.code), "{code} is used twice");
            for text in [code.what, code.cause, code.next_step] {
                assert!(text.ends_with('.'), "{code}: {text:?} is not a sentence");
            }
        }
    }
}
