//! Proxies of two nodes under istiod: what it says of pods and policies is what their traffic meets.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use netns::NetNs;
use serde_json::json;
use underpass_tests::cluster::{Cluster, MeshNode, Pod, missing, root, shake_hands};
use underpass_tests::sandbox::{await_within, connect, listen, read_line, serve_echo, until};
use underpass_tests::skip::skip;

/// A client on one node and a server on the other, both in the mesh.
struct Pair {
    near: MeshNode,
    far: MeshNode,
    client: Pod,
    server: Pod,
    /// Of the service that has the server as its endpoint.
    vips: [IpAddr; 2],
}

impl Pair {
    fn new(cluster: &Cluster, namespace: &str) -> Self {
        cluster.namespace(namespace, &[("istio.io/dataplane-mode", "ambient")]);
        let vips = cluster.service(namespace, "server", 80, 8080);
        let mut near = MeshNode::start(cluster, &format!("{namespace}-1"), namespace);
        let mut far = MeshNode::start(cluster, &format!("{namespace}-2"), namespace);
        let client = near.pod(cluster, "client");
        let server = far.pod(cluster, "server");
        serve_echo(&server.netns, 8080);
        let pair = Self { near, far, client, server, vips };
        pair.until_tunnelled();
        pair
    }

    /// istiod may say a moment later than the agent that a pod can be reached by tunnel. Until then it is reached without.
    fn until_tunnelled(&self) {
        for ip in self.server.ips {
            let target = format!("dst.hbone_addr={}", SocketAddr::new(ip, 8080));
            until("the proxies use a tunnel", || {
                drop(talk(&self.client.netns, SocketAddr::new(ip, 8080)));
                self.near.processes.log("proxy").contains(&target).then_some(())
            });
        }
    }

    /// Waits until istiod has put its roots into the proxies' namespace, and brings them from there to the proxies.
    fn project_roots(&self, cluster: &Cluster) {
        let expected = cluster.istiod.roots.trusted();
        until("the roots are announced", || root(cluster, "istio-system").filter(|r| *r == expected));
        self.near.project_root(cluster);
        self.far.project_root(cluster);
    }

    /// A fresh pod on each node, which serves.
    fn newcomers(&mut self, cluster: &Cluster, name: &str) -> [Pod; 2] {
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
            let held = status["certificates"].as_array().unwrap().clone();
            held.iter().filter_map(|c| c["serial"].as_str().map(str::to_owned)).collect::<Vec<_>>()
        };
        [&self.near, &self.far].into_iter().flat_map(of).collect()
    }

    /// Where the server is: by pod and by service, over both families.
    fn destinations(&self) -> Vec<SocketAddr> {
        let pods = self.server.ips.map(|ip| SocketAddr::new(ip, 8080));
        pods.into_iter().chain(self.vips.map(|ip| SocketAddr::new(ip, 80))).collect()
    }

    /// The client is answered everywhere, and the server sees the client's own address.
    #[track_caller]
    fn all_talk(&self) {
        for to in self.destinations() {
            let (_, seen) = talk(&self.client.netns, to).unwrap_or_else(|e| panic!("{to}: {e}"));
            assert!(self.client.ips.map(|ip| ip.to_string()).contains(&seen), "{to} saw {seen}");
        }
    }
}

/// Connects and is answered; what the server saw.
fn talk(from: &NetNs, to: SocketAddr) -> io::Result<(TcpStream, String)> {
    let mut stream = connect(from, to)?;
    let seen = read_line(&mut stream)?;
    say(&mut stream)?;
    Ok((stream, seen))
}

fn say(stream: &mut TcpStream) -> io::Result<()> {
    writeln!(stream, "a word")?;
    let heard = read_line(stream)?;
    if heard == "a word" { Ok(()) } else { Err(io::Error::other(format!("heard {heard:?}"))) }
}

fn identity(pod: &Pod) -> String {
    format!("spiffe://cluster.local/ns/{}/sa/{}", pod.namespace, pod.account)
}

#[test]
fn pods_of_two_nodes_meet_with_certificates_of_istiod() {
    if let Some(why) = missing() {
        return skip("pods_of_two_nodes_meet_with_certificates_of_istiod", &why);
    }
    let cluster = Cluster::shared();
    let pair = Pair::new(&cluster, "meet");
    pair.all_talk();
    let identities = [
        format!("src.identity=\"{}\"", identity(&pair.client)),
        format!("dst.identity=\"{}\"", identity(&pair.server)),
    ];
    for (node, direction) in [(&pair.near, "direction=\"outbound\""), (&pair.far, "direction=\"inbound\"")] {
        for ip in pair.server.ips {
            let target = format!("dst.hbone_addr={}", SocketAddr::new(ip, 8080));
            node.log_with(&[direction, &target, &identities[0], &identities[1]]);
        }
        assert!(node.line().contains("in step with"), "{}", node.line());
    }
    let synced = cluster.debug("syncz").to_string();
    for node in [&pair.near, &pair.far] {
        assert!(synced.contains(&node.place.proxy.name), "istiod does not know {}: {synced}", node.place.proxy.name);
    }
}

#[test]
fn workloads_that_istiod_adds_and_removes_are_reached_and_are_not() {
    if let Some(why) = missing() {
        return skip("workloads_that_istiod_adds_and_removes_are_reached_and_are_not", &why);
    }
    let cluster = Cluster::shared();
    let mut pair = Pair::new(&cluster, "change");
    let [vip, _] = cluster.service("change", "named", 80, 8080);
    let answer = |pair: &Pair| talk(&pair.client.netns, SocketAddr::new(vip, 80)).map(|(_, name)| name);
    assert!(answer(&pair).is_err(), "nobody serves yet");
    let [first, second] = [(&mut pair.far, "first"), (&mut pair.near, "second")].map(|(node, name)| {
        let pod = cluster.pod_of(&node.place, "change", "named", name);
        serve_name(&pod);
        node.enrol(&pod);
        cluster.announce(&pod, true);
        pod
    });
    for pod in [&first, &second] {
        until("each pod is reached", || answer(&pair).ok().filter(|name| *name == pod.name));
    }
    cluster.delete(&first);
    let only_second = || (0..20).all(|_| answer(&pair).is_ok_and(|name| name == second.name));
    until("only the second pod is reached", || only_second().then_some(()));
    cluster.delete(&second);
    until("nobody serves any more", || answer(&pair).is_err().then_some(()));
    pair.all_talk();
}

/// Tells the pod's name on each connection, in place of the client's address.
fn serve_name(pod: &Pod) {
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
        return skip("a_strict_peer_authentication_refuses_plain_text_until_it_is_deleted", &why);
    }
    let cluster = Cluster::shared();
    let pair = Pair::new(&cluster, "strict");
    cluster.namespace("strict-outside", &[]);
    let outsider = cluster.pod(&pair.near.place, "strict-outside", "outsider");
    let pods: Vec<_> = pair.destinations().into_iter().take(2).collect(); // no proxy translates a service for an outsider
    for to in &pods {
        talk(&outsider.netns, *to).unwrap_or_else(|e| panic!("permissive: {to}: {e}"));
    }
    cluster.policy("PeerAuthentication", "strict", "default", &json!({ "mtls": { "mode": "STRICT" } }));
    for to in &pods {
        until("plain text is refused", || talk(&outsider.netns, *to).is_err().then_some(()));
    }
    pair.far.log_with(&["direction=\"inbound\"", "istio-system/istio_converted_static_strict"]);
    pair.all_talk();
    let path = "/apis/security.istio.io/v1/namespaces/strict/peerauthentications/default";
    cluster.kubernetes.api.delete(path).unwrap();
    for to in &pods {
        until("plain text is accepted again", || talk(&outsider.netns, *to).ok());
    }
}

#[test]
fn authorization_policies_refuse_and_cut_whom_they_name() {
    if let Some(why) = missing() {
        return skip("authorization_policies_refuse_and_cut_whom_they_name", &why);
    }
    let cluster = Cluster::shared();
    let mut pair = Pair::new(&cluster, "denied");
    let neighbour = pair.near.pod(&cluster, "neighbour");
    let all = pair.destinations();
    let mut open: Vec<_> = all.iter().map(|to| talk(&pair.client.netns, *to).unwrap().0).collect();
    let of_client = json!([{ "from": [{ "source": { "principals": ["cluster.local/ns/denied/sa/client"] } }] }]);
    let spec = json!({ "selector": { "matchLabels": { "app": "server" } }, "action": "DENY", "rules": of_client });
    cluster.policy("AuthorizationPolicy", "denied", "no-client", &spec);
    for (stream, to) in open.iter_mut().zip(&all) {
        until("an open connection is cut", || say(stream).is_err().then_some(()));
        assert!(talk(&pair.client.netns, *to).is_err(), "{to} is refused");
        talk(&neighbour.netns, *to).unwrap_or_else(|e| panic!("neighbour to {to}: {e}"));
    }
    pair.far.log_with(&["direction=\"inbound\"", "denied/no-client", "sa/client"]);
    // Only what is allowed, in place of only what is denied; for the whole namespace.
    let to_port = json!([{ "to": [{ "operation": { "ports": ["9999"] } }] }]);
    cluster.policy("AuthorizationPolicy", "denied", "no-client", &json!({ "action": "ALLOW", "rules": to_port }));
    until("the neighbour is refused, too", || talk(&neighbour.netns, all[0]).is_err().then_some(()));
    let path = "/apis/security.istio.io/v1/namespaces/denied/authorizationpolicies/no-client";
    cluster.kubernetes.api.delete(path).unwrap();
    until("everybody is answered again", || talk(&pair.client.netns, all[0]).ok());
    pair.all_talk();
}

#[test]
fn a_root_is_replaced_while_the_mesh_goes_on() {
    if let Some(why) = missing() {
        return skip("a_root_is_replaced_while_the_mesh_goes_on", &why);
    }
    let mut cluster = Cluster::alone();
    let mut pair = Pair::new(&cluster, "rotation");
    let mut open = talk(&pair.client.netns, pair.destinations()[0]).unwrap().0;
    let first = pair.serials();

    // Both are trusted: who asks for a certificate learns it, and renews the others.
    let next = cluster.istiod.roots.announce();
    pair.project_roots(&cluster);
    let _beside = pair.newcomers(&cluster, "announced");
    until("every certificate is renewed", || pair.serials().is_disjoint(&first).then_some(()));
    pair.all_talk();

    // The new one signs: certificates of both kinds meet.
    let new = next.certificate.clone();
    cluster.istiod.roots.sign_with(next);
    until("istiod is known by the new root", || shake_hands(&pair.near.place.netns, &new).ok());
    let signed = pair.newcomers(&cluster, "signed");
    pair.all_talk();
    for (from, to) in [(&pair.client, &signed[1]), (&signed[0], &pair.server), (&signed[1], &signed[0])] {
        let to = SocketAddr::new(to.ips[1], 8080);
        talk(&from.netns, to).unwrap_or_else(|e| panic!("{} to {to}: {e}", from.name));
    }
    say(&mut open).unwrap();

    // Only the new one is trusted, and the proxies are rolled.
    cluster.istiod.roots.retire_others();
    pair.project_roots(&cluster);
    for node in [&mut pair.near, &mut pair.far] {
        let old = node.proxy;
        node.processes.kill(old);
        node.start_proxy();
    }
    pair.all_talk();
    talk(&signed[0].netns, pair.destinations()[1]).unwrap();
}

#[test]
fn while_istiod_is_away_the_mesh_goes_on_and_afterwards_it_catches_up() {
    if let Some(why) = missing() {
        return skip("while_istiod_is_away_the_mesh_goes_on_and_afterwards_it_catches_up", &why);
    }
    let mut cluster = Cluster::alone();
    let mut pair = Pair::new(&cluster, "away");
    let mut open = talk(&pair.client.netns, pair.destinations()[2]).unwrap().0;
    cluster.istiod.stop();
    for node in [&pair.near, &pair.far] {
        until("the proxy says that istiod is away", || node.line().contains("no connection to").then_some(()));
    }
    pair.all_talk();
    say(&mut open).unwrap();
    // What changes meanwhile is not known yet.
    let late = cluster.pod_of(&pair.near.place, "away", "server", "late");
    serve_echo(&late.netns, 8080);
    cluster.delete(&pair.server);
    pair.all_talk();
    cluster.start_istiod();
    for node in [&pair.near, &pair.far] {
        until("the proxy is in step again", || node.line().contains("in step with").then_some(()));
    }
    pair.near.enrol(&late);
    cluster.announce(&late, true);
    let target = format!("dst.hbone_addr={}", SocketAddr::new(late.ips[0], 8080));
    until("the service leads to the late pod", || {
        drop(talk(&pair.client.netns, SocketAddr::new(pair.vips[0], 80)));
        pair.near.processes.log("proxy").contains(&target).then_some(())
    });
    say(&mut open).unwrap();
}

/// Somebody who has another account's token, and listens where a proxy does, is given nothing for pods.
#[test]
fn a_token_of_another_account_gets_no_certificate_of_a_pod() {
    if let Some(why) = missing() {
        return skip("a_token_of_another_account_gets_no_certificate_of_a_pod", &why);
    }
    let cluster = Cluster::shared();
    let mut pair = Pair::new(&cluster, "strangers");
    let metadata = json!({ "name": "stranger", "namespace": "strangers" });
    cluster.apply(&json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata }));
    let good = cluster.proxy_token(&pair.near.place);
    let of_stranger = cluster.kubernetes.api.token("strangers", "stranger", Some("istio-ca"), None).unwrap();
    let for_others = cluster.kubernetes.api.token("istio-system", "ztunnel", None, None).unwrap();
    for (name, token) in [("late", of_stranger), ("later", for_others)] {
        std::fs::write(pair.near.processes.file("token"), token).unwrap();
        let pod = pair.near.pod(&cluster, name);
        let own = identity(&pod);
        let trouble = until("the certificate is refused", || {
            let status = pair.near.status();
            let all = status["certificates"].as_array()?.clone();
            let certificate = all.iter().find(|c| c["identity"] == *own)?;
            (certificate["state"] == "Initializing").then_some(())?;
            Some(certificate["trouble"].as_str()?.to_owned())
        });
        assert!(trouble.contains("UP-CONTROL-"), "{trouble}");
        // What the pod sends does not leave without one.
        for ip in pair.server.ips {
            assert!(talk(&pod.netns, SocketAddr::new(ip, 8080)).is_err());
        }
        std::fs::write(pair.near.processes.file("token"), &good).unwrap();
        await_within(60, "it gets one when the token is right", || {
            talk(&pod.netns, SocketAddr::new(pair.server.ips[0], 8080)).ok()
        });
    }
}
