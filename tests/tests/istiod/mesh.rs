//! Proxies on two nodes under istiod: its workloads and policies take effect on their traffic.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use netns::NetNs;
use serde_json::json;
use underpass_tests::cluster::{Cluster, ClusterPod, MeshNode, missing, root, shake_hands};
use underpass_tests::sandbox::{connect, listen, read_line, serve_echo, until};
use underpass_tests::skip::skip;

/// A client on one node and a server on the other, both in the mesh.
struct ClientAndServer {
    near: MeshNode,
    far: MeshNode,
    client: ClusterPod,
    server: ClusterPod,
    /// The addresses of the service whose endpoint is the server.
    vips: [IpAddr; 2],
}

impl ClientAndServer {
    fn new(cluster: &Cluster, namespace: &str) -> Self {
        cluster.namespace(namespace, &[("istio.io/dataplane-mode", "ambient")]);
        let vips = cluster.service(namespace, "server", 80, 8080);
        let mut near = MeshNode::start(cluster, &format!("{namespace}-1"), namespace);
        let mut far = MeshNode::start(cluster, &format!("{namespace}-2"), namespace);
        let client = near.pod(cluster, "client");
        let server = far.pod(cluster, "server");
        serve_echo(&server.netns, 8080);
        let pair = Self {
            near,
            far,
            client,
            server,
            vips,
        };
        pair.await_tunnels();
        pair
    }

    /// Waits until the server is reached by a tunnel, which istiod may announce later than the
    /// agent enrols.
    fn await_tunnels(&self) {
        for ip in self.server.ips {
            let target = format!("dst.hbone_addr={}", SocketAddr::new(ip, 8080));
            until("the proxies use a tunnel", || {
                drop(exchange(&self.client.netns, SocketAddr::new(ip, 8080)));
                self.near
                    .processes
                    .log("proxy")
                    .contains(&target)
                    .then_some(())
            });
        }
    }

    /// Waits until istiod has written its roots into the proxies' namespace, and passes them to the
    /// proxies.
    fn project_roots(&self, cluster: &Cluster) {
        let expected = cluster.istiod.roots.trusted();
        until("the roots are announced", || {
            root(cluster, "istio-system").filter(|r| *r == expected)
        });
        self.near.project_root(cluster);
        self.far.project_root(cluster);
    }

    /// Creates a serving pod on each node.
    fn new_pods(&mut self, cluster: &Cluster, name: &str) -> [ClusterPod; 2] {
        [(&mut self.near, "near"), (&mut self.far, "far")].map(|(node, at)| {
            let pod = node.pod(cluster, &format!("{name}-{at}"));
            serve_echo(&pod.netns, 8080);
            pod
        })
    }

    /// The serial numbers of all certificates that both proxies have.
    fn serials(&self) -> BTreeSet<String> {
        let of = |node: &MeshNode| {
            let status = node.status();
            let certificates = status["certificates"].as_array().unwrap().clone();
            certificates
                .iter()
                .filter_map(|c| c["serial"].as_str().map(str::to_owned))
                .collect::<Vec<_>>()
        };
        [&self.near, &self.far].into_iter().flat_map(of).collect()
    }

    /// The addresses of the server: its own and the service's, in both families.
    fn destinations(&self) -> Vec<SocketAddr> {
        let pods = self.server.ips.map(|ip| SocketAddr::new(ip, 8080));
        pods.into_iter()
            .chain(self.vips.map(|ip| SocketAddr::new(ip, 80)))
            .collect()
    }

    /// Exchanges a line with each of the server's addresses; the server sees the client's address.
    #[track_caller]
    fn exchange_with_all(&self) {
        for to in self.destinations() {
            let (_, seen) =
                exchange(&self.client.netns, to).unwrap_or_else(|e| panic!("{to}: {e}"));
            assert!(
                self.client.ips.map(|ip| ip.to_string()).contains(&seen),
                "{to} saw {seen}"
            );
        }
    }
}

/// Connects and exchanges a line; returns the connection and the client's address as the server
/// sees it.
fn exchange(from: &NetNs, to: SocketAddr) -> io::Result<(TcpStream, String)> {
    let mut stream = connect(from, to)?;
    let seen = read_line(&mut stream)?;
    echo(&mut stream)?;
    Ok((stream, seen))
}

fn echo(stream: &mut TcpStream) -> io::Result<()> {
    writeln!(stream, "a line")?;
    let received = read_line(stream)?;
    if received == "a line" {
        Ok(())
    } else {
        Err(io::Error::other(format!("received {received:?}")))
    }
}

fn identity(pod: &ClusterPod) -> String {
    format!(
        "spiffe://cluster.local/ns/{}/sa/{}",
        pod.namespace, pod.account
    )
}

#[test]
fn pods_on_two_nodes_communicate_with_istiods_certificates() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let cluster = Cluster::shared();
    let pair = ClientAndServer::new(&cluster, "meet");
    pair.exchange_with_all();
    let identities = [
        format!("src.identity=\"{}\"", identity(&pair.client)),
        format!("dst.identity=\"{}\"", identity(&pair.server)),
    ];
    for (node, direction) in [
        (&pair.near, "direction=\"outbound\""),
        (&pair.far, "direction=\"inbound\""),
    ] {
        for ip in pair.server.ips {
            let target = format!("dst.hbone_addr={}", SocketAddr::new(ip, 8080));
            node.log_with(&[direction, &target, &identities[0], &identities[1]]);
        }
        assert!(node.is_in_sync(), "{}", node.status());
    }
    let synced = cluster.debug("syncz").to_string();
    for node in [&pair.near, &pair.far] {
        assert!(
            synced.contains(&node.cluster_node.proxy.name),
            "istiod does not know {}: {synced}",
            node.cluster_node.proxy.name
        );
    }
}

#[test]
fn workloads_become_reachable_and_unreachable_as_istiod_reports() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let cluster = Cluster::shared();
    let mut pair = ClientAndServer::new(&cluster, "change");
    let [vip, _] = cluster.service("change", "named", 80, 8080);
    let answer = |pair: &ClientAndServer| {
        exchange(&pair.client.netns, SocketAddr::new(vip, 80)).map(|(_, name)| name)
    };
    assert!(answer(&pair).is_err(), "no endpoint serves yet");
    let [first, second] =
        [(&mut pair.far, "first"), (&mut pair.near, "second")].map(|(node, name)| {
            let pod = cluster.pod_of(&node.cluster_node, "change", "named", name);
            serve_name(&pod);
            node.enrol(&pod);
            cluster.announce(&pod, true);
            pod
        });
    for pod in [&first, &second] {
        until("each pod is reached", || {
            answer(&pair).ok().filter(|name| *name == pod.name)
        });
    }
    cluster.delete(&first);
    let only_second = || (0..20).all(|_| answer(&pair).is_ok_and(|name| name == second.name));
    until("only the second pod is reached", || {
        only_second().then_some(())
    });
    cluster.delete(&second);
    until("no endpoint serves any more", || {
        answer(&pair).is_err().then_some(())
    });
    pair.exchange_with_all();
}

/// Echoes like [`serve_echo`], with the pod's name instead of the client's address.
fn serve_name(pod: &ClusterPod) {
    let (listener, name) = (listen(&pod.netns, 8080), pod.name.clone());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let name = name.clone();
            std::thread::spawn(move || {
                writeln!(stream, "{name}")?;
                io::copy(&mut stream.try_clone()?, &mut stream)
            });
        }
    });
}

#[test]
fn a_strict_peer_authentication_refuses_plain_text_until_it_is_deleted() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let cluster = Cluster::shared();
    let pair = ClientAndServer::new(&cluster, "strict");
    cluster.namespace("strict-outside", &[]);
    let outsider = cluster.pod(&pair.near.cluster_node, "strict-outside", "outsider");
    // No proxy translates a service for an outsider.
    let pods: Vec<_> = pair.destinations().into_iter().take(2).collect();
    for to in &pods {
        exchange(&outsider.netns, *to).unwrap_or_else(|e| panic!("permissive: {to}: {e}"));
    }
    cluster.policy(
        "PeerAuthentication",
        "strict",
        "default",
        &json!({ "mtls": { "mode": "STRICT" } }),
    );
    for to in &pods {
        until("plain text is refused", || {
            exchange(&outsider.netns, *to).is_err().then_some(())
        });
    }
    pair.far.log_with(&[
        "direction=\"inbound\"",
        "istio-system/istio_converted_static_strict",
    ]);
    pair.exchange_with_all();
    let path = "/apis/security.istio.io/v1/namespaces/strict/peerauthentications/default";
    cluster.kubernetes.api.delete(path).unwrap();
    for to in &pods {
        until("plain text is accepted again", || {
            exchange(&outsider.netns, *to).ok()
        });
    }
}

#[test]
fn authorization_policies_refuse_and_close_matching_connections() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let cluster = Cluster::shared();
    let mut pair = ClientAndServer::new(&cluster, "denied");
    let neighbour = pair.near.pod(&cluster, "neighbour");
    let all = pair.destinations();
    let mut open: Vec<_> = all
        .iter()
        .map(|to| exchange(&pair.client.netns, *to).unwrap().0)
        .collect();
    let of_client = json!([
        { "from": [{ "source": { "principals": ["cluster.local/ns/denied/sa/client"] } }] },
    ]);
    let spec = json!({
        "selector": { "matchLabels": { "app": "server" } },
        "action": "DENY",
        "rules": of_client,
    });
    cluster.policy("AuthorizationPolicy", "denied", "no-client", &spec);
    for (stream, to) in open.iter_mut().zip(&all) {
        until("an open connection is closed", || {
            echo(stream).is_err().then_some(())
        });
        assert!(
            exchange(&pair.client.netns, *to).is_err(),
            "{to} is refused"
        );
        exchange(&neighbour.netns, *to).unwrap_or_else(|e| panic!("neighbour to {to}: {e}"));
    }
    pair.far
        .log_with(&["direction=\"inbound\"", "denied/no-client", "sa/client"]);
    // The policy becomes an allow policy for the whole namespace.
    let to_port = json!([{ "to": [{ "operation": { "ports": ["9999"] } }] }]);
    cluster.policy(
        "AuthorizationPolicy",
        "denied",
        "no-client",
        &json!({ "action": "ALLOW", "rules": to_port }),
    );
    until("the neighbour is refused", || {
        exchange(&neighbour.netns, all[0]).is_err().then_some(())
    });
    let path = "/apis/security.istio.io/v1/namespaces/denied/authorizationpolicies/no-client";
    cluster.kubernetes.api.delete(path).unwrap();
    until("the client is served again", || {
        exchange(&pair.client.netns, all[0]).ok()
    });
    pair.exchange_with_all();
}

#[test]
fn a_root_is_replaced_without_interrupting_the_mesh() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let mut cluster = Cluster::exclusive();
    let mut pair = ClientAndServer::new(&cluster, "rotation");
    let mut open = exchange(&pair.client.netns, pair.destinations()[0])
        .unwrap()
        .0;
    let first = pair.serials();

    // Both roots are trusted: a proxy that requests a certificate learns this and renews the
    // others.
    let next = cluster.istiod.roots.announce();
    pair.project_roots(&cluster);
    let _beside = pair.new_pods(&cluster, "announced");
    until("every certificate is renewed", || {
        pair.serials().is_disjoint(&first).then_some(())
    });
    pair.exchange_with_all();

    // The new root signs: certificates of both roots accept each other.
    let new = next.certificate.clone();
    cluster.istiod.roots.sign_with(next);
    until("istiod is trusted by the new root", || {
        shake_hands(&pair.near.cluster_node.netns, &new).ok()
    });
    let signed = pair.new_pods(&cluster, "signed");
    pair.exchange_with_all();
    for (from, to) in [
        (&pair.client, &signed[1]),
        (&signed[0], &pair.server),
        (&signed[1], &signed[0]),
    ] {
        let to = SocketAddr::new(to.ips[1], 8080);
        exchange(&from.netns, to).unwrap_or_else(|e| panic!("{} to {to}: {e}", from.name));
    }
    echo(&mut open).unwrap();

    // Only the new root is trusted, and the proxies are restarted.
    cluster.istiod.roots.retire_others();
    pair.project_roots(&cluster);
    for node in [&mut pair.near, &mut pair.far] {
        let old = node.proxy;
        node.processes.kill(old);
        node.start_proxy();
    }
    pair.exchange_with_all();
    exchange(&signed[0].netns, pair.destinations()[1]).unwrap();
}

#[test]
fn the_mesh_works_while_istiod_is_down_and_catches_up_later() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let mut cluster = Cluster::exclusive();
    let mut pair = ClientAndServer::new(&cluster, "away");
    let mut open = exchange(&pair.client.netns, pair.destinations()[2])
        .unwrap()
        .0;
    cluster.istiod.stop();
    for node in [&pair.near, &pair.far] {
        until("the proxy reports that istiod is unreachable", || {
            (!node.is_connected()).then_some(())
        });
    }
    pair.exchange_with_all();
    echo(&mut open).unwrap();
    // Changes during the outage are not known yet.
    let late = cluster.pod_of(&pair.near.cluster_node, "away", "server", "late");
    serve_echo(&late.netns, 8080);
    cluster.delete(&pair.server);
    pair.exchange_with_all();
    cluster.start_istiod();
    for node in [&pair.near, &pair.far] {
        until("the proxy is in sync again", || {
            node.is_in_sync().then_some(())
        });
    }
    pair.near.enrol(&late);
    cluster.announce(&late, true);
    let target = format!("dst.hbone_addr={}", SocketAddr::new(late.ips[0], 8080));
    until("the service leads to the late pod", || {
        drop(exchange(
            &pair.client.netns,
            SocketAddr::new(pair.vips[0], 80),
        ));
        pair.near
            .processes
            .log("proxy")
            .contains(&target)
            .then_some(())
    });
    echo(&mut open).unwrap();
}

/// A proxy with another account's token gets no certificates of pods.
#[test]
fn a_token_of_another_account_gets_no_certificate_of_a_pod() {
    if let Some(why) = missing() {
        return skip(&why);
    }
    let cluster = Cluster::shared();
    let mut pair = ClientAndServer::new(&cluster, "accounts");
    let metadata = json!({ "name": "other", "namespace": "accounts" });
    cluster.apply(&json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata }));
    let good = cluster.proxy_token(&pair.near.cluster_node);
    let of_other_account = cluster
        .kubernetes
        .api
        .token("accounts", "other", Some("istio-ca"), None)
        .unwrap();
    let for_others = cluster
        .kubernetes
        .api
        .token("istio-system", "ztunnel", None, None)
        .unwrap();
    for (name, token) in [("late", of_other_account), ("later", for_others)] {
        std::fs::write(pair.near.processes.file("token"), token).unwrap();
        let pod = pair.near.pod(&cluster, name);
        let own = identity(&pod);
        let trouble = until("the certificate request is rejected", || {
            let status = pair.near.status();
            let all = status["certificates"].as_array()?.clone();
            let certificate = all.iter().find(|c| c["identity"] == *own)?;
            (certificate["state"] == "Initializing").then_some(())?;
            Some(certificate["trouble"].as_str()?.to_owned())
        });
        assert!(trouble.contains("UP-CONTROL-"), "{trouble}");
        // Without a certificate, nothing of the pod leaves.
        for ip in pair.server.ips {
            assert!(exchange(&pod.netns, SocketAddr::new(ip, 8080)).is_err());
        }
        std::fs::write(pair.near.processes.file("token"), &good).unwrap();
        until("a certificate is issued for a valid token", || {
            exchange(&pod.netns, SocketAddr::new(pair.server.ips[0], 8080)).ok()
        });
    }
}
