//! Lists of the configuration and state of the proxy of this node.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use error_code::cli as codes;
use serde_json::Value;

use crate::failure::failure;
use crate::output::print_as;
use crate::proxy_client::query_proxy;
use crate::table::Table;

/// Default admin address of the proxy.
pub(crate) const ADMIN: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), istio::port::ADMIN);

/// Options of commands that query the proxy.
#[derive(Debug, clap::Args)]
pub(crate) struct ProxyArgs {
    /// Admin address of the proxy.
    #[arg(long, env = "UNDERPASS_PROXY_ADMIN", default_value_t = ADMIN)]
    pub(crate) proxy: SocketAddr,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A list that can be printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum List {
    /// Workloads.
    Workloads,
    /// Services.
    Services,
    /// Authorization policies.
    Policies,
    /// Certificates of the pods of this node.
    Certificates,
    /// Open connections.
    Connections,
}

/// Prints a list of the proxy's configuration dump.
pub(crate) fn list(args: &ProxyArgs, list: List) -> anyhow::Result<()> {
    let dump: Value = query_proxy(args.proxy, "/config_dump")?.decode()?;
    let (key, table): (&str, fn(&Value) -> String) = match list {
        List::Workloads => ("workloads", workloads),
        List::Services => ("services", services),
        List::Policies => ("policies", policies),
        List::Certificates => ("certificates", certificates),
        List::Connections => ("workloadState", connections),
    };
    let missing = || {
        failure(
            &codes::UNEXPECTED_ANSWER,
            format!("the response has no {key}"),
        )
    };
    let part = dump.get(key).ok_or_else(missing)?;
    print_as(args.json, part, || table(part))
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Returns a text field, or `-` if it is missing or empty.
fn text(value: &Value, key: &str) -> String {
    match value[key].as_str() {
        Some("") | None => "-".to_owned(),
        Some(text) => text.to_owned(),
    }
}

fn waypoint(value: &Value) -> String {
    let waypoint = value["waypoint"]["destination"].as_str();
    waypoint.unwrap_or("-").to_owned()
}

/// Joins the items of a cell, which is `-` without items.
fn joined(items: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = items.collect();
    if all.is_empty() {
        "-".to_owned()
    } else {
        all.join(",")
    }
}

fn workloads(value: &Value) -> String {
    let address = |w: &Value| {
        let ips = items(&w["workloadIps"]);
        match w["workloadIps"][0] {
            Value::Null => text(w, "hostname"),
            _ => joined(ips.filter_map(|ip| ip.as_str().map(str::to_owned))),
        }
    };
    Table::of(items(value))
        .column("NAMESPACE", |w| text(w, "namespace"))
        .column("NAME", |w| text(w, "name"))
        .column("ADDRESS", |w| address(w))
        .column("NODE", |w| text(w, "node"))
        .column("PROTOCOL", |w| text(w, "protocol"))
        .column("WAYPOINT", |w| waypoint(w))
        .column("STATUS", |w| text(w, "status"))
        .text()
}

fn services(value: &Value) -> String {
    let addresses = |s: &Value| {
        let vips = items(&s["vips"]).filter_map(Value::as_str);
        joined(vips.map(|vip| {
            vip.split_once('/')
                .map_or(vip, |(_, address)| address)
                .to_owned()
        }))
    };
    let ports = |s: &Value| {
        let ports = s["ports"].as_object().into_iter().flatten();
        joined(ports.map(|(port, target)| format!("{port}->{target}")))
    };
    let endpoints = |s: &Value| {
        let endpoints = s["endpoints"].as_object().cloned().unwrap_or_default();
        let healthy = endpoints.values().filter(|e| e["status"] != "Unhealthy");
        format!("{}/{}", healthy.count(), endpoints.len())
    };
    Table::of(items(value))
        .column("NAMESPACE", |s| text(s, "namespace"))
        .column("NAME", |s| text(s, "name"))
        .column("HOSTNAME", |s| text(s, "hostname"))
        .column("ADDRESS", |s| addresses(s))
        .column("PORTS", |s| ports(s))
        .column("WAYPOINT", |s| waypoint(s))
        .column("ENDPOINTS", |s| endpoints(s))
        .text()
}

fn policies(value: &Value) -> String {
    let mode = |p: &Value| match p["dryRun"] {
        Value::Bool(true) => "dry run".to_owned(),
        _ => "enforced".to_owned(),
    };
    Table::of(items(value))
        .column("NAMESPACE", |p| text(p, "namespace"))
        .column("NAME", |p| text(p, "name"))
        .column("ACTION", |p| text(p, "action"))
        .column("SCOPE", |p| text(p, "scope"))
        .column("RULES", |p| items(&p["rules"]).count().to_string())
        .column("MODE", |p| mode(p))
        .text()
}

fn certificates(value: &Value) -> String {
    let rows = items(value).flat_map(|entry| {
        let kind = |index| if index == 0 { "leaf" } else { "intermediate" };
        let chain = items(&entry["certChain"])
            .enumerate()
            .map(|(i, c)| (entry, kind(i), c));
        let roots = items(&entry["rootCerts"]).map(|c| (entry, "root", c));
        let mut rows: Vec<_> = chain.chain(roots).collect();
        if rows.is_empty() {
            rows.push((entry, "-", &Value::Null));
        }
        rows
    });
    Table::of(rows)
        .column("IDENTITY", |(entry, ..)| text(entry, "identity"))
        .column("TYPE", |(_, kind, _)| (*kind).to_owned())
        .column("STATE", |(entry, ..)| text(entry, "state"))
        .column("SERIAL", |(.., c)| text(c, "serialNumber"))
        .column("NOT BEFORE", |(.., c)| text(c, "validFrom"))
        .column("NOT AFTER", |(.., c)| text(c, "expirationTime"))
        .text()
}

fn connections(value: &Value) -> String {
    let pods = value.as_object().into_iter().flat_map(|pods| pods.values());
    let rows = pods.flat_map(|pod| {
        let directions = ["inbound", "outbound"].into_iter();
        directions.flat_map(move |direction| {
            let connections = items(&pod["connections"][direction]);
            connections.map(move |c| (&pod["info"], direction, c))
        })
    });
    let bytes = |c: &Value, key: &str| c[key].as_u64().unwrap_or_default().to_string();
    let age = |c: &Value| format!("{} s", c["ageMs"].as_u64().unwrap_or_default() / 1000);
    Table::of(rows)
        .column("POD", |(pod, ..)| {
            format!("{}/{}", text(pod, "namespace"), text(pod, "name"))
        })
        .column("DIRECTION", |(_, direction, _)| (*direction).to_owned())
        .column("SOURCE", |(.., c)| text(c, "src"))
        .column("ORIGINAL DST", |(.., c)| text(c, "originalDst"))
        .column("ACTUAL DST", |(.., c)| text(c, "actualDst"))
        .column("PROTOCOL", |(.., c)| text(c, "protocol"))
        .column("PEER", |(.., c)| text(c, "peerIdentity"))
        .column("RECEIVED", |(.., c)| bytes(c, "bytesReceived"))
        .column("SENT", |(.., c)| bytes(c, "bytesSent"))
        .column("AGE", |(.., c)| age(c))
        .text()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The rows below the headings, with single spaces between the cells.
    fn rows(table: &str) -> Vec<String> {
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        table.lines().skip(1).map(words).collect()
    }

    #[test]
    fn every_list_has_a_row_per_item() {
        let value = json!([
            { "namespace": "n", "name": "a", "workloadIps": ["10.0.0.1", "fd00::1"], "node": "x",
              "protocol": "HBONE", "waypoint": { "destination": "/10.0.0.9" },
              "status": "Healthy" },
            { "namespace": "n", "name": "b", "hostname": "db.example", "node": "" },
        ]);
        assert_eq!(
            rows(&workloads(&value)),
            [
                "n a 10.0.0.1,fd00::1 x HBONE /10.0.0.9 Healthy",
                "n b db.example - - - -",
            ]
        );
        let value = json!([{
            "namespace": "n", "name": "s", "hostname": "s.n",
            "vips": ["net/10.96.0.1", "10.96.0.2"], "ports": { "80": 8080 },
            "endpoints": { "a": { "status": "Healthy" }, "b": { "status": "Unhealthy" } },
        }]);
        assert_eq!(
            rows(&services(&value)),
            ["n s s.n 10.96.0.1,10.96.0.2 80->8080 - 1/2"]
        );
        let value = json!([
            { "namespace": "n", "name": "p", "action": "Deny", "scope": "Namespace",
              "rules": [1, 2] },
            { "namespace": "n", "name": "q", "action": "Allow", "scope": "Global", "dryRun": true },
        ]);
        assert_eq!(
            rows(&policies(&value)),
            [
                "n p Deny Namespace 2 enforced",
                "n q Allow Global 0 dry run"
            ]
        );
        let value = json!([
            { "identity": "i", "state": "Available",
              "certChain": [{ "serialNumber": "1", "validFrom": "f", "expirationTime": "t" }, {}],
              "rootCerts": [{}] },
            { "identity": "j", "state": "Initializing" },
        ]);
        assert_eq!(
            rows(&certificates(&value)),
            [
                "i intermediate Available - - -",
                "i leaf Available 1 f t",
                "i root Available - - -",
                "j - Initializing - - -",
            ]
        );
        let connection = json!({ "src": "a", "originalDst": "b", "actualDst": "c", "protocol":
            "HBONE", "bytesReceived": 1, "bytesSent": 2, "ageMs": 3999 });
        let value = json!({ "uid": { "info": { "namespace": "n", "name": "p" },
            "connections": { "inbound": [], "outbound": [connection] } } });
        assert_eq!(
            rows(&connections(&value)),
            ["n/p outbound a b c HBONE - 1 2 3 s"]
        );
    }
}
