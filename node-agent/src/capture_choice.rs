//! Which capture this node can do: each is tried in a scratch network namespace, `routed` with a real connection.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use agent_status::CaptureStatus;
use netns::NetNs;
use netns::sockopt::set_transparent;
use redirect::{CaptureKind, PROXY_MARK, Plan};
use socket2::{Domain, Socket, Type};

/// A connection to here must arrive at the listener: TEST-NET-1 (RFC 5737), which nobody has.
const ELSEWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);
const PATIENCE: Duration = Duration::from_secs(2);

/// What `--capture` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "kebab-case")]
pub(crate) enum Asked {
    /// The first that works of the others, in this order.
    Auto,
    /// Policy routing and nf_tables tproxy: no NAT, no conntrack.
    Routed,
    /// Address translation by nf_tables.
    Nat,
    /// Address translation by iptables-nft-restore.
    NatIptablesNft,
    /// Address translation by iptables-legacy-restore, for kernels without nf_tables.
    NatIptablesLegacy,
}

/// What was chosen, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) kind: CaptureKind,
    pub(crate) why: String,
}

impl Choice {
    pub(crate) fn status(&self) -> CaptureStatus {
        CaptureStatus { kind: self.kind.to_string(), why: self.why.clone() }
    }
}

/// No capture that was asked for works here.
#[derive(Debug, thiserror::Error)]
pub(crate) struct NoCapture(String);

impl fmt::Display for NoCapture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Tries and chooses. Blocks for some milliseconds.
pub(crate) fn choose(asked: Asked) -> Result<Choice, NoCapture> {
    let candidates = match asked {
        Asked::Auto => CaptureKind::ALL.to_vec(),
        Asked::Routed => vec![CaptureKind::Routed],
        Asked::Nat => vec![CaptureKind::Nat],
        Asked::NatIptablesNft => vec![CaptureKind::NatIptablesNft],
        Asked::NatIptablesLegacy => vec![CaptureKind::NatIptablesLegacy],
    };
    let mut failures = Vec::new();
    for kind in candidates {
        match try_out(kind) {
            Ok(()) => {
                failures.insert(0, "tried in a scratch namespace, and works".to_owned());
                return Ok(Choice { kind, why: failures.join("; ") });
            }
            Err(e) => failures.push(format!("{kind} does not work here: {e}")),
        }
    }
    Err(NoCapture(failures.join("; ")))
}

/// Applies a plan in a namespace of its own, with DNS so that all of it is tried, and connects.
fn try_out(kind: CaptureKind) -> Result<(), String> {
    let scratch = NetNs::create().map_err(|e| e.to_string())?;
    let arrived = scratch.run(|| {
        // Loopback's own addresses stand for the pod's; they are there in every namespace.
        let addresses = [IpAddr::V4(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
        let v6 = std::path::Path::new("/proc/sys/net/ipv6").exists();
        let addresses = addresses.into_iter().filter(|a| a.is_ipv4() || v6);
        let plan = Plan { capture: kind, dns: true, ..Plan::for_pod(addresses) };
        let coded = |e: redirect::RedirectError| format!("{}: {e}", e.code());
        redirect::apply(&plan).map_err(coded)?;
        if let Some(difference) = redirect::diff(&plan, &redirect::read_back().map_err(coded)?).first() {
            return Err(format!("what is read back differs: {difference}"));
        }
        // Under NAT a connection would need a way out of the namespace, which it does not have.
        if kind == CaptureKind::Routed {
            connection_arrives(plan.ports.outbound).map_err(|e| format!("a connection did not arrive: {e}"))?;
        }
        Ok(())
    });
    arrived.map_err(|e| e.to_string())?
}

fn connection_arrives(port: u16) -> io::Result<()> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), None)?;
    set_transparent(&listener, false)?;
    listener.set_mark(PROXY_MARK.value)?;
    listener.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    listener.listen(1)?;
    let listener = TcpListener::from(listener);
    let _client = TcpStream::connect_timeout(&ELSEWHERE, PATIENCE)?;
    listener.set_nonblocking(true)?;
    listener.accept().map(drop)
}
