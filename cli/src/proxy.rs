//! What the proxy of this node knows, as tables.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;

use error_code::cli as codes;
use serde_json::Value;

use crate::ask::read;
use crate::failure::failure;
use crate::proxy_of_node::ask_proxy;
use crate::table::Table;

/// Where the proxy answers, unless it is told otherwise.
pub(crate) const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);

/// Where the proxy is asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Asked {
    /// The proxy's admin address.
    #[arg(long, env = "UNDERPASS_PROXY_ADMIN", default_value_t = ADMIN)]
    pub(crate) proxy: SocketAddr,
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What can be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum List {
    /// Everything with an address.
    Workloads,
    /// What stands for workloads.
    Services,
    /// Who may reach whom.
    Policies,
    /// What the pods of this node prove who they are with.
    Certificates,
    /// What is open now.
    Connections,
}

/// Prints one list of the proxy's configuration dump.
pub(crate) fn list(asked: &Asked, list: List) -> anyhow::Result<ExitCode> {
    let (status, body) = ask_proxy(asked.proxy, "/config_dump")?;
    let dump: Value = read(status, &body)?;
    let (key, table): (&str, fn(&Value) -> Table) = match list {
        List::Workloads => ("workloads", workloads),
        List::Services => ("services", services),
        List::Policies => ("policies", policies),
        List::Certificates => ("certificates", certificates),
        List::Connections => ("workloadState", connections),
    };
    let part = dump.get(key).ok_or_else(|| failure(&codes::STRANGE_ANSWER, format!("no {key} in the answer")))?;
    if asked.json {
        println!("{}", serde_json::to_string_pretty(part)?);
    } else {
        print!("{}", table(part).text());
    }
    Ok(ExitCode::SUCCESS)
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A text, or `-` where there is none.
fn text(value: &Value, key: &str) -> String {
    match value[key].as_str() {
        Some("") | None => "-".to_owned(),
        Some(text) => text.to_owned(),
    }
}

fn gateway(value: &Value) -> String {
    value["waypoint"]["destination"].as_str().unwrap_or("-").to_owned()
}

fn joined(value: &Value) -> String {
    let all: Vec<&str> = items(value).filter_map(Value::as_str).collect();
    if all.is_empty() { "-".to_owned() } else { all.join(",") }
}

fn workloads(value: &Value) -> Table {
    Table::new(
        &["NAMESPACE", "NAME", "ADDRESS", "NODE", "PROTOCOL", "WAYPOINT", "STATUS"],
        items(value).map(|w| {
            let at =
                if items(&w["workloadIps"]).next().is_some() { joined(&w["workloadIps"]) } else { text(w, "hostname") };
            vec![
                text(w, "namespace"),
                text(w, "name"),
                at,
                text(w, "node"),
                text(w, "protocol"),
                gateway(w),
                text(w, "status"),
            ]
        }),
    )
}

fn services(value: &Value) -> Table {
    Table::new(
        &["NAMESPACE", "NAME", "HOSTNAME", "ADDRESS", "PORTS", "WAYPOINT", "ENDPOINTS"],
        items(value).map(|s| {
            let bare = |vip: &str| vip.split_once('/').map_or(vip, |(_, address)| address).to_owned();
            let vips: Vec<String> = items(&s["vips"]).filter_map(|v| v.as_str().map(bare)).collect();
            let ports: Vec<String> = s["ports"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(port, target)| format!("{port}->{target}"))
                .collect();
            let or = |all: Vec<String>| if all.is_empty() { "-".to_owned() } else { all.join(",") };
            let endpoints = s["endpoints"].as_object().cloned().unwrap_or_default();
            let healthy = endpoints.values().filter(|e| e["status"] != "Unhealthy").count();
            vec![
                text(s, "namespace"),
                text(s, "name"),
                text(s, "hostname"),
                or(vips),
                or(ports),
                gateway(s),
                format!("{healthy}/{}", endpoints.len()),
            ]
        }),
    )
}

fn policies(value: &Value) -> Table {
    Table::new(
        &["NAMESPACE", "NAME", "ACTION", "SCOPE", "RULES", "MODE"],
        items(value).map(|p| {
            let mode = if p["dryRun"] == true { "dry run" } else { "enforced" };
            vec![
                text(p, "namespace"),
                text(p, "name"),
                text(p, "action"),
                text(p, "scope"),
                items(&p["rules"]).count().to_string(),
                mode.to_owned(),
            ]
        }),
    )
}

fn certificates(value: &Value) -> Table {
    Table::new(
        &["IDENTITY", "TYPE", "STATE", "SERIAL", "NOT BEFORE", "NOT AFTER"],
        items(value).flat_map(|c| {
            let row = |kind: &str, certificate: Option<&Value>| {
                let of = |key| certificate.map_or_else(|| "-".to_owned(), |c| text(c, key));
                let (identity, state) = (text(c, "identity"), text(c, "state"));
                vec![identity, kind.to_owned(), state, of("serialNumber"), of("validFrom"), of("expirationTime")]
            };
            let chain = items(&c["certChain"]).enumerate();
            let mut rows: Vec<Vec<String>> =
                chain.map(|(at, c)| row(if at == 0 { "leaf" } else { "intermediate" }, Some(c))).collect();
            rows.extend(items(&c["rootCerts"]).map(|c| row("root", Some(c))));
            if rows.is_empty() {
                rows.push(row("-", None));
            }
            rows
        }),
    )
}

fn connections(value: &Value) -> Table {
    Table::new(
        &["POD", "DIRECTION", "SOURCE", "ASKED FOR", "GOES TO", "PROTOCOL", "PEER", "RECEIVED", "SENT", "AGE"],
        value.as_object().into_iter().flatten().flat_map(|(_, pod)| {
            let name = format!("{}/{}", text(&pod["info"], "namespace"), text(&pod["info"], "name"));
            let of = move |direction: &'static str| {
                let name = name.clone();
                items(&pod["connections"][direction]).map(move |c| {
                    let bytes = |key: &str| c[key].as_u64().unwrap_or_default().to_string();
                    vec![
                        name.clone(),
                        direction.to_owned(),
                        text(c, "src"),
                        text(c, "originalDst"),
                        text(c, "actualDst"),
                        text(c, "protocol"),
                        text(c, "peerIdentity"),
                        bytes("bytesReceived"),
                        bytes("bytesSent"),
                        format!("{} s", c["ageMs"].as_u64().unwrap_or_default() / 1000),
                    ]
                })
            };
            of("inbound").chain(of("outbound")).collect::<Vec<_>>()
        }),
    )
}
