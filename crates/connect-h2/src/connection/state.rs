//! A connection as a value.

use serde::{Deserialize, Serialize};

use super::core::Core;

/// The version of the format. It changes with every field.
const VERSION: u16 = 1;

/// The whole state of a connection. It is not copied: only one process may continue with it.
#[derive(Debug, Serialize, Deserialize)]
pub struct H2State {
    version: u16,
    core: Core,
}

/// The state has another version than this software's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the state of a connection has version {0}; expected {VERSION}")]
pub struct UnknownVersion(u16);

impl H2State {
    pub(super) fn new(core: Core) -> Self {
        Self {
            version: VERSION,
            core,
        }
    }

    pub(super) fn into_core(self) -> Result<Core, UnknownVersion> {
        match self.version {
            VERSION => Ok(self.core),
            other => Err(UnknownVersion(other)),
        }
    }
}
