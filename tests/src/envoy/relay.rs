//! Passes Envoy's delta discovery on to Istio's agent and back, through the filter.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use bytes::{Buf, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{Request, Response};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::spawn_local;

use super::extensions::Extensions;
use super::log_once;

/// Responses have all listeners or clusters of a proxy.
const WINDOW: u32 = 64 << 20;
/// The length of what precedes a message of gRPC.
const PREFIX: usize = 5;

/// Serves Envoy until the process ends.
pub(super) async fn serve(listener: UnixListener, agent: String) {
    let extensions = Rc::new(RefCell::new(Extensions::default()));
    while let Ok((envoy, _)) = listener.accept().await {
        let (agent, extensions) = (agent.clone(), extensions.clone());
        spawn_local(async move {
            if let Err(e) = connect(envoy, &agent, &extensions).await {
                log_once(format!("a connection of Envoy ended: {e}"));
            }
        });
    }
}

async fn connect(
    envoy: UnixStream,
    agent: &str,
    extensions: &Rc<RefCell<Extensions>>,
) -> io::Result<()> {
    let agent = UnixStream::connect(agent).await?;
    let mut client = h2::client::Builder::new();
    client
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    let (agent, connection) = client.handshake(agent).await.map_err(io::Error::other)?;
    let agent_ended = spawn_local(connection);
    let mut server = h2::server::Builder::new();
    server
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    let mut envoy = server
        .handshake::<_, Bytes>(envoy)
        .await
        .map_err(io::Error::other)?;
    while let Some(request) = envoy.accept().await {
        let (request, respond) = request.map_err(io::Error::other)?;
        let (agent, extensions) = (agent.clone(), extensions.clone());
        spawn_local(async move {
            if let Err(e) = exchange(request, respond, agent, &extensions).await {
                log_once(format!("a request of Envoy ended: {e}"));
            }
        });
    }
    agent_ended.abort();
    Ok(())
}

/// Passes on one request with its messages, and its responses. When either end resets it, the other
/// is reset as well, because its stream is dropped.
async fn exchange(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    agent: SendRequest<Bytes>,
    extensions: &RefCell<Extensions>,
) -> Result<(), h2::Error> {
    let (head, from_envoy) = request.into_parts();
    let is_delta = head.uri.path().ends_with("/DeltaAggregatedResources");
    if !is_delta {
        log_once(format!("{} is not filtered", head.uri.path()));
    }
    let mut agent = agent.ready().await?;
    let (response, to_agent) = agent.send_request(Request::from_parts(head, ()), false)?;
    let requests = copy(from_envoy, to_agent, |message| {
        if is_delta {
            let log = extensions.borrow_mut().read_request(&message);
            log.into_iter().for_each(log_once);
        }
        message
    });
    let responses = async {
        let (head, from_agent) = response.await?.into_parts();
        let is_end = from_agent.is_end_stream();
        let to_envoy = respond.send_response(Response::from_parts(head, ()), is_end)?;
        if is_end {
            return Ok(());
        }
        let filter = |message: Bytes| {
            if !is_delta {
                return message;
            }
            let filtered = extensions.borrow().filter_response(&message);
            filtered.log.into_iter().for_each(log_once);
            filtered.response.into()
        };
        copy(from_agent, to_envoy, filter).await
    };
    tokio::try_join!(requests, responses).map(|_| ())
}

/// Copies the messages of one direction.
async fn copy(
    mut from: RecvStream,
    mut to: SendStream<Bytes>,
    edit: impl Fn(Bytes) -> Bytes,
) -> Result<(), h2::Error> {
    let mut buffer = BytesMut::new();
    while let Some(data) = from.data().await {
        let data = data?;
        from.flow_control().release_capacity(data.len())?;
        buffer.extend_from_slice(&data);
        while let Some(message) = next_message(&mut buffer) {
            let message = edit(message);
            let mut framed = BytesMut::with_capacity(PREFIX + message.len());
            framed.extend_from_slice(&[0]); // not compressed
            framed.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
            framed.extend_from_slice(&message);
            to.send_data(framed.freeze(), false)?;
        }
    }
    match from.trailers().await? {
        Some(trailers) => to.send_trailers(trailers),
        None => to.send_data(Bytes::new(), true),
    }
}

/// Removes the first message, once it is complete.
fn next_message(buffer: &mut BytesMut) -> Option<Bytes> {
    let length = u32::from_be_bytes(buffer.get(1..PREFIX)?.try_into().ok()?);
    let length = usize::try_from(length).ok()?;
    if buffer.len() < PREFIX + length {
        return None;
    }
    buffer.advance(PREFIX);
    Some(buffer.split_to(length).freeze())
}
