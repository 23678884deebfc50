//! The Helm chart: what it makes of its values, by the real helm.
#![allow(clippy::unwrap_used, clippy::disallowed_types)]

mod helm;
mod manifests;
mod rights;
mod values;
