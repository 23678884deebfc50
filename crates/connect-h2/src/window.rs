//! Flow-control windows (RFC 9113 section 5.2), of a stream or of the connection.

use serde::{Deserialize, Serialize};

use crate::settings::MAX_WINDOW;

/// A window is larger than 2^31 - 1.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Overflow;

/// The peer sent more than its window allowed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Exceeded;

/// What may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SendWindow(i64);

impl SendWindow {
    pub(crate) fn new(bytes: u32) -> Self {
        Self(bytes.into())
    }

    /// Changes the window: by WINDOW_UPDATE, or by a change of the initial window, after which it
    /// may be negative.
    pub(crate) fn adjust(&mut self, bytes: i64) -> Result<(), Overflow> {
        let window = self.0 + bytes;
        if window > MAX_WINDOW.into() {
            return Err(Overflow);
        }
        self.0 = window;
        Ok(())
    }

    pub(crate) fn available(self) -> u32 {
        self.0.clamp(0, MAX_WINDOW.into()) as u32
    }

    /// Subtracts what is sent, which must be available.
    pub(crate) fn consume(&mut self, bytes: u32) {
        self.0 -= i64::from(bytes);
    }
}

/// What may be received. The peer is granted new bytes when the application has taken old ones, so
/// never more than the window's size is unread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReceiveWindow {
    /// The intended size.
    size: i64,
    /// What the peer may still send.
    available: i64,
    /// What was received and not taken by the application.
    unread: i64,
}

impl ReceiveWindow {
    /// A window of `size` bytes, of which the peer may already send `available`, or more.
    pub(crate) fn new(size: u32, available: u32) -> Self {
        Self {
            size: size.into(),
            available: available.into(),
            unread: 0,
        }
    }

    pub(crate) fn size(&self) -> i64 {
        self.size
    }

    pub(crate) fn unread(&self) -> i64 {
        self.unread
    }

    /// Changes the intended size.
    pub(crate) fn resize(&mut self, bytes: i64) {
        self.size += bytes;
    }

    /// Changes what the peer may send, because it has applied another initial window.
    pub(crate) fn adjust(&mut self, bytes: i64) {
        self.available += bytes;
    }

    /// Counts received bytes: those that the application will take, unless they are discarded.
    pub(crate) fn receive(&mut self, bytes: u32, is_discarded: bool) -> Result<(), Exceeded> {
        let bytes = i64::from(bytes);
        if bytes > self.available {
            return Err(Exceeded);
        }
        self.available -= bytes;
        if !is_discarded {
            self.unread += bytes;
        }
        Ok(())
    }

    /// Counts bytes as taken by the application, at most those that are unread; returns how many.
    pub(crate) fn take(&mut self, bytes: i64) -> i64 {
        let taken = bytes.min(self.unread);
        self.unread -= taken;
        taken
    }

    /// What the peer could be granted now.
    fn free(&self) -> i64 {
        self.size - self.available - self.unread
    }

    /// Whether the peer should be granted more: when that at least doubles what it may send, and
    /// is at least a `share`th of the size.
    pub(crate) fn is_due(&self, share: i64) -> bool {
        let free = self.free();
        free > 0 && free >= self.available && free >= self.size / share
    }

    /// Grants everything that is free, at least 1 byte; returns how much.
    pub(crate) fn grant(&mut self) -> u32 {
        let free = self.free();
        self.available += free;
        free as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_send_window_may_be_negative_but_not_too_large() {
        let mut window = SendWindow::new(10);
        window.consume(8);
        assert_eq!(window.adjust(-5), Ok(()));
        assert_eq!(window.available(), 0);
        assert_eq!(window.adjust(4), Ok(()));
        assert_eq!(window.available(), 1);
        assert_eq!(window.adjust(MAX_WINDOW.into()), Err(Overflow));
        assert_eq!(window.adjust(i64::from(MAX_WINDOW) - 1), Ok(()));
        assert_eq!(window.available(), MAX_WINDOW);
    }

    #[test]
    fn unread_bytes_are_not_granted_again() {
        let mut window = ReceiveWindow::new(100, 100);
        assert_eq!(window.receive(101, false), Err(Exceeded));
        assert_eq!(window.receive(100, false), Ok(()));
        assert!(!window.is_due(4));
        assert_eq!(window.take(24), 24);
        assert!(!window.is_due(4), "small grants are collected");
        assert_eq!(window.take(1), 1);
        assert!(window.is_due(4));
        assert_eq!(window.grant(), 25);
        assert_eq!(window.take(1000), 75);
        assert_eq!(window.grant(), 75);
    }

    #[test]
    fn discarded_bytes_are_granted_again() {
        let mut window = ReceiveWindow::new(100, 100);
        assert_eq!(window.receive(60, true), Ok(()));
        assert_eq!((window.unread(), window.grant()), (0, 60));
    }

    proptest! {
        /// Bytes that are never taken may occupy a window. What is left must still be granted.
        #[test]
        fn whatever_is_unread_the_rest_is_granted(
            size in 1..1000_u32,
            stuck in 0..1000_u32,
            pieces in prop::collection::vec(1..50_u32, 1..100),
        ) {
            let stuck = stuck.min(size - 1);
            let mut window = ReceiveWindow::new(size, size);
            prop_assert_eq!(window.receive(stuck, false), Ok(()));
            for piece in pieces {
                let mut left = piece;
                while left > 0 {
                    let sent = left.min(window.available as u32);
                    prop_assert!(sent > 0, "stuck with {:?}", window);
                    window.receive(sent, false).unwrap();
                    prop_assert!(window.unread <= i64::from(size));
                    window.take(sent.into());
                    if window.is_due(i64::MAX) {
                        window.grant();
                    }
                    left -= sent;
                }
            }
        }
    }
}
