//! The parts of tonic that callers of this crate need. No other crate depends on tonic.

pub use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};
pub use tonic::{Code, Request, Status};
