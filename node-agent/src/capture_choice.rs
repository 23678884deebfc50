//! Chooses the capture method of this node, by trying each in a scratch network namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use agent_status::CaptureStatus;
use netns::sockopt::set_transparent;
use netns::{NetNs, NetNsError};
use redirect::{CaptureKind, Difference, Plan, RedirectError};
use socket2::{Domain, Socket, Type};

/// Destination of the test connection, which must be captured: TEST-NET-1 (RFC 5737).
const TEST_DESTINATION: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Value of `--capture`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "kebab-case")]
pub(crate) enum CaptureOption {
    /// The first of the others that works, in this order.
    Auto,
    /// Policy routing and nf_tables tproxy, without NAT or conntrack.
    Routed,
    /// NAT by nf_tables.
    Nat,
    /// NAT by iptables-nft-restore.
    NatIptablesNft,
    /// NAT by iptables-legacy-restore, for kernels without nf_tables.
    NatIptablesLegacy,
}

/// The chosen capture method and the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CaptureChoice {
    pub(crate) kind: CaptureKind,
    pub(crate) why: String,
}

impl CaptureChoice {
    pub(crate) fn status(&self) -> CaptureStatus {
        CaptureStatus {
            kind: self.kind.to_string(),
            why: self.why.clone(),
        }
    }
}

/// No requested capture method works on this node.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub(crate) struct NoUsableCapture(Vec<FailedTrial>);

/// A capture method that does not work on this node.
#[derive(Debug, thiserror::Error)]
#[error("{kind} does not work on this node: {error}")]
struct FailedTrial {
    kind: CaptureKind,
    error: TrialError,
}

/// Why a capture method does not work.
#[derive(Debug, thiserror::Error)]
enum TrialError {
    /// No scratch namespace can be created. Likely cause: CAP_SYS_ADMIN is missing.
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    /// The kernel rejected the rules.
    #[error("{code}: {0}", code = .0.code())]
    Redirect(#[from] RedirectError),
    /// The kernel accepted the rules but reports others.
    #[error("the rules read back differ: {0}")]
    Differs(Difference),
    /// The rules are in place but have no effect.
    #[error("a test connection was not captured: {0}")]
    NotCaptured(#[source] io::Error),
}

impl CaptureOption {
    /// The methods to try, in order.
    fn candidates(self) -> &'static [CaptureKind] {
        match self {
            Self::Auto => &CaptureKind::ALL,
            Self::Routed => &[CaptureKind::Routed],
            Self::Nat => &[CaptureKind::Nat],
            Self::NatIptablesNft => &[CaptureKind::NatIptablesNft],
            Self::NatIptablesLegacy => &[CaptureKind::NatIptablesLegacy],
        }
    }
}

/// Tries the requested methods in order and returns the first that works. Blocks for a few
/// milliseconds.
pub(crate) fn choose(option: CaptureOption) -> Result<CaptureChoice, NoUsableCapture> {
    first_working(option.candidates(), try_out)
}

fn first_working(
    candidates: &[CaptureKind],
    mut try_out: impl FnMut(CaptureKind) -> Result<(), TrialError>,
) -> Result<CaptureChoice, NoUsableCapture> {
    let mut failed = Vec::new();
    for &kind in candidates {
        match try_out(kind) {
            Ok(()) => {
                let failures = failed.iter().map(|f: &FailedTrial| format!("; {f}"));
                let why = format!(
                    "works in a scratch namespace{}",
                    failures.collect::<String>()
                );
                return Ok(CaptureChoice { kind, why });
            }
            Err(error) => failed.push(FailedTrial { kind, error }),
        }
    }
    Err(NoUsableCapture(failed))
}

/// Applies a plan with all features in a scratch namespace, reads it back, and for `routed` opens a
/// test connection.
fn try_out(kind: CaptureKind) -> Result<(), TrialError> {
    NetNs::create()?.run(|| {
        // Loopback addresses, which every namespace has, stand in for the pod's.
        let addresses = [IpAddr::V4(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
        let v6 = std::path::Path::new("/proc/sys/net/ipv6").exists();
        let addresses = addresses.into_iter().filter(|a| a.is_ipv4() || v6);
        let plan = Plan {
            capture: kind,
            dns: true,
            ..Plan::for_pod(addresses)
        };
        redirect::apply(&plan)?;
        let differences = redirect::diff(&plan, &redirect::read_back()?);
        if let Some(difference) = differences.into_iter().next() {
            return Err(TrialError::Differs(difference));
        }
        // Under NAT, a connection would need a route out of the namespace, which has none.
        if kind == CaptureKind::Routed {
            check_connection(plan.ports.outbound).map_err(TrialError::NotCaptured)?;
        }
        Ok(())
    })?
}

/// Checks that a connection elsewhere arrives at a listener on `port`.
fn check_connection(port: u16) -> io::Result<()> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), None)?;
    set_transparent(&listener, false)?;
    listener.set_mark(istio::mark::PROXY)?;
    listener.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    listener.listen(1)?;
    let listener = TcpListener::from(listener);
    let _client = TcpStream::connect_timeout(&TEST_DESTINATION, CONNECT_TIMEOUT)?;
    listener.set_nonblocking(true)?;
    listener.accept().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chooses on a node where only the given methods work; returns the choice and what was tried.
    fn choose_where(
        option: CaptureOption,
        working: &[CaptureKind],
    ) -> (Result<CaptureChoice, NoUsableCapture>, Vec<CaptureKind>) {
        let mut tried = Vec::new();
        let chosen = first_working(option.candidates(), |kind| {
            tried.push(kind);
            if working.contains(&kind) {
                return Ok(());
            }
            Err(TrialError::Redirect(RedirectError::NoAddress))
        });
        (chosen, tried)
    }

    #[test]
    fn auto_chooses_the_first_method_that_works_and_tries_no_other() {
        use CaptureKind::{Nat, NatIptablesLegacy, NatIptablesNft, Routed};
        for (working, expected, tries) in [
            (&[Routed, Nat][..], Routed, 1),
            (&[Nat, NatIptablesNft], Nat, 2),
            (&[NatIptablesLegacy, NatIptablesNft], NatIptablesNft, 3),
            (&[NatIptablesLegacy], NatIptablesLegacy, 4),
        ] {
            let (chosen, tried) = choose_where(CaptureOption::Auto, working);
            assert_eq!(chosen.unwrap().kind, expected);
            assert_eq!(tried, CaptureKind::ALL[..tries]);
        }
    }

    #[test]
    fn an_explicit_method_is_never_replaced_by_another() {
        use CaptureKind::{Nat, NatIptablesLegacy, NatIptablesNft, Routed};
        for (option, only) in [
            (CaptureOption::Routed, Routed),
            (CaptureOption::Nat, Nat),
            (CaptureOption::NatIptablesNft, NatIptablesNft),
            (CaptureOption::NatIptablesLegacy, NatIptablesLegacy),
        ] {
            let others: Vec<_> = CaptureKind::ALL
                .into_iter()
                .filter(|k| *k != only)
                .collect();
            let (chosen, tried) = choose_where(option, &others);
            assert!(chosen.is_err(), "{option:?}");
            assert_eq!(tried, [only]);
            assert_eq!(choose_where(option, &[only]).0.unwrap().kind, only);
        }
    }

    #[test]
    fn the_reason_names_every_method_that_does_not_work() {
        let why = choose_where(CaptureOption::Auto, &[CaptureKind::Nat])
            .0
            .unwrap()
            .why;
        let code = RedirectError::NoAddress.code();
        assert_eq!(
            why,
            format!(
                "works in a scratch namespace; routed does not work on this node: {code}: the plan \
                 has no pod address"
            )
        );
        let none = choose_where(CaptureOption::Auto, &[])
            .0
            .unwrap_err()
            .to_string();
        assert_eq!(
            none.matches("does not work on this node").count(),
            4,
            "{none}"
        );
        assert!(none.contains("; nat-iptables-legacy does not"), "{none}");
    }
}
