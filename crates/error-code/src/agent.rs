//! Codes of the node agent.

codes! {
    PROTOCOL = "UP-AGENT-001" {
        what: "The plugin's message was not understood.",
        cause: "Plugin and agent are of different versions.",
        next_step: "Finish the upgrade of the agent on this node; it installs the plugin that goes with it.",
    }
    NETNS = "UP-AGENT-002" {
        what: "What was handed over is not the network namespace of that pod.",
        cause: "The descriptor is no network namespace, is the node's, or does not hold the pod's addresses.",
        next_step: "Check how the runtime is configured; the address must be in prevResult and on an interface of the pod.",
    }
    UNKNOWN_POD = "UP-AGENT-003" {
        what: "The pod belongs to the mesh, but too little is known about it.",
        cause: "It is missing from the mesh file, or assigned to another node there.",
        next_step: "Add the pod to the mesh file with this node; the pod starts by itself afterwards.",
    }
    ADDRESS = "UP-AGENT-004" {
        what: "The pod's address is not the one that the mesh knows.",
        cause: "The main CNI plugin gave the pod another address than the mesh file says.",
        next_step: "Correct workloadIps of this pod in the mesh file.",
    }
    NOT_AS_PLANNED = "UP-AGENT-005" {
        what: "The rules read back from the pod are not those of the plan.",
        cause: "Something else in the pod or on the node changed them in that moment.",
        next_step: "See what the message names; the runtime tries again by itself.",
    }
    PROXY_ABSENT = "UP-AGENT-006" {
        what: "No proxy is connected to the agent.",
        cause: "underpass-proxy does not run on this node, or uses another ZDS socket.",
        next_step: "Check that the proxy's pod on this node is running; this pod starts by itself afterwards.",
    }
    PROXY_SILENT = "UP-AGENT-007" {
        what: "The proxy did not answer in time.",
        cause: "The proxy on this node hangs or is overloaded.",
        next_step: "Look at the proxy's log on this node; the runtime tries again by itself.",
    }
    PROXY_REFUSED = "UP-AGENT-008" {
        what: "The proxy could not serve the pod.",
        cause: "A port of the proxy is taken in the pod, or the proxy lacks capabilities; its reason stands in the message.",
        next_step: "Free the ports 15001, 15006, 15008 and 15053 in the pod, or see the proxy's log on this node.",
    }
    STATE = "UP-AGENT-009" {
        what: "The agent's state on disk cannot be written or read.",
        cause: "The disk is full, the folder is missing or not writable, or the file was damaged.",
        next_step: "Check the folder given with --state-dir.",
    }
    NAMES = "UP-AGENT-010" {
        what: "The pod's names are too long for the protocol with the proxy.",
        cause: "uid, name, namespace and service account together exceed 1,024 bytes.",
        next_step: "Use a shorter uid.",
    }
    NOT_VERIFIED = "UP-AGENT-011" {
        what: "The pod belongs to the mesh, and is not verified to be in it.",
        cause: "Its rules differ from the plan, the proxy does not serve it, or it has not joined; the reason stands in the message.",
        next_step: "See the agent's status on this node; what can be repaired is repaired by itself.",
    }
    INSTALL = "UP-AGENT-012" {
        what: "The plugin could not be installed.",
        cause: "A folder of the container runtime is missing or not writable, or the plugin is not beside the agent.",
        next_step: "Check the folders given with --conf-dir and --bin-dir.",
    }
    NO_CONFLIST = "UP-AGENT-013" {
        what: "There is no network configuration to chain the plugin to.",
        cause: "The main CNI plugin of the cluster has not written its configuration yet.",
        next_step: "None if it is about to; the agent chains the plugin as soon as the configuration is there.",
    }
    OWN_ADDRESS = "UP-AGENT-014" {
        what: "The agent could not listen on a socket or an address of its own.",
        cause: "Another process, perhaps another agent, has it on this node, or the folder is not writable.",
        next_step: "End the other process, or choose another place with --agent-socket, --zds-socket or --admin-addr.",
    }
    ANNOTATION = "UP-AGENT-015" {
        what: "An annotation of the pod cannot be followed.",
        cause: "A typo in its value; the message names the annotation and the entry.",
        next_step: "Correct the annotation on the pod or its template; docs/redirection.md lists what each may say.",
    }
    CAPTURE = "UP-AGENT-016" {
        what: "No capture that was asked for works on this node.",
        cause: "The kernel lacks nf_tables or a module of it, the agent lacks CAP_NET_ADMIN or CAP_SYS_ADMIN, or iptables is not installed.",
        next_step: "See the reason of each in the message; --capture auto takes the first that works.",
    }
    FOREIGN = "UP-AGENT-017" {
        what: "The pod has redirection of istio-cni.",
        cause: "istio-cni is chained beside Underpass on this node, or was, when the pod joined.",
        next_step: "Take istio-cni out of this node; or start the agent with --adopt-istio, which replaces such rules.",
    }
    HOST_PROBES = "UP-AGENT-018" {
        what: "The rule for health probes from this node could not be put in place.",
        cause: "The kernel lacks nf_tables with NAT, the agent lacks CAP_NET_ADMIN in the node's network namespace, or the namespace given with --host-netns is not one.",
        next_step: "See the reason in the message; until then probes arrive as any other connection, and a policy may deny them. --host-probes=false does without.",
    }
    BUSY = "UP-AGENT-020" {
        what: "Another ADD of this pod has not ended yet.",
        cause: "The runtime called again before the first call had returned.",
        next_step: "None; the runtime tries again by itself.",
    }
    API_AWAY = "UP-AGENT-021" {
        what: "It is not known whether the pod belongs to the mesh, for the API server cannot be asked.",
        cause: "The API server is away or refuses the agent, and the pod is newer than what the agent heard last.",
        next_step: "See the reason in the message: bring the API server back, or check the agent's service account and role. The pod starts by itself afterwards.",
    }
    POD_GONE = "UP-AGENT-022" {
        what: "The pod that the runtime starts is not the one that the API server has.",
        cause: "The pod was deleted, or replaced by another one of its name, while it was being started.",
        next_step: "None; the runtime gives this sandbox up, and the pod of that name starts by itself.",
    }
    NOT_FOUND = "UP-AGENT-023" {
        what: "The network namespace of a pod that runs already was not found.",
        cause: "The pod was started before Underpass was installed, and no process of it is seen under --host-proc.",
        next_step: "Give the agent the node's processes (hostPID: true), or delete the pod so that it is made again.",
    }
    KUBERNETES = "UP-AGENT-024" {
        what: "The agent cannot use the Kubernetes API.",
        cause: "It runs outside a pod without --kubeconfig, or the kubeconfig or the service account's token is missing or wrong.",
        next_step: "Check the file given with --kubeconfig, or that the pod's service account token is mounted.",
    }
}
