//! Example plans, whose tables the files beside the builders show. The builders' documentation
//! includes the files. A unit test compares them with what the builders render, and
//! `tests/tests/golden.rs` with what the `nft` program prints once the kernel has the tables.

use std::net::IpAddr;

use nft::Table;

use crate::driver::Exceptions;
use crate::plan::{Exclusions, Network, Plan, ProxyUser};
use crate::routed::transition::{joining_table, leaving_table, stop_capturing_table};
use crate::sockets::TcpConnection;
use crate::{host, nat, routed};

/// A table and the file that shows it.
#[derive(Debug)]
pub struct ExampleTable {
    /// The file, relative to the source folder of this crate.
    pub file: &'static str,
    /// The table.
    pub table: Table,
}

/// Renders the table of every example.
pub fn example_tables() -> Vec<ExampleTable> {
    let (default, all, open) = (default_plan(), all_options(), exceptions());
    let dns = Plan {
        dns: true,
        ..default_plan()
    };
    let bypass = Plan {
        bypass_inbound: true,
        ..default_plan()
    };
    let pods_v4 = (1..=3).map(|host| [10, 78, 0, host].into());
    let pods = pods_v4.chain([ipv6(1), ipv6(2)]).collect();
    let none = Exceptions::new();
    let example = |file, table| ExampleTable { file, table };
    vec![
        example("routed/default.nft", routed::table::table(&default, &none)),
        example("routed/all_options.nft", routed::table::table(&all, &open)),
        example(
            "routed/bypass_inbound.nft",
            routed::table::table(&bypass, &none),
        ),
        example("routed/joining.nft", joining_table(&default, false)),
        example("routed/rejoining.nft", joining_table(&dns, true)),
        example(
            "routed/stop_capturing.nft",
            stop_capturing_table(&dns, &open),
        ),
        example("routed/leaving.nft", leaving_table(&all)),
        example("nat/default.nft", nat::table::table(&default)),
        example("nat/all_options.nft", nat::table::table(&all)),
        example("nat/joining.nft", nat::table::joining_table(&default)),
        example("nat/leaving.nft", nat::table::leaving_table(&all)),
        example("host.nft", host::table(&pods)),
    ]
}

fn default_plan() -> Plan {
    Plan::for_pod([[10, 78, 0, 1].into(), ipv6(1)])
}

/// A plan with every option that adds rules, except `bypass_inbound`, which removes some.
fn all_options() -> Plan {
    let net = |address: IpAddr, prefix| ipnet::IpNet::new(address, prefix).into_iter().collect();
    Plan {
        dns: true,
        proxy_user: Some(ProxyUser { uid: 0, gid: 1337 }),
        reroute_interfaces: "vm0".parse().into_iter().collect(),
        networks: network("172.17.0.1/16", "docker0").into_iter().collect(),
        exclude: Exclusions {
            inbound_ports: [9100].into(),
            inbound_cidrs: net([10, 20, 0, 0].into(), 16),
            outbound_ports: [5432].into(),
            outbound_cidrs: net(ipv6(0), 64),
        },
        ..default_plan()
    }
}

fn network(address: &str, bridge: &str) -> Option<Network> {
    Some(Network {
        address: address.parse().ok()?,
        bridge: Some(bridge.parse().ok()?),
    })
}

/// The exceptions for two connections that were open when the pod joined.
fn exceptions() -> Exceptions {
    let connection = |peer: IpAddr| TcpConnection {
        local_port: 40000,
        peer: (peer, 443).into(),
    };
    [[10, 78, 0, 2].into(), ipv6(2)].map(connection).into()
}

fn ipv6(host: u16) -> IpAddr {
    [0xfd78, 0, 0, 0, 0, 0, 0, host].into()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Compares a file with what it should contain, or writes it if `UPDATE_GOLDEN` is set.
    fn assert_golden(file: &str, expected: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, expected).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap();
        assert_eq!(golden, expected, "{file}; UPDATE_GOLDEN=1 rewrites it");
    }

    #[test]
    fn tables_are_rendered_as_their_files_show() {
        for ExampleTable { file, table } in example_tables() {
            assert_golden(file, &table.to_string());
        }
    }

    #[test]
    fn ip_rules_and_routes_are_rendered_as_their_file_shows() {
        let plan = all_options();
        let rules = routed::table::policy_rules(&plan).into_iter();
        let routes = routed::table::routes(&plan).into_iter();
        let lines = rules
            .map(|r| format!("{r}\n"))
            .chain(routes.map(|r| format!("{r}\n")));
        assert_golden("routed/all_options.rules", &lines.collect::<String>());
    }

    #[test]
    fn iptables_input_is_rendered_as_its_files_show() {
        let input = |tables: &[crate::XtablesRules]| -> String {
            tables.iter().map(|t| t.restore_input(&[])).collect()
        };
        let (all, leaving) = (all_options(), nat::xtables::leaving_tables(&all_options()));
        let tables = nat::xtables::tables(&all);
        assert_golden("nat/all_options.iptables", &input(&tables));
        assert_golden("nat/leaving.iptables", &input(&leaving));
    }
}
