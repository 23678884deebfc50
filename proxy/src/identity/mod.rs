//! Who our pods are, and who the peers are: certificates, and their verification.

mod credentials;
mod local_ca;
mod verify;

pub(crate) use credentials::{Credentials, CredentialsError};
pub(crate) use local_ca::LocalCa;
pub(crate) use verify::{explain, peer_identity};
