//! The peer, made of h2.

use std::future::poll_fn;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request, Response, Version};
use tokio::io::DuplexStream;

use crate::{Plan, opener};

/// Sends data as windows allow, in pieces of at most `most` bytes; false if the stream was reset.
pub async fn send_all(stream: &mut SendStream<Bytes>, mut data: Bytes, most: usize) -> bool {
    while !data.is_empty() {
        stream.reserve_capacity(data.len().min(most));
        let Some(Ok(capacity)) = poll_fn(|cx| stream.poll_capacity(cx)).await else {
            return false;
        };
        let piece = data.split_to(capacity.min(data.len()));
        if stream.send_data(piece, false).is_err() {
            return false;
        }
    }
    true
}

/// Opens all streams at once and compares what they return.
pub async fn run_client(io: DuplexStream, plan: Plan) {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(plan.peer_window)
        .initial_connection_window_size(plan.peer_window * 20)
        .enable_push(false);
    let (requests, connection) = builder.handshake(io).await.unwrap();
    let connection = tokio::task::spawn_local(connection);
    let mut streams = Vec::new();
    for number in 0..plan.streams.len() {
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = "10.0.0.1:80".parse().unwrap();
        *request.headers_mut() = opener::headers(number);
        let mut requests = requests.clone().ready().await.unwrap();
        let (response, send) = requests.send_request(request, false).unwrap();
        let payload = Bytes::from(plan.payload(number));
        let is_reset = plan.streams[number].1;
        streams.push(tokio::task::spawn_local(async move {
            let (head, recv) = response.await.unwrap().into_parts();
            assert_eq!(head.headers, opener::headers(number));
            converse(send, recv, payload, is_reset).await;
        }));
    }
    for stream in streams {
        stream.await.unwrap();
    }
    drop(requests); // h2 then sends GOAWAY
    if let Err(error) = connection.await.unwrap() {
        let is_drained = error.is_go_away() && error.reason() == Some(Reason::NO_ERROR);
        assert!(error.is_io() || is_drained, "{error}");
    }
}

/// Sends and receives a payload at the same time, or resets the stream halfway.
async fn converse(
    mut send: SendStream<Bytes>,
    mut recv: RecvStream,
    payload: Bytes,
    is_reset: bool,
) {
    let expected = payload.clone();
    let sender = tokio::task::spawn_local(async move {
        if is_reset {
            let half = payload.slice(..payload.len() / 2);
            send_all(&mut send, half, 3000).await;
            send.send_reset(Reason::CANCEL);
        } else {
            assert!(send_all(&mut send, payload, 3000).await);
            send.send_data(Bytes::new(), true).unwrap();
        }
    });
    let mut received = Vec::new();
    while let Some(data) = recv.data().await {
        let Ok(data) = data else {
            assert!(is_reset);
            break;
        };
        let _ = recv.flow_control().release_capacity(data.len());
        received.extend(data);
        assert!(expected.starts_with(&received));
    }
    assert!(is_reset || received == expected);
    sender.await.unwrap();
}

/// Returns what each stream sends, and enlarges its windows with each request. Closes when the
/// client does.
pub async fn run_server(io: DuplexStream, plan: Plan) {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(plan.peer_window)
        .initial_connection_window_size(plan.peer_window * 20)
        .max_concurrent_streams(3);
    let mut connection = builder.handshake(io).await.unwrap();
    let mut random = fastrand::Rng::with_seed(plan.seed);
    let (mut count, mut window) = (0, plan.peer_window);
    while let Some(accepted) = connection.accept().await {
        let (request, mut respond) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if error.is_io() => return,
            Err(error) => panic!("{error}"),
        };
        count += 1;
        assert_eq!(request.method(), Method::CONNECT);
        // Never smaller: h2 then forgets what it has not yet granted, and streams stall. It fails
        // while an earlier change is not acknowledged.
        window = random.u32(window..200_000);
        let _ = connection.set_initial_window_size(window);
        if count == plan.streams.len() {
            connection.graceful_shutdown();
        }
        tokio::task::spawn_local(async move {
            let (head, mut recv) = request.into_parts();
            let mut response = Response::new(());
            *response.headers_mut() = head.headers;
            let mut send = respond.send_response(response, false).unwrap();
            while let Some(Ok(data)) = recv.data().await {
                let length = data.len();
                if !send_all(&mut send, data, 5000).await {
                    return;
                }
                let _ = recv.flow_control().release_capacity(length);
            }
            let _ = send.send_data(Bytes::new(), true); // an error: the stream was reset
        });
    }
}
