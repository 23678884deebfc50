//! Requests over netlink with the messages of the netlink-packet crates.

use std::io;

use netlink_packet_core::{
    NetlinkDeserializable, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use nft::netlink::{Budget, NetlinkSocket};

/// Sends a request and collects the answers until the acknowledgement or the end of the dump.
pub(crate) fn request<M>(socket: &NetlinkSocket, message: M, flags: u16) -> io::Result<Vec<M>>
where
    M: NetlinkSerializable + NetlinkDeserializable,
    NetlinkPayload<M>: From<M>,
{
    request_encoded(socket, &encode(message, flags), Budget::default(), Some)
}

/// Encodes a request.
pub(crate) fn encode<M>(message: M, flags: u16) -> Vec<u8>
where
    M: NetlinkSerializable,
    NetlinkPayload<M>: From<M>,
{
    let mut packet = NetlinkMessage::from(message);
    packet.header.flags = flags;
    packet.finalize();
    let mut buffer = vec![0u8; packet.buffer_len()];
    packet.serialize(&mut buffer);
    buffer
}

/// Sends a request and collects the bodies of the answers, whatever is in them.
pub(crate) fn request_bodies<M>(
    socket: &NetlinkSocket,
    message: M,
    flags: u16,
) -> io::Result<Vec<Vec<u8>>>
where
    M: NetlinkSerializable,
    NetlinkPayload<M>: From<M>,
{
    const HEADER: usize = 16;
    let mut out = Vec::new();
    socket.request(&encode(message, flags), &mut Budget::default(), |answer| {
        out.extend(answer.bytes.get(HEADER..).map(<[u8]>::to_vec));
        Ok(())
    })?;
    Ok(out)
}

/// Like [`request`], with an encoded request and a budget; collects what `decode` makes of the
/// answers.
pub(crate) fn request_encoded<M, T>(
    socket: &NetlinkSocket,
    request: &[u8],
    mut budget: Budget,
    mut decode: impl FnMut(M) -> Option<T>,
) -> io::Result<Vec<T>>
where
    M: NetlinkDeserializable,
{
    let mut out = Vec::new();
    socket.request(request, &mut budget, |answer| {
        let answer = NetlinkMessage::<M>::deserialize(answer.bytes).map_err(io::Error::other)?;
        if let NetlinkPayload::InnerMessage(inner) = answer.payload {
            out.extend(decode(inner));
        }
        Ok(())
    })?;
    Ok(out)
}
