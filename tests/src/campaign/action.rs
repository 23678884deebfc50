//! What the adversary does.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;
use redirect::TABLE;

use super::judge::Excuse;
use super::scene::{FLIPPED, NODES, Program, STEADY, Scene, addresses, name, node};
use super::traffic::Traffic;

/// One change.
#[derive(Debug, Clone)]
pub enum Action {
    /// Runs `nft` or `ip` in a pod, and later the second command, if any.
    Command {
        pod: usize,
        program: &'static str,
        arguments: String,
        undo: Option<String>,
    },
    /// Sets a sysctl of a pod, and later its previous value.
    Sysctl {
        pod: usize,
        path: &'static str,
        value: String,
        is_undo: bool,
    },
    /// Connects from a pod with a mark, as an unprivileged user with CAP_NET_RAW.
    MarkedConnection { pod: usize, mark: u32 },
    /// Kills a program of a node; later all programs that have exited are started.
    Kill { node: usize, program: Program },
    /// Starts the programs that have exited.
    Restart,
    /// Takes namespace `flipped` into the mesh or out of it.
    Flip { is_in: bool },
    /// Deletes a pod, and later creates it again.
    Delete { pod: usize },
    /// Creates a pod.
    Create { pod: usize },
    /// Kills the plugin during the ADD of a new pod, and later creates the pod.
    KillPlugin { pod: usize, after: Duration },
}

/// The chains of the captures `routed` and `nat`.
const CHAINS: [&[&str]; 2] = [
    &["capture", "exclude", "guard"],
    &["mark-in", "mark-out", "nat-in", "nat-out", "guard"],
];
/// Priorities of policy rules: before, at and after those of Underpass.
const PREFERENCES: [u32; 10] = [
    1, 100, 20_000, 32_761, 32_762, 32_763, 32_764, 32_765, 32_766, 32_767,
];
const SYSCTLS: [(&str, &[&str]); 10] = [
    ("net/ipv4/conf/all/rp_filter", &["0", "1", "2"]),
    ("net/ipv4/conf/eth0/rp_filter", &["0", "1", "2"]),
    ("net/ipv4/conf/all/src_valid_mark", &["0", "1"]),
    ("net/ipv4/conf/all/route_localnet", &["0", "1"]),
    ("net/ipv4/ip_forward", &["0", "1"]),
    ("net/ipv4/fwmark_reflect", &["0", "1"]),
    ("net/ipv4/tcp_fwmark_accept", &["0", "1"]),
    ("net/ipv4/ip_early_demux", &["0", "1"]),
    ("net/ipv4/ip_nonlocal_bind", &["0", "1"]),
    ("net/ipv6/conf/all/forwarding", &["0", "1"]),
];

impl Action {
    /// A random action that is possible now.
    pub fn random(rng: &mut Rng, scene: &Scene) -> Self {
        let pod = rng.usize(STEADY);
        match rng.u32(0..100) {
            0..28 => own_rules(rng, scene, pod),
            28..40 => foreign_rules(rng, pod),
            40..56 => policy_rule(rng, pod),
            56..64 => link(rng, pod),
            64..70 => {
                let (path, values) = SYSCTLS[rng.usize(0..SYSCTLS.len())];
                let value = values[rng.usize(0..values.len())].to_owned();
                Self::Sysctl {
                    pod,
                    path,
                    value,
                    is_undo: false,
                }
            }
            70..76 => {
                let mark = [0x539, 0x1_0539, 0x111, 0xffff_f539][rng.usize(0..4)];
                Self::MarkedConnection { pod, mark }
            }
            76..84 => {
                let program = [Program::Agent, Program::Proxy][rng.usize(0..2)];
                let node = rng.usize(0..NODES.len());
                Self::Kill { node, program }
            }
            84..92 if scene.is_flipped_in() => Self::Flip { is_in: false },
            _ => {
                let pod = rng.usize(STEADY.start..FLIPPED.end);
                if scene.is_deleted(pod) {
                    let pod = rng.usize(STEADY);
                    return own_rules(rng, scene, pod);
                }
                if rng.bool() {
                    return Self::Delete { pod };
                }
                let after = Duration::from_millis(rng.u64(0..60));
                Self::KillPlugin { pod, after }
            }
        }
    }

    /// Carries the action out; returns what undoes it.
    pub fn perform(&self, scene: &Scene, traffic: &Traffic) -> Option<Self> {
        match self {
            Self::Command {
                pod,
                program,
                arguments,
                undo,
            } => {
                let is_done = scene.run_in_pod(*pod, program, arguments);
                undo.as_ref().filter(|_| is_done).map(|undo| Self::Command {
                    pod: *pod,
                    program,
                    arguments: undo.clone(),
                    undo: None,
                })
            }
            Self::Sysctl {
                pod,
                path,
                value,
                is_undo,
            } => {
                let before = scene.set_sysctl(*pod, path, value)?;
                (!is_undo && before != *value).then_some(Self::Sysctl {
                    pod: *pod,
                    path,
                    value: before,
                    is_undo: true,
                })
            }
            Self::MarkedConnection { pod, mark } => {
                traffic.connect_marked(*pod, *mark);
                None
            }
            Self::Kill { node, program } => {
                scene.kill(*node, *program);
                Some(Self::Restart)
            }
            Self::Restart => {
                scene.restart();
                None
            }
            Self::Flip { is_in } => {
                scene.flip(*is_in);
                (!is_in).then_some(Self::Flip { is_in: true })
            }
            Self::Delete { pod } => {
                traffic.applications().stop(*pod);
                scene.delete(*pod);
                Some(Self::Create { pod: *pod })
            }
            Self::Create { pod } => {
                if let Err(e) = scene.create(*pod) {
                    println!("            {}: {e}", name(*pod));
                    return Some(self.clone()); // as a kubelet does
                }
                traffic.applications().resume(*pod);
                None
            }
            Self::KillPlugin { pod, after } => {
                traffic.applications().stop(*pod);
                scene.delete(*pod);
                scene.create_and_kill_the_plugin(*pod, *after);
                Some(Self::Create { pod: *pod })
            }
        }
    }

    /// The kind of action, for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Command { program, .. } => program,
            Self::Sysctl { .. } => "sysctl",
            Self::MarkedConnection { .. } => "marked connection",
            Self::Kill { program, .. } => match program {
                Program::Agent => "agent killed",
                Program::Proxy => "proxy killed",
            },
            Self::Restart => "restart",
            Self::Flip { .. } => "namespace flipped",
            Self::Delete { .. } => "pod deleted",
            Self::Create { .. } => "pod created",
            Self::KillPlugin { .. } => "plugin killed",
        }
    }

    /// The pods in which plain text is excused until they are verified again, and why.
    pub fn excuse(&self) -> Option<(Vec<usize>, Excuse)> {
        match self {
            Self::Command { pod, .. } | Self::Sysctl { pod, .. } => {
                Some((vec![*pod], Excuse::NetAdmin))
            }
            Self::Flip { .. } => Some((FLIPPED.collect(), Excuse::Membership)),
            Self::Delete { pod } | Self::Create { pod } | Self::KillPlugin { pod, .. } => {
                Some((vec![*pod], Excuse::Membership))
            }
            Self::MarkedConnection { .. } | Self::Kill { .. } | Self::Restart => None,
        }
    }
}

/// A change to the rules of Underpass.
fn own_rules(rng: &mut Rng, scene: &Scene, pod: usize) -> Action {
    let table = "inet underpass";
    let chains = CHAINS[usize::from(scene.is_nat())];
    let chain = chains[rng.usize(0..chains.len())];
    let script = match rng.u32(0..10) {
        0 => format!("delete table {table}"),
        1 | 2 => format!("flush chain {table} {chain}"),
        3 => format!("insert rule {table} {chain} accept"),
        4 => format!("add rule {table} {chain} meta mark set 0x539"),
        5 => format!("add table {table} {{ flags dormant ; }}"),
        6 => {
            let family = if rng.bool() {
                "4 { 10.77.1.11 }"
            } else {
                "6 { fd77:1::b }"
            };
            format!("add element {table} own{family}")
        }
        7 => "flush ruleset".to_owned(),
        8 => format!("insert rule {table} guard tcp dport 8080 accept"),
        _ => format!("add chain {table} extra {{ type filter hook output priority -500 ; }}"),
    };
    command(pod, "nft", script, None)
}

/// A table of another program.
fn foreign_rules(rng: &mut Rng, pod: usize) -> Action {
    let (hook, rule) = [
        (
            "type route hook output priority -310",
            "meta mark set 0x539",
        ),
        ("type filter hook output priority -400", "accept"),
        (
            "type nat hook output priority -110",
            "tcp dport 8080 redirect to :9999",
        ),
        (
            "type filter hook prerouting priority -310",
            "meta mark set 0x539",
        ),
        ("type filter hook prerouting priority -310", "notrack"),
        ("type filter hook output priority -310", "notrack"),
        ("type filter hook input priority 0", "tcp dport 15006 drop"),
        ("type filter hook output priority -310", "ct mark set 0x539"),
    ][rng.usize(0..8)];
    let script = format!(
        "add table inet foreign ; add chain inet foreign c {{ {hook} ; }} ; add rule inet foreign \
         c {rule}"
    );
    command(pod, "nft", script, Some("delete table inet foreign".into()))
}

/// A change to the ip rules and to the routes of the table of Underpass.
fn policy_rule(rng: &mut Rng, pod: usize) -> Action {
    let family = if rng.bool() { "-4" } else { "-6" };
    let preference = PREFERENCES[rng.usize(0..PREFERENCES.len())];
    let other = addresses(rng.usize(STEADY))[usize::from(family == "-6")];
    match rng.u32(0..9) {
        0 | 1 => command(
            pod,
            "ip",
            format!("{family} rule del pref {}", rng.u32(32_761..32_766)),
            None,
        ),
        2 => command(
            pod,
            "ip",
            format!("{family} route flush table {TABLE}"),
            None,
        ),
        3 => {
            let route = format!("{family} route replace default dev eth0 table {TABLE}");
            command(pod, "ip", route, None)
        }
        4 => {
            // As plugins for source-based routing: without a priority, ahead of all others.
            let own = addresses(pod)[usize::from(family == "-6")];
            let rule = format!("from {own} lookup 77");
            command(
                pod,
                "ip",
                format!("{family} rule add {rule}"),
                Some(format!("{family} rule del {rule}")),
            )
        }
        _ => {
            let selector = [
                "from all".to_owned(),
                format!("to {other}"),
                "fwmark 0x539".to_owned(),
                "fwmark 0x111/0xfff".to_owned(),
                "iif lo".to_owned(),
                "ipproto tcp dport 8080".to_owned(),
                format!("iif lo ipproto tcp sport 40000 dport 8080 to {other}"),
                "ipproto tcp sport 1024-65535".to_owned(),
            ];
            let selector = &selector[rng.usize(0..selector.len())];
            let own = TABLE.to_string();
            let table = ["main", &own, "local", "77"][rng.usize(0..4)];
            let rule = format!("pref {preference} {selector} lookup {table}");
            command(
                pod,
                "ip",
                format!("{family} rule add {rule}"),
                Some(format!("{family} rule del {rule}")),
            )
        }
    }
}

/// A change to interfaces, addresses and main routes.
fn link(rng: &mut Rng, pod: usize) -> Action {
    let [v4, v6] = addresses(pod);
    let (add, undo) = [
        (
            format!("addr add 10.99.0.{pod}/32 dev eth0"),
            format!("addr del 10.99.0.{pod}/32 dev eth0"),
        ),
        (
            format!("addr add fd99::{pod}/128 dev lo"),
            format!("addr del fd99::{pod}/128 dev lo"),
        ),
        (
            format!("-6 addr del {v6}/128 dev eth0"),
            format!("-6 addr add {v6}/128 dev eth0 nodad"),
        ),
        (
            // With its last address, an interface loses its routes.
            format!("addr del {v4}/32 dev eth0"),
            format!(
                "addr add {v4}/32 dev eth0 ; route add 169.254.77.1 dev eth0 ; route add default \
                 via 169.254.77.1"
            ),
        ),
        ("link add extra type dummy".into(), "link del extra".into()),
        (
            "link add name bridge0 up type bridge".into(),
            "link del bridge0".into(),
        ),
        (
            "link add name left type veth peer name right".into(),
            "link del left".into(),
        ),
        (
            "link set eth0 mtu 1400".into(),
            "link set eth0 mtu 1500".into(),
        ),
        (
            "route del default".into(),
            "route add default via 169.254.77.1 dev eth0 onlink".into(),
        ),
        (
            "tuntap add tun0 mode tun".into(),
            "tuntap del tun0 mode tun".into(),
        ),
    ][rng.usize(0..10)]
    .clone();
    command(pod, "ip", add, Some(undo))
}

fn command(pod: usize, program: &'static str, arguments: String, undo: Option<String>) -> Action {
    Action::Command {
        pod,
        program,
        arguments,
        undo,
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command {
                pod,
                program,
                arguments,
                ..
            } => write!(f, "{}: {program} {arguments}", name(*pod)),
            Self::Sysctl {
                pod, path, value, ..
            } => write!(f, "{}: {path}={value}", name(*pod)),
            Self::MarkedConnection { pod, mark } => {
                write!(f, "{}: connect with mark {mark:#x}", name(*pod))
            }
            Self::Kill { node, program } => write!(f, "{}: kill {program:?}", NODES[*node]),
            Self::Restart => write!(f, "restart what was killed"),
            Self::Flip { is_in } => write!(f, "namespace flipped: in the mesh: {is_in}"),
            Self::Delete { pod } => write!(f, "{} on {}: delete", name(*pod), NODES[node(*pod)]),
            Self::Create { pod } => write!(f, "{} on {}: create", name(*pod), NODES[node(*pod)]),
            Self::KillPlugin { pod, after } => {
                write!(f, "{}: recreate, plugin killed after {after:?}", name(*pod))
            }
        }
    }
}
