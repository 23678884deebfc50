//! Connections that end with an answer.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;

use crate::chunks::Chunks;

/// Ends a connection that its client keeps for further requests, without losing one of them.
///
/// While `silence` returns a time, the last byte that the server has sent waits for that time. If
/// neither side has sent anything by then, it was the end of an answer: it is passed on together
/// with the end of the connection. So the client never has a whole answer, after which it could
/// send its next request, without the end.
pub struct LastAnswer<'a> {
    /// The side that answers.
    pub server: Server,
    /// How long the server must be silent; `None` while connections are not being ended.
    pub silence: &'a dyn Fn() -> Option<Duration>,
    /// Completes when the connection is to end because it is idle. Polled only while the server
    /// sends nothing and has nothing to be written.
    pub idle: Pin<&'a mut (dyn Future<Output = ()> + 'a)>,
}

#[cfg(test)]
impl<'a> LastAnswer<'a> {
    /// Ends no connection.
    pub(crate) fn never(idle: Pin<&'a mut (dyn Future<Output = ()> + 'a)>) -> Self {
        Self {
            server: Server::B,
            silence: &|| None,
            idle,
        }
    }
}

/// The side of a relay that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// The first one.
    A,
    /// The second one.
    B,
}

/// When the connection ends with what a source sends: [`LastAnswer::silence`] and
/// [`LastAnswer::idle`].
pub(crate) type EndRule<'a, 'b> = (
    &'a dyn Fn() -> Option<Duration>,
    Pin<&'a mut (dyn Future<Output = ()> + 'b)>,
);

/// The last byte of what may be an answer.
pub(crate) struct HeldByte {
    pub(crate) byte: Bytes,
    /// How long it waits.
    pub(crate) silence: Duration,
    /// The other direction's writes when it was read.
    pub(crate) writes: u64,
}

impl HeldByte {
    /// Removes the last byte, if answers end connections now, and if the client has sent something.
    pub(crate) fn take(bytes: &mut Chunks, silence: Option<Duration>, writes: u64) -> Option<Self> {
        let silence = silence?;
        let byte = if writes > 0 { bytes.split_last() } else { None };
        Some(Self {
            byte: byte?,
            silence,
            writes,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::pending;
    use std::pin::pin;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::Notify;
    use tokio::time::sleep;

    use super::*;
    use crate::{Side, Sink, Source, StreamEnd, relay, relay_tcp};

    const SHORT: Duration = Duration::from_millis(1);
    /// Never over in a test.
    const LONG: Duration = Duration::from_secs(3600);

    async fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let to = listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(to), listener.accept());
        (client.unwrap(), accepted.unwrap().0)
    }

    /// Relays between a client and a server while they exchange messages.
    async fn relayed(
        silence: &dyn Fn() -> Option<Duration>,
        exchange: impl AsyncFnOnce(TcpStream, TcpStream),
    ) -> Option<StreamEnd> {
        let ((client, down), (server, up)) = (connection().await, connection().await);
        let last = LastAnswer {
            server: Server::B,
            silence,
            idle: pin!(pending()),
        };
        let relaying = relay_tcp(down, up, |_| {}, |_| {}, last, pending::<()>());
        tokio::join!(relaying, exchange(client, server)).0.unwrap()
    }

    async fn expect(from: &mut TcpStream, text: &[u8]) {
        let mut read = vec![0; text.len()];
        from.read_exact(&mut read).await.unwrap();
        assert_eq!(read, text);
    }

    #[tokio::test]
    async fn a_connection_ends_with_the_last_byte_of_an_answer() {
        let silence = Cell::new(LONG);
        let exchange = async |mut client: TcpStream, mut server: TcpStream| {
            client.write_all(b"GET").await.unwrap();
            expect(&mut server, b"GET").await;
            server.write_all(b"an ans").await.unwrap();
            expect(&mut client, b"an an").await;
            sleep(SHORT).await;
            let more = client.try_read(&mut [0]);
            assert!(more.is_err(), "the last byte does not wait: {more:?}");
            silence.set(SHORT);
            server.write_all(b"wer").await.unwrap();
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"swer");
            assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
        };
        let end = relayed(&|| Some(silence.get()), exchange).await;
        assert!(matches!(end, Some(StreamEnd::Finished)), "{end:?}");
    }

    #[tokio::test]
    async fn what_precedes_the_first_request_is_no_answer() {
        let exchange = async |mut client: TcpStream, mut server: TcpStream| {
            server.write_all(b"220 ready").await.unwrap();
            expect(&mut client, b"220 ready").await;
            sleep(SHORT * 50).await;
            client.write_all(b"QUIT").await.unwrap();
            expect(&mut server, b"QUIT").await;
            server.write_all(b"221").await.unwrap();
            expect(&mut client, b"221").await;
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        };
        relayed(&|| Some(SHORT), exchange).await;
    }

    #[tokio::test]
    async fn a_client_that_does_not_wait_for_answers_keeps_its_connection() {
        let exchange = async |mut client: TcpStream, mut server: TcpStream| {
            client.write_all(b"1").await.unwrap();
            expect(&mut server, b"1").await;
            server.write_all(b"one").await.unwrap();
            expect(&mut client, b"on").await;
            client.write_all(b"2").await.unwrap();
            expect(&mut server, b"2").await;
            server.write_all(b"two").await.unwrap();
            expect(&mut client, b"etwo").await;
            server.write_all(b"more").await.unwrap();
            expect(&mut client, b"more").await;
        };
        relayed(&|| Some(LONG), exchange).await;
    }

    #[tokio::test]
    async fn the_end_of_a_server_is_preceded_by_its_last_byte() {
        let exchange = async |mut client: TcpStream, mut server: TcpStream| {
            client.write_all(b"GET").await.unwrap();
            expect(&mut server, b"GET").await;
            server.write_all(b"answer").await.unwrap();
            expect(&mut client, b"answe").await;
            drop(server);
            expect(&mut client, b"r").await;
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        };
        relayed(&|| Some(LONG), exchange).await;
    }

    /// A side that sends a message, and accepts one once it is allowed to.
    struct Peer<'a> {
        message: Option<&'static [u8]>,
        accepts: &'a Notify,
        accepted: Vec<u8>,
    }

    impl Source for Peer<'_> {
        async fn read(&mut self, _: usize) -> Result<Option<Chunks>, StreamEnd> {
            match self.message.take() {
                Some(message) => Ok(Some(Bytes::from_static(message).into())),
                None => pending().await,
            }
        }
    }

    impl Sink for Peer<'_> {
        fn write_size(&self) -> usize {
            1024
        }

        async fn write(&mut self, bytes: &mut Chunks) -> Result<(), StreamEnd> {
            self.accepts.notified().await;
            self.accepted.extend(bytes.split_first(usize::MAX));
            Ok(())
        }

        fn finish(&mut self) {}

        async fn ended(&mut self) -> StreamEnd {
            pending().await
        }

        async fn close(&mut self, _: &StreamEnd) {}

        async fn reset(&mut self) {}
    }

    #[tokio::test]
    async fn an_idle_connection_does_not_end_before_its_bytes_are_written() {
        let accepts = Notify::new();
        let peer = |message| Peer {
            message,
            accepts: &accepts,
            accepted: Vec::new(),
        };
        let side = |message| Side {
            source: peer(message),
            sink: peer(None),
        };
        let (mut client, mut server) = (side(None), side(Some(b"answer")));
        let last = LastAnswer {
            server: Server::B,
            silence: &|| None,
            idle: pin!(std::future::ready(())),
        };
        let relaying = relay(
            &mut client,
            &mut server,
            |_| {},
            |_| {},
            last,
            pending::<()>(),
        );
        let (relayed, ()) = tokio::join!(relaying, async {
            sleep(SHORT).await;
            accepts.notify_one();
        });
        assert!(matches!(relayed, Ok(Some(StreamEnd::Finished))));
        assert_eq!(client.sink.accepted, b"answer");
    }
}
