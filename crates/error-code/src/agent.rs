//! Codes of the node agent.

codes! {
    /// The agent cannot parse the plugin's message.
    /// Cause: Plugin and agent have different versions.
    /// Next step: Finish the upgrade of the agent on this node; it installs the matching plugin.
    PROTOCOL = "UP-AGENT-001";

    /// The plugin did not pass the network namespace of that pod.
    /// Cause: The descriptor is not a network namespace, is that of the node, or lacks the pod's
    /// addresses.
    /// Next step: Check the configuration of the runtime; the address must be in prevResult and on
    /// an interface of the pod.
    NETNS = "UP-AGENT-002";

    /// The pod belongs to the mesh, but the mesh file lacks information about it.
    /// Cause: It is missing from the mesh file, or assigned to another node there.
    /// Next step: Add the pod to the mesh file with this node; the runtime then retries
    /// automatically.
    UNKNOWN_POD = "UP-AGENT-003";

    /// The pod's address differs from the one in the mesh file.
    /// Cause: The main CNI plugin assigned another address than the mesh file lists.
    /// Next step: Correct workloadIps of this pod in the mesh file.
    ADDRESS = "UP-AGENT-004";

    /// The rules read back from the pod differ from the plan.
    /// Cause: Another process in the pod or on the node changed them at that moment.
    /// Next step: See the differences in the message; the runtime retries automatically.
    RULES_DIFFER = "UP-AGENT-005";

    /// No proxy is connected to the agent.
    /// Cause: underpass-proxy is not running on this node, or uses another ZDS socket.
    /// Next step: Check that the proxy pod on this node is running; the runtime then retries
    /// automatically.
    NO_PROXY = "UP-AGENT-006";

    /// The proxy did not answer in time.
    /// Cause: The proxy on this node hangs or is overloaded.
    /// Next step: Check the proxy's log on this node; the runtime retries automatically.
    PROXY_TIMEOUT = "UP-AGENT-007";

    /// The proxy could not serve the pod.
    /// Cause: Another process in the pod uses a port of the proxy, or the proxy lacks capabilities;
    /// the message contains its reason.
    /// Next step: Free the ports 15001, 15006, 15008 and 15053 in the pod, or see the proxy's log
    /// on this node.
    PROXY_REFUSED = "UP-AGENT-008";

    /// The agent's state on disk cannot be read or written.
    /// Cause: The disk is full, the folder is missing or not writable, or the file was damaged.
    /// Next step: Check the folder given with --state-dir.
    STATE = "UP-AGENT-009";

    /// The pod's names are too long for the protocol with the proxy.
    /// Cause: uid, name, namespace and service account together exceed 1,024 bytes.
    /// Next step: Use a shorter uid.
    NAMES = "UP-AGENT-010";

    /// The pod should be in the mesh, but verification failed.
    /// Cause: Its rules differ from the plan, the proxy does not serve it, or it has not joined;
    /// the message contains the reason.
    /// Next step: Check the agent's status on this node. The agent repairs what it can without
    /// intervention.
    NOT_VERIFIED = "UP-AGENT-011";

    /// The plugin could not be installed.
    /// Cause: A folder of the container runtime is missing or not writable, or the plugin binary is
    /// not next to the agent's.
    /// Next step: Check the folders given with --conf-dir and --bin-dir.
    INSTALL = "UP-AGENT-012";

    /// There is no network configuration to chain the plugin to.
    /// Cause: The main CNI plugin of the cluster has not written its configuration yet.
    /// Next step: None while the main CNI plugin is starting; the agent chains its plugin as soon
    /// as the configuration appears.
    NO_CONFLIST = "UP-AGENT-013";

    /// The agent could not listen on one of its own sockets or addresses.
    /// Cause: Another process on this node uses it, perhaps another agent, or the folder is not
    /// writable.
    /// Next step: Stop the other process, or choose another socket or address with --agent-socket,
    /// --zds-socket or --admin-addr.
    OWN_ADDRESS = "UP-AGENT-014";

    /// An annotation of the pod is invalid.
    /// Cause: A typo in its value; the message names the annotation and the entry.
    /// Next step: Correct the annotation on the pod or its template; docs/redirection.md lists the
    /// accepted values.
    ANNOTATION = "UP-AGENT-015";

    /// None of the requested captures works on this node.
    /// Cause: The kernel lacks nf_tables or one of its modules, the agent lacks CAP_NET_ADMIN or
    /// CAP_SYS_ADMIN, or iptables is not installed.
    /// Next step: See the reason for each in the message; --capture auto uses the first that works.
    CAPTURE = "UP-AGENT-016";

    /// The pod has redirection rules of istio-cni.
    /// Cause: istio-cni is chained next to Underpass on this node, or was when the pod joined.
    /// Next step: Remove istio-cni from this node, or start the agent with --adopt-istio, which
    /// replaces such rules.
    FOREIGN_RULES = "UP-AGENT-017";

    /// The rule for health probes from this node could not be installed.
    /// Cause: The kernel lacks nf_tables with NAT, the agent lacks CAP_NET_ADMIN in the node's
    /// network namespace, or the path in --host-netns is not a network namespace.
    /// Next step: See the reason in the message. Until then probes arrive like any other
    /// connection, and a policy may deny them. --host-probes=false disables the rule.
    HOST_PROBES = "UP-AGENT-018";

    /// Another ADD of this pod is still running.
    /// Cause: The runtime called the plugin again before the first call returned.
    /// Next step: None; the runtime retries automatically.
    BUSY = "UP-AGENT-020";

    /// The agent cannot determine whether the pod belongs to the mesh, because the API server does
    /// not answer.
    /// Cause: The API server is unreachable or refuses the agent, and the pod is newer than the
    /// agent's last known state.
    /// Next step: See the reason in the message: restore the API server, or check the agent's
    /// service account and role. The runtime then retries automatically.
    API_UNREACHABLE = "UP-AGENT-021";

    /// The pod that the runtime is starting is not the one in the API server.
    /// Cause: The pod was deleted, or replaced by another one of the same name, while it was
    /// starting.
    /// Next step: None; the runtime discards this sandbox and starts the current pod of that name.
    POD_GONE = "UP-AGENT-022";

    /// The network namespace of a running pod was not found.
    /// Cause: The pod was started before Underpass was installed, and none of its processes is
    /// visible under --host-proc.
    /// Next step: Give the agent access to the node's processes (hostPID: true), or delete the pod
    /// so that it is recreated.
    NOT_FOUND = "UP-AGENT-023";

    /// The agent cannot use the Kubernetes API.
    /// Cause: It runs outside a pod without --kubeconfig, or the kubeconfig or the service account
    /// token is missing or invalid.
    /// Next step: Check the file given with --kubeconfig, or that the pod's service account token
    /// is mounted.
    KUBERNETES = "UP-AGENT-024";

    /// Another process keeps removing the plugin from the network configuration.
    /// Cause: The main CNI plugin restores its own configuration whenever it changes, as Cilium
    /// does with cni.exclusive=true.
    /// Next step: Configure the main CNI plugin to accept chained plugins, for Cilium with
    /// cni.exclusive=false.
    CONTESTED = "UP-AGENT-025";

    /// A pod of the mesh started without the runtime calling the plugin.
    /// Cause: The runtime reads another folder than the agent's --conf-dir, or another file in it,
    /// or this pod's runtime class uses its own network configuration.
    /// Next step: Check that the folder given with --conf-dir (cniConfDir of the chart) is the one
    /// that the runtime reads; then recreate the pod.
    PLUGIN_NOT_CALLED = "UP-AGENT-026";

    /// A pod of the mesh was running before an agent was ready on the node.
    /// Cause: It started before Underpass was installed, or while the plugin was missing from the
    /// runtime's configuration.
    /// Next step: None; recreate the pod if it must not have connections from before it joined.
    STARTED_BEFORE_AGENT = "UP-AGENT-027";

    /// The pod's annotations exclude more of its connections from the mesh than this node accepts.
    /// Cause: They exclude the network of all pods, or the administrator forbids exclusions with
    /// --allow-exclusions=false.
    /// Next step: Narrow or remove the annotation in the message; the label
    /// istio.io/dataplane-mode=none keeps the whole pod out of the mesh.
    EXCLUSION = "UP-AGENT-028";

    /// The agent ended because a part of it panicked.
    /// Cause: A bug. The next agent takes over the pods; meanwhile their rules stay, and pods that
    /// should be in the mesh do not start.
    /// Next step: Report the panic message before this line.
    PANICKED = "UP-AGENT-029";

    /// The agent closed its connection to a proxy.
    /// Cause: The proxy hangs, has another version, or another program connects to the socket.
    /// Next step: See the log of the process that the message names. Pods stay served by the other
    /// proxies, and by this one once it connects again.
    PROXY_CONNECTION = "UP-AGENT-030";
}
