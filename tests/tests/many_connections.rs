//! Numbers of connections that a node must bear: none is lost, and nothing of them is left.
#![allow(clippy::unwrap_used)]

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use netns::NetNs;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use underpass_tests::listener::connect_async;
use underpass_tests::sandbox::{MESH, Sandbox, listen, until};

/// How a connection ends.
#[derive(Debug, Clone, Copy)]
enum End {
    ByClient,
    ByServer,
    Reset,
}

const ENDS: [End; 3] = [End::ByClient, End::ByServer, End::Reset];

/// Connects, exchanges a byte and ends the connection. The byte asks the server to end it or not.
async fn connect_once(client: &NetNs, to: SocketAddr, end: End) -> io::Result<()> {
    let mut stream = connect_async(client, to, None).await?;
    stream.write_u8(end as u8).await?;
    let echoed = stream.read_u8().await?;
    assert_eq!(echoed, end as u8);
    match end {
        End::ByClient => {
            stream.shutdown().await?;
            assert_eq!(stream.read(&mut [0]).await?, 0);
        }
        End::ByServer => assert_eq!(stream.read(&mut [0]).await?, 0),
        End::Reset => SockRef::from(&stream).set_linger(Some(Duration::ZERO))?,
    }
    Ok(())
}

async fn serve_one(mut stream: TcpStream) -> io::Result<()> {
    let end = stream.read_u8().await?;
    stream.write_u8(end).await?;
    if end != End::ByServer as u8 {
        let _ = stream.read(&mut [0]).await; // the end, or a reset
    }
    Ok(())
}

async fn serve(listener: std::net::TcpListener) {
    listener.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve_one(stream));
        }
    }
}

/// The sum of a metric of connections between the client and the server.
fn total(sandbox: &Sandbox, node: &str, name: &str) -> u64 {
    let metrics = sandbox.get(node, "127.0.0.1:15020", "/metrics").1;
    let series = metrics.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        series
            .starts_with(name)
            .then(|| value.parse::<u64>().unwrap())
    });
    series.sum()
}

/// 72,000 a minute, for a while, between one pair of pods by tunnel. If the machine is too slow for
/// this rate, they come as fast as it opens them.
#[tokio::test]
async fn seventy_two_thousand_new_connections_a_minute_lose_none() {
    const EACH_SECOND: u32 = 1_200;
    const COUNT: u32 = 15 * EACH_SECOND;
    /// Open at the same time.
    const MOST: usize = 1_000;
    let idle = [("POOL_UNUSED_RELEASE_TIMEOUT", "1s")]; // of tunnels
    let sandbox = Sandbox::up_in("connection-rate", MESH, &idle);
    tokio::spawn(serve(listen(&sandbox.pod("server"), 8080)));
    let client = Arc::new(sandbox.pod("client"));
    let to = SocketAddr::new(sandbox.ips("server")[0], 8080);
    let (room, mut all) = (Arc::new(Semaphore::new(MOST)), JoinSet::new());
    let mut interval = tokio::time::interval(Duration::from_secs(1) / EACH_SECOND);
    for number in 0..COUNT {
        interval.tick().await; // after a delay at once, until it has caught up
        let place = room.clone().acquire_owned().await.unwrap();
        let (client, end) = (client.clone(), ENDS[number as usize % ENDS.len()]);
        all.spawn(async move {
            let done = connect_once(&client, to, end).await;
            drop(place);
            done.map_err(|e| format!("connection {number}, {end:?}: {e}"))
        });
    }
    let failed: Vec<_> = all
        .join_all()
        .await
        .into_iter()
        .filter_map(Result::err)
        .collect();
    assert!(
        failed.is_empty(),
        "{} failed: {:?}",
        failed.len(),
        failed[0]
    );
    tokio::task::spawn_blocking(move || {
        for node in ["node-1", "node-2"] {
            let total = |what| {
                total(
                    &sandbox,
                    node,
                    &format!("istio_tcp_connections_{what}_total"),
                )
            };
            // A machine that is busy enough lets a tunnel seem silent; its requests are then
            // repeated in another one, so that the receiver counts them twice.
            let opened = total("opened");
            assert!(opened >= u64::from(COUNT), "{node}: {opened}");
            assert!(node != "node-1" || opened == u64::from(COUNT), "{opened}");
            until("all connections are closed", || {
                (total("closed") == total("opened")).then_some(())
            });
        }
    })
    .await
    .unwrap();
}
