//! The checks of `underpass check`: what each verifies, and what to do when it fails.

use std::fmt;

use crate::text::split;

/// A check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Check {
    /// The name, stable across releases.
    pub id: &'static str,
    /// The condition that the check verifies, such as "istiod is running".
    pub description: &'static str,
    /// What to do when the check fails.
    pub next_step: &'static str,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id)
    }
}

/// Declares the checks of each category and lists them in `CATEGORIES`. The doc comment of a check
/// is its text: what it verifies, then the paragraph "Next step:", on as many lines as needed.
macro_rules! checks {
    ($( $category:literal {
        $( $(#[doc = $text:literal])+ $name:ident = $id:literal; )*
    } )*) => {
        $($(
            #[doc = concat!("`", $id, "`:")]
            $(#[doc = $text])+
            pub const $name: Check = {
                let (description, next_step) = split(concat!($($text),+), " Next step: ");
                Check { id: $id, description, next_step }
            };
        )*)*
        /// All categories with their checks, in the order of the report.
        pub const CATEGORIES: &[(&str, &[Check])] = &[$( ($category, &[$( $name ),*]) ),*];
    };
}

checks! {
    "kubernetes" {
        /// can query the Kubernetes API
        /// Next step: Run 'kubectl version' with the same kubeconfig and context.
        API_REACHABLE = "api-reachable";

        /// can read everything the checks need
        /// Next step: Use a kubeconfig with the listed permissions; agents and proxies are queried
        /// through pods/portforward.
        API_PERMISSIONS = "api-permissions";

        /// can install Underpass
        /// Next step: Use a kubeconfig with the listed permissions, such as that of a cluster
        /// administrator.
        MAY_INSTALL = "may-install";
    }
    "installation" {
        /// Underpass is installed
        /// Next step: Install the chart deploy/helm/underpass, or select another cluster with
        /// --context.
        INSTALLED = "installed";

        /// agent pods are ready on all nodes
        /// Next step: Run 'kubectl -n NAMESPACE get pods -l k8s-app=underpass-cni-node -o wide';
        /// see the events and logs of pods that are not ready.
        AGENTS_READY = "agents-ready";

        /// proxy pods are ready on all nodes
        /// Next step: Run 'kubectl -n NAMESPACE get pods -l app=ztunnel -o wide'; see the events
        /// and logs of pods that are not ready.
        PROXIES_READY = "proxies-ready";

        /// no other component redirects pod traffic
        /// Next step: Uninstall Istio's charts cni and ztunnel: two node agents would overwrite
        /// each other's rules.
        NOTHING_ELSE = "nothing-else-redirects";

        /// agents have the required permissions
        /// Next step: Upgrade or reinstall the chart, which creates the ClusterRole underpass-cni.
        AGENT_PERMISSIONS = "agent-permissions";

        /// agent, proxy and CLI versions match
        /// Next step: Wait for the rollout to complete, or use the CLI of the installed version.
        SAME_VERSION = "same-version";
    }
    "control-plane" {
        /// istiod is running
        /// Next step: Run 'kubectl get pods -A -l app=istiod'; without istiod, proxies get no
        /// updates and certificates expire.
        ISTIOD_RUNNING = "istiod-running";

        /// istiod has ambient mode enabled
        /// Next step: Set PILOT_ENABLE_AMBIENT=true in istiod, or install it with Istio's ambient
        /// profile.
        ISTIOD_AMBIENT = "istiod-ambient";

        /// istiod trusts the proxies to request pod certificates
        /// Next step: Set CA_TRUSTED_NODE_ACCOUNTS=NAMESPACE/ztunnel in istiod, with the namespace
        /// of Underpass.
        ISTIOD_TRUSTS = "istiod-trusts-proxies";

        /// sidecars can start beside Underpass
        /// Next step: Set pilot.cni.enabled=false for istiod, or in `values` of its ConfigMap
        /// istio-sidecar-injector: with Istio's ambient profile, sidecars wait for rules that only
        /// Istio's CNI plugin installs; without it, their own init container installs them.
        SIDECARS_START = "sidecars-start";

        /// proxies are connected to istiod and up to date
        /// Next step: See the reason and the proxy log; check XDS_ADDRESS, network policies and the
        /// root certificate.
        ISTIOD_CONNECTED = "istiod-connected";

        /// proxies accepted all resources from istiod
        /// Next step: Fix the listed resources; until then the last valid version of each stays
        /// active, and a policy that was never valid denies.
        STATE_ACCEPTED = "state-accepted";
    }
    "certificates" {
        /// root certificates are valid for at least 60 days
        /// Next step: Rotate the root of istiod's certificate authority; keep the old root trusted
        /// during the transition.
        ROOT_VALID = "root-valid";

        /// pod certificates are valid
        /// Next step: See the reason: usually istiod is unreachable or refuses to sign; 'underpass
        /// certs' on the node lists all certificates.
        CERTIFICATES_VALID = "certificates-valid";
    }
    "nodes" {
        /// agents respond on all nodes
        /// Next step: See the agent's pod and log on that node.
        AGENT_ANSWERS = "agent-answers";

        /// CNI plugin is installed and chained on all nodes
        /// Next step: The agent reinstalls the plugin; if it stays missing, see the agent log and
        /// check cniBinDir and cniConfDir of the chart.
        PLUGIN_CHAINED = "plugin-chained";

        /// the container runtime calls the plugin on all nodes
        /// Next step: Check that cniConfDir of the chart is the folder that the runtime of that
        /// node reads; then recreate the pods that have the event MeshStartedOutside.
        PLUGIN_CALLED = "plugin-called";

        /// a proxy serves the pods on all nodes
        /// Next step: See the proxy's pod and log on that node; pods cannot join the mesh until the
        /// proxy is ready.
        PROXY_SERVES = "proxy-serves";

        /// proxies respond
        /// Next step: See the proxy's pod and log on that node.
        PROXY_ANSWERS = "proxy-answers";

        /// traffic is captured without NAT
        /// Next step: Load the kernel modules nf_tables, nft_tproxy and nft_socket on that node and
        /// restart its agent; NAT also works, but is slower.
        CAPTURE = "capture-routed";

        /// kubelet health probes reach the pods
        /// Next step: See the reason; without this rule, policies apply to probes as to any other
        /// connection.
        HOST_PROBES = "host-probes";

        /// node clocks are in sync with this machine
        /// Next step: Synchronize the clock of that node, or of this machine, with NTP; a wrong
        /// clock makes certificates invalid.
        CLOCK = "clock";
    }
    "pods" {
        /// no pod has capabilities that bypass its capture
        /// Next step: Drop NET_RAW, NET_ADMIN and SYS_ADMIN where the application does not need
        /// them; see docs/verification.md for what each allows.
        POD_CAPABILITIES = "pod-capabilities";

        /// all pods selected for the mesh are enrolled
        /// Next step: Run 'underpass status --all' on the node and see the pod's events; traffic of
        /// a pod outside the mesh is plain text.
        PODS_JOINED = "pods-joined";

        /// all enrolled pods are verified
        /// Next step: Run 'underpass verify NAMESPACE/NAME' in the agent's pod on that node: it
        /// checks the pod, repairs it and prints the result.
        PODS_VERIFIED = "pods-verified";

        /// no connections bypass the proxies of enrolled pods
        /// Next step: Check that the pod's annotations underpass.io/exclude-... and
        /// ambient.istio.io/bypass-inbound-capture are intended, and that connections older than
        /// the pod's join may stay; cni.allowExclusions=false and cni.existingConnections=reset
        /// forbid them.
        NOTHING_EXCLUDED = "nothing-excluded";

        /// no pod has exhausted a budget of its proxy
        /// Next step: Find out what the pod's application does, or raise the limit: its connections
        /// wait, are refused or are closed, and those of other pods are not affected.
        WITHIN_BUDGETS = "within-budgets";

        /// pods in the mesh declare only ports that are captured
        /// Next step: Restrict UDP and SCTP with NetworkPolicies: they reach these ports without
        /// encryption and policies of the mesh, as 'underpass why --protocol udp' explains.
        PROTOCOLS_CAPTURED = "protocols-captured";

        /// NetworkPolicies that allow connections between pods in the mesh allow port 15008
        /// Next step: Add the listed lines to each policy, unless the cluster's network plugin does
        /// not enforce NetworkPolicies; see docs/platforms.md.
        POLICIES_ALLOW_HBONE = "policies-allow-hbone";

        /// NetworkPolicies allow the kubelet's probes of pods in the mesh
        /// Next step: Add the listed lines to each policy, unless the cluster's network plugin lets
        /// the node connect to its pods whatever the source address; see docs/platforms.md.
        POLICIES_ALLOW_PROBES = "policies-allow-probes";

        /// redirection annotations match the enrolled pods
        /// Next step: The agent rewrites the annotation ambient.istio.io/redirection; if it cannot,
        /// its log has the reason.
        PODS_ANNOUNCED = "pods-announced";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_next_steps_are_sentences() {
        let mut seen = std::collections::BTreeSet::new();
        for check in CATEGORIES.iter().flat_map(|(_, checks)| checks.iter()) {
            assert!(seen.insert(check.id), "duplicate id {check}");
            assert!(
                check
                    .id
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b == b'-'),
                "{check}"
            );
            assert!(
                check.next_step.ends_with('.') && !check.description.ends_with('.'),
                "{check}"
            );
        }
    }
}
