//! Every error code of Underpass, in one place: what happened, the likely cause, the next step.
//!
//! Errors elsewhere carry one of these; `docs/errors.md` is written from them, and a test keeps it complete. A code, once
//! released, never changes its meaning and is never given to something else.

#![forbid(unsafe_code)]

use std::fmt;

/// One thing that can go wrong, as users meet it.
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

/// Declares the codes of one area and lists them in `ALL`.
macro_rules! codes {
    ($( $name:ident = $code:literal { what: $what:literal, cause: $cause:literal, next_step: $next:literal $(,)? } )*) => {
        $(
            #[doc = concat!($code, ": ", $what)]
            pub const $name: $crate::ErrorCode =
                $crate::ErrorCode { code: $code, what: $what, cause: $cause, next_step: $next };
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
pub mod proxy;
pub mod redirect;
pub mod sandbox;

/// All areas with their codes, in the order of the documentation.
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
                matches!(parts[..], ["UP", area, n] if area.chars().all(|c| c.is_ascii_uppercase()) && n.len() == 3),
                "{code} is not UP-AREA-NNN"
            );
            assert!(seen.insert(code.code), "{code} is used twice");
            for text in [code.what, code.cause, code.next_step] {
                assert!(text.ends_with('.'), "{code}: {text:?} is not a sentence");
            }
        }
    }
}
