//! The application of the default mesh: a web server in every pod that returns the client's
//! address.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use netns::NetNs;

use crate::output::print_error;

/// The port of the web servers.
pub(crate) const PORT: u16 = 8080;

/// Starts a web server in a pod, in its own threads.
pub(crate) fn serve(netns: &NetNs, name: &str) -> anyhow::Result<()> {
    let listener = netns.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)))??;
    let name = name.to_owned();
    std::thread::Builder::new()
        .name(format!("app-{name}"))
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                let name = name.clone();
                let started = std::thread::Builder::new().spawn(move || {
                    let _ = answer(stream, &name); // the client closed the connection
                });
                if let Err(e) = started {
                    print_error(format_args!("cannot start a thread for a connection: {e}"));
                }
            }
        })?;
    Ok(())
}

/// Answers requests on a connection until the client closes it.
fn answer(stream: TcpStream, name: &str) -> std::io::Result<()> {
    let peer = stream.peer_addr()?;
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut header = String::from("-");
        while !header.trim_end().is_empty() {
            header.clear();
            if reader.read_line(&mut header)? == 0 {
                return Ok(());
            }
        }
        let body = format!("{name} sees {}\n", peer.ip());
        write!(
            writer,
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
    }
}
