//! A fake HBONE proxy that writes given frames, including those that no HTTP/2 library sends.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::certificates::acceptor;
use crate::http2_frames::{
    self, ACK, DATA, END_HEADERS, Frame, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, frame,
};
use crate::sandbox::{Sandbox, until};

/// A fake proxy at an address. It serves until the process exits.
#[derive(Debug, Clone, Default)]
pub struct RawTunnels {
    frames: Arc<Mutex<Vec<Frame>>>,
    opened: Arc<AtomicUsize>,
    /// The first tunnels, this many, neither send nor read.
    silent: Arc<AtomicUsize>,
}

impl RawTunnels {
    /// Listens at an address of a pod that is not captured, and answers every request with the
    /// frames that `answer` returns for its stream.
    pub fn start(
        sandbox: &Sandbox,
        pod: &str,
        at: SocketAddr,
        identity: &str,
        answer: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        let (netns, acceptor) = (sandbox.pod(pod), acceptor(sandbox, identity));
        // An IPv6 address is usable only when the kernel has found no duplicate.
        let bind = || netns.run(|| std::net::TcpListener::bind(at)).unwrap().ok();
        let listener = until("the address is usable", bind);
        listener.set_nonblocking(true).unwrap();
        let this = Self::default();
        let tunnels = this.clone();
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                while let Ok((tcp, _)) = listener.accept().await {
                    let (tunnels, acceptor) = (tunnels.clone(), acceptor.clone());
                    let answer = answer.clone();
                    tokio::spawn(async move { tunnels.serve(tcp, acceptor, &*answer).await });
                }
            });
        });
        this
    }

    async fn serve(
        &self,
        tcp: TcpStream,
        acceptor: TlsAcceptor,
        answer: &(impl Fn(u32) -> Vec<u8> + Sync),
    ) -> std::io::Result<()> {
        let number = self.opened.fetch_add(1, Ordering::SeqCst);
        let is_silent = || number < self.silent.load(Ordering::SeqCst);
        if is_silent() {
            std::future::pending::<()>().await;
        }
        let mut io = acceptor.accept(tcp).await?;
        io.read_exact(&mut [0; PREFACE.len()]).await?;
        let settings = [frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, ACK, 0, &[])];
        io.write_all(&settings.concat()).await?;
        loop {
            let next = http2_frames::read(&mut io).await?;
            let answer = match next.kind {
                HEADERS => Some(answer(next.stream)),
                PING if next.flags & ACK == 0 => Some(frame(PING, ACK, 0, &next.payload)),
                _ => None,
            };
            if is_silent() {
                std::future::pending::<()>().await;
            }
            self.frames.lock().unwrap().push(next);
            if let Some(answer) = answer {
                io.write_all(&answer).await?;
                io.flush().await?;
            }
        }
    }

    /// The frames that all clients have sent.
    pub fn frames(&self) -> Vec<Frame> {
        self.frames.lock().unwrap().clone()
    }

    /// How many connections were accepted.
    pub fn opened(&self) -> usize {
        self.opened.load(Ordering::SeqCst)
    }

    /// Makes the open tunnels silent, as when the peer's node was restarted.
    pub fn silence_open(&self) {
        self.silent.store(self.opened(), Ordering::SeqCst);
    }

    /// Makes open and new tunnels silent, as when the peer's node is down.
    pub fn silence_all(&self) {
        self.silent.store(usize::MAX, Ordering::SeqCst);
    }
}

/// An accepting answer to a request. `exact_resets` declares that CONNECT_ERROR is a TCP reset.
pub fn accepted(stream: u32, exact_resets: bool) -> Vec<u8> {
    let mut block = vec![0x88]; // `:status: 200` of the static table
    if exact_resets {
        block.extend(declaration());
    }
    frame(HEADERS, END_HEADERS, stream, &block)
}

/// The header block of the declaration that CONNECT_ERROR is a TCP reset: a literal header.
pub fn declaration() -> Vec<u8> {
    let mut block = vec![0];
    for text in ["x-connect-error", "tcp-reset"] {
        block.push(u8::try_from(text.len()).unwrap());
        block.extend(text.as_bytes());
    }
    block
}

/// Data frames.
pub fn data(stream: u32, bytes: &[u8]) -> Vec<u8> {
    let frames = bytes.chunks(1 << 14);
    frames
        .flat_map(|chunk| frame(DATA, 0, stream, chunk))
        .collect()
}

/// A frame that half-closes a stream.
pub fn end(stream: u32) -> Vec<u8> {
    frame(DATA, http2_frames::END_STREAM, stream, &[])
}

/// A reset of a stream with an error code (RFC 9113 section 7).
pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}
