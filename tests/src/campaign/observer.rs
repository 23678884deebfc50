//! Sees every frame outside of the pods, with the kernel's time stamps.

use std::io::IoSliceMut;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use netns::NetNs;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};

use super::traffic::Marker;
use crate::sniffer::{Sniffer, Tally};

/// Enough for what arrives while the observer is not scheduled.
const BUFFER: usize = 64 << 20;

/// Observes a namespace in the background until `ended`; reports readable markers.
pub fn observe(
    netns: &NetNs,
    ended: Arc<AtomicBool>,
    report: impl Fn(SystemTime, Marker) + Send + 'static,
) -> JoinHandle<Tally> {
    let sniffer = Sniffer::new(netns);
    setsockopt(sniffer.socket(), sockopt::ReceiveTimestampns, &true).unwrap();
    setsockopt(sniffer.socket(), sockopt::RcvBufForce, &BUFFER).unwrap();
    std::thread::spawn(move || {
        let (mut tally, mut frame) = (Tally::default(), vec![0; 1 << 16]);
        loop {
            match receive(&sniffer, &mut frame) {
                Some((length, at)) => {
                    let frame = &frame[..length];
                    tally.add(frame, Marker::START);
                    if let Some(marker) = Marker::find(frame) {
                        report(at, marker);
                    }
                }
                None if ended.load(Ordering::Relaxed) => return tally,
                None => {}
            }
        }
    })
}

/// The next frame, with the time at which the kernel saw it; `None` after the read timeout.
fn receive(sniffer: &Sniffer, frame: &mut [u8]) -> Option<(usize, SystemTime)> {
    let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
    let mut parts = [IoSliceMut::new(frame)];
    let received = recvmsg::<()>(
        sniffer.socket().as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::empty(),
    )
    .ok()?;
    let stamp = received.cmsgs().ok()?.find_map(|message| match message {
        ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
        _ => None,
    });
    let at = stamp.map_or_else(SystemTime::now, |since| SystemTime::UNIX_EPOCH + since);
    Some((received.bytes, at))
}
