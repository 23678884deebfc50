//! The settings of one end of a connection (RFC 9113 section 6.5).

use serde::{Deserialize, Serialize};

use crate::error::Violation;

const HEADER_TABLE_SIZE: u16 = 0x1;
const ENABLE_PUSH: u16 = 0x2;
const MAX_CONCURRENT_STREAMS: u16 = 0x3;
const INITIAL_WINDOW_SIZE: u16 = 0x4;
const MAX_FRAME_SIZE: u16 = 0x5;
const MAX_HEADER_LIST_SIZE: u16 = 0x6;

/// The window of the connection and of streams before any settings, in bytes.
pub const DEFAULT_WINDOW: u32 = 65_535;
/// The largest window, in bytes.
pub const MAX_WINDOW: u32 = 0x7fff_ffff;
/// The frame size before any settings, and the smallest one, in bytes.
pub const MIN_FRAME: u32 = 16_384;
/// The largest frame size, in bytes.
pub const MAX_FRAME: u32 = (1 << 24) - 1;

/// Settings of one end, which bind the other one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Size of the dynamic table for header compression, in bytes.
    pub header_table: u32,
    /// Whether the server may push.
    pub enable_push: bool,
    /// Maximum number of streams that the other end may have open; `None` is unlimited.
    pub max_streams: Option<u32>,
    /// Initial window of streams, in bytes.
    pub initial_window: u32,
    /// Largest payload of a frame, in bytes.
    pub max_frame: u32,
    /// Maximum size of header lists, in bytes; `None` is unlimited.
    pub max_header_list: Option<u32>,
}

impl Default for Settings {
    /// The settings of an end that has not sent any.
    fn default() -> Self {
        Self {
            header_table: 4096,
            enable_push: true,
            max_streams: None,
            initial_window: DEFAULT_WINDOW,
            max_frame: MIN_FRAME,
            max_header_list: None,
        }
    }
}

impl Settings {
    /// Applies the payload of a SETTINGS frame. Unknown settings are ignored.
    ///
    /// # Errors
    /// If a value is out of range.
    pub fn apply(&mut self, payload: &[u8]) -> Result<(), Violation> {
        for entry in payload.as_chunks::<6>().0 {
            let [i0, i1, v0, v1, v2, v3] = *entry;
            let value = u32::from_be_bytes([v0, v1, v2, v3]);
            match u16::from_be_bytes([i0, i1]) {
                HEADER_TABLE_SIZE => self.header_table = value,
                ENABLE_PUSH if value <= 1 => self.enable_push = value == 1,
                MAX_CONCURRENT_STREAMS => self.max_streams = Some(value),
                INITIAL_WINDOW_SIZE if value <= MAX_WINDOW => self.initial_window = value,
                INITIAL_WINDOW_SIZE => return Err(Violation::SettingOverflowsWindow),
                MAX_FRAME_SIZE if (MIN_FRAME..=MAX_FRAME).contains(&value) => {
                    self.max_frame = value;
                }
                MAX_HEADER_LIST_SIZE => self.max_header_list = Some(value),
                ENABLE_PUSH | MAX_FRAME_SIZE => return Err(Violation::InvalidSetting),
                _ => {}
            }
        }
        Ok(())
    }

    /// Encodes the payload of a SETTINGS frame. `enable_push` is only for clients to send.
    pub fn encode(&self, is_client: bool) -> Vec<u8> {
        let settings = [
            (HEADER_TABLE_SIZE, Some(self.header_table)),
            (ENABLE_PUSH, is_client.then(|| self.enable_push.into())),
            (MAX_CONCURRENT_STREAMS, self.max_streams),
            (INITIAL_WINDOW_SIZE, Some(self.initial_window)),
            (MAX_FRAME_SIZE, Some(self.max_frame)),
            (MAX_HEADER_LIST_SIZE, self.max_header_list),
        ];
        let mut payload = Vec::with_capacity(6 * settings.len());
        for (identifier, value) in settings {
            if let Some(value) = value {
                payload.extend_from_slice(&identifier.to_be_bytes());
                payload.extend_from_slice(&value.to_be_bytes());
            }
        }
        payload
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn apply(identifier: u16, value: u32) -> Result<Settings, Violation> {
        let mut payload = identifier.to_be_bytes().to_vec();
        payload.extend(value.to_be_bytes());
        let mut settings = Settings::default();
        settings.apply(&payload).map(|()| settings)
    }

    #[test]
    fn values_out_of_range_are_rejected() {
        for (identifier, value, violation) in [
            (ENABLE_PUSH, 2, Violation::InvalidSetting),
            (
                INITIAL_WINDOW_SIZE,
                1 << 31,
                Violation::SettingOverflowsWindow,
            ),
            (MAX_FRAME_SIZE, MIN_FRAME - 1, Violation::InvalidSetting),
            (MAX_FRAME_SIZE, MAX_FRAME + 1, Violation::InvalidSetting),
        ] {
            assert_eq!(apply(identifier, value), Err(violation));
        }
        assert_eq!(
            violation_code(INITIAL_WINDOW_SIZE, u32::MAX),
            "FLOW_CONTROL_ERROR"
        );
    }

    fn violation_code(identifier: u16, value: u32) -> String {
        apply(identifier, value).unwrap_err().code().to_string()
    }

    #[test]
    fn unknown_settings_are_ignored() {
        assert_eq!(apply(0x8, 1), Ok(Settings::default()));
        assert_eq!(apply(0xfff0, u32::MAX), Ok(Settings::default()));
    }

    proptest! {
        #[test]
        fn encoded_settings_are_applied(
            header_table in any::<u32>(),
            enable_push in any::<bool>(),
            max_streams in any::<u32>(),
            initial_window in 0..=MAX_WINDOW,
            max_frame in MIN_FRAME..=MAX_FRAME,
            max_header_list in any::<u32>(),
        ) {
            let settings = Settings {
                header_table,
                enable_push,
                max_streams: Some(max_streams),
                initial_window,
                max_frame,
                max_header_list: Some(max_header_list),
            };
            let mut applied = Settings::default();
            applied.apply(&settings.encode(true)).unwrap();
            prop_assert_eq!(applied, settings);
        }
    }
}
