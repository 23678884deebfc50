//! The Helm chart, rendered by the real helm.
#![allow(clippy::unwrap_used, clippy::disallowed_types)]

mod helm;
mod manifests;
mod operations;
mod platforms;
mod rights;
mod upgrades;
mod values;
