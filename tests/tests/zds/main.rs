//! One end of the protocol between agent and proxy is restarted, stalled or wrong: pods stay
//! served, the other end reports it with a code, keeps nothing open, and recovers.
#![allow(clippy::unwrap_used, clippy::disallowed_types)] // limits the proxy's descriptors

mod agent;
mod proxy;

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd};

use netns::seqpacket::SeqPacket;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// Sends a message with any number of descriptors.
fn send_with(socket: &SeqPacket, bytes: &[u8], fds: &[i32]) {
    let control = [ControlMessage::ScmRights(fds)];
    let socket = socket.as_fd().as_raw_fd();
    let parts = [IoSlice::new(bytes)];
    sendmsg::<()>(socket, &parts, &control, MsgFlags::MSG_NOSIGNAL, None).unwrap();
}
