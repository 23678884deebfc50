//! The checks of `underpass check`: what each looks at, and what to do when it fails.

use std::fmt;

/// One thing that is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Check {
    /// Its name, stable across releases.
    pub id: &'static str,
    /// What holds when all is well.
    pub holds: &'static str,
    /// What to do when it does not.
    pub next_step: &'static str,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id)
    }
}

/// Declares the checks of every category, and lists them in `CATEGORIES`.
macro_rules! checks {
    ($( $category:literal { $( $name:ident = $id:literal { $holds:literal, $next:literal $(,)? } )* } )*) => {
        $($(
            #[doc = concat!("`", $id, "`: ", $holds, ".")]
            pub const $name: Check = Check { id: $id, holds: $holds, next_step: $next };
        )*)*
        /// All categories with their checks, in the order in which they are told.
        pub const CATEGORIES: &[(&str, &[Check])] = &[$( ($category, &[$( $name ),*]) ),*];
    };
}

checks! {
    "kubernetes" {
        API_REACHABLE = "api-reachable" {
            "the Kubernetes API answers",
            "See whether 'kubectl version' works with the same kubeconfig and context."
        }
        API_PERMISSIONS = "api-permissions" {
            "this user may look at everything that is checked",
            "Use a kubeconfig with these rights; pods/portforward is how agents and proxies are asked."
        }
        MAY_INSTALL = "may-install" {
            "this user may install Underpass",
            "Use a kubeconfig with these rights, such as that of a cluster administrator."
        }
    }
    "installation" {
        INSTALLED = "installed" {
            "Underpass is installed",
            "Install the chart deploy/helm/underpass, or look at another cluster with --context."
        }
        AGENTS_READY = "agents-ready" {
            "the agent is ready on every node",
            "kubectl -n NAMESPACE get pods -l k8s-app=underpass-cni-node -o wide; the events and the log of one that is not ready say why."
        }
        PROXIES_READY = "proxies-ready" {
            "the proxy is ready on every node",
            "kubectl -n NAMESPACE get pods -l app=ztunnel -o wide; the events and the log of one that is not ready say why."
        }
        NOTHING_ELSE = "nothing-else-redirects" {
            "nothing else redirects pods",
            "Uninstall Istio's charts cni and ztunnel: two agents would take turns to change the same pods."
        }
        AGENT_PERMISSIONS = "agent-permissions" {
            "the agents may do what they need",
            "Upgrade or reinstall the chart, which brings the ClusterRole underpass-cni."
        }
        SAME_VERSION = "same-version" {
            "agents, proxies and this command are of one version",
            "Wait for the rollout to end, or use the command line of the installed version."
        }
    }
    "control-plane" {
        ISTIOD_RUNNING = "istiod-running" {
            "istiod runs",
            "kubectl get pods -A -l app=istiod; without it nothing new is told to the proxies, and certificates expire."
        }
        ISTIOD_AMBIENT = "istiod-ambient" {
            "istiod serves ambient meshes",
            "Set PILOT_ENABLE_AMBIENT=true in istiod, or install it with Istio's profile ambient."
        }
        ISTIOD_TRUSTS = "istiod-trusts-proxies" {
            "istiod lets the proxies ask for certificates of pods",
            "Set CA_TRUSTED_NODE_ACCOUNTS=NAMESPACE/ztunnel in istiod, with the namespace that Underpass is in."
        }
        ISTIOD_CONNECTED = "istiod-connected" {
            "every proxy is connected to istiod and up to date",
            "See the reason, and the log of the proxy; XDS_ADDRESS, network policies and the root certificate are the usual causes."
        }
        STATE_ACCEPTED = "state-accepted" {
            "the proxies have taken everything that istiod sent",
            "Correct the named resources; until then the last good version of each is in force, and a policy that was never good denies."
        }
    }
    "certificates" {
        ROOT_VALID = "root-valid" {
            "the roots of the mesh are valid for at least 60 days",
            "Rotate the root of istiod's certificate authority; new and old have to be trusted together for a while."
        }
        CERTIFICATES_VALID = "certificates-valid" {
            "every pod's certificate is valid",
            "See the reason: as a rule istiod is away, or refuses; 'underpass certs' on the node lists all of them."
        }
    }
    "nodes" {
        AGENT_ANSWERS = "agent-answers" {
            "on every node an agent answers",
            "See the pod and the log of the agent on that node."
        }
        PLUGIN_CHAINED = "plugin-chained" {
            "the plugin is installed and chained on every node",
            "The agent installs it again by itself; if it cannot, its log and cniBinDir and cniConfDir of the chart tell why."
        }
        PROXY_SERVES = "proxy-serves" {
            "on every node a proxy serves the pods",
            "See the pod and the log of the proxy on that node; pods that are to join wait until it is there."
        }
        PROXY_ANSWERS = "proxy-answers" {
            "every proxy answers",
            "See the pod and the log of the proxy on that node."
        }
        CAPTURE = "capture-routed" {
            "packets are captured without NAT",
            "Load the kernel's modules nf_tables, nft_tproxy and nft_socket on that node and restart its agent; NAT works too, and is slower."
        }
        HOST_PROBES = "host-probes" {
            "health probes of the kubelet get through",
            "See the reason; without the rule, policies judge probes as any other connection."
        }
        CLOCK = "clock" {
            "the clocks of the nodes agree with this one",
            "Set the clock of that node, or of this machine, by NTP; certificates are refused by clocks that are wrong."
        }
    }
    "pods" {
        PODS_JOINED = "pods-joined" {
            "every pod with the label is in the mesh",
            "See 'underpass status --all' on the node, and the events of the pod; traffic of a pod outside the mesh is plain text."
        }
        PODS_VERIFIED = "pods-verified" {
            "every pod in the mesh has been measured to be in it",
            "Run 'underpass verify NAMESPACE/NAME' in the agent's pod of that node: it looks now, repairs, and says what it finds."
        }
        PODS_ANNOUNCED = "pods-announced" {
            "istiod is told of exactly the pods that are in the mesh",
            "The agent writes the annotation ambient.istio.io/redirection again by itself; its log says why it cannot."
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_next_steps_are_sentences() {
        let mut seen = std::collections::BTreeSet::new();
        for check in CATEGORIES.iter().flat_map(|(_, checks)| checks.iter()) {
            assert!(seen.insert(check.id), "{check} is there twice");
            assert!(check.id.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{check}");
            assert!(check.next_step.ends_with('.') && !check.holds.ends_with('.'), "{check}");
        }
    }
}
