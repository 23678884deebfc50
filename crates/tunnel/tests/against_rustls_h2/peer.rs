//! The peer, made of h2 over rustls.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::{Method, Request, Response, Version};
use identity::Credentials;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::credentials::client_config;
use crate::{Plan, opener};

/// A connection that changes its keys after every so many writes.
struct Rekeying {
    tls: TlsStream<DuplexStream>,
    writes: u32,
    per_update: u32,
}

impl Rekeying {
    fn new(tls: impl Into<TlsStream<DuplexStream>>, plan: &Plan) -> Self {
        Self {
            tls: tls.into(),
            writes: 0,
            per_update: plan.peer_key_writes,
        }
    }
}

impl AsyncRead for Rekeying {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, to)
    }
}

impl AsyncWrite for Rekeying {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.writes += 1;
        if self.writes.is_multiple_of(self.per_update) {
            let refreshed = match &mut self.tls {
                TlsStream::Client(tls) => tls.get_mut().1.refresh_traffic_keys(),
                TlsStream::Server(tls) => tls.get_mut().1.refresh_traffic_keys(),
            };
            refreshed.unwrap();
        }
        Pin::new(&mut self.tls).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

/// Sends data as windows allow.
async fn send_all(stream: &mut SendStream<Bytes>, mut data: Bytes) {
    while !data.is_empty() {
        stream.reserve_capacity(data.len().min(5000));
        let capacity = poll_fn(|cx| stream.poll_capacity(cx)).await;
        let capacity = capacity.expect("the stream is open").unwrap();
        let piece = data.split_to(capacity.min(data.len()));
        stream.send_data(piece, false).unwrap();
    }
}

/// Opens all streams at once and compares what they return.
pub async fn run_client(io: DuplexStream, credentials: Arc<Credentials>, plan: Plan) {
    let name = ServerName::try_from("10.0.0.1").unwrap();
    let connector = TlsConnector::from(client_config(&credentials));
    let tls = connector.connect(name, io).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(plan.peer_window)
        .initial_connection_window_size(plan.peer_window * 20)
        .enable_push(false);
    let handshake = builder.handshake(Rekeying::new(tls, &plan));
    let (requests, connection) = handshake.await.unwrap();
    let connection = tokio::task::spawn_local(connection);
    let mut streams = Vec::new();
    for number in 0..plan.streams.len() {
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = "10.0.0.1:80".parse().unwrap();
        *request.headers_mut() = opener::headers();
        let mut requests = requests.clone().ready().await.unwrap();
        let (response, send) = requests.send_request(request, false).unwrap();
        let payload = Bytes::from(plan.payload(number));
        streams.push(tokio::task::spawn_local(async move {
            let (head, recv) = response.await.unwrap().into_parts();
            assert_eq!(head.headers, opener::headers());
            converse(send, recv, payload).await;
        }));
    }
    for stream in streams {
        stream.await.unwrap();
    }
    drop(requests); // h2 then sends GOAWAY and closes
    let _ = connection.await.unwrap(); // an error: the transport was closed first
}

/// Sends and receives a payload at the same time.
async fn converse(mut send: SendStream<Bytes>, mut recv: RecvStream, payload: Bytes) {
    let expected = payload.clone();
    let sender = tokio::task::spawn_local(async move {
        send_all(&mut send, payload).await;
        send.send_data(Bytes::new(), true).unwrap();
    });
    let mut received = Vec::new();
    while let Some(data) = recv.data().await {
        let data = data.unwrap();
        let _ = recv.flow_control().release_capacity(data.len());
        received.extend(data);
    }
    assert!(received == expected);
    sender.await.unwrap();
}

/// Returns what each stream sends. Closes when the client does.
pub async fn run_server(io: DuplexStream, credentials: Arc<Credentials>, plan: Plan) {
    let acceptor = TlsAcceptor::from(credentials.server.clone());
    let tls = acceptor.accept(io).await.unwrap();
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(plan.peer_window)
        .initial_connection_window_size(plan.peer_window * 20)
        .max_concurrent_streams(3);
    let handshake = builder.handshake::<_, Bytes>(Rekeying::new(tls, &plan));
    let mut connection = handshake.await.unwrap();
    while let Some(accepted) = connection.accept().await {
        let (request, mut respond) = accepted.unwrap();
        tokio::task::spawn_local(async move {
            let (head, mut recv) = request.into_parts();
            let mut response = Response::new(());
            *response.headers_mut() = head.headers;
            let mut send = respond.send_response(response, false).unwrap();
            while let Some(data) = recv.data().await {
                let data = data.unwrap();
                let length = data.len();
                send_all(&mut send, data).await;
                let _ = recv.flow_control().release_capacity(length);
            }
            send.send_data(Bytes::new(), true).unwrap();
        });
    }
}
