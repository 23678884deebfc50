//! Codes of the proxy.

codes! {
    /// The folder of the local certificate authority cannot be used.
    /// Cause: It is not writable, or its files do not match each other.
    /// Next step: Check the folder given with --ca-dir: it holds ca-cert.pem, ca-key.pem,
    /// cert-chain.pem and root-cert.pem, like Istio's plug-in CA.
    CA_FOLDER = "UP-PROXY-001";

    /// The proxy could not listen in a pod.
    /// Cause: A process in the pod uses one of the ports 15001, 15006, 15008 and 15053, or the
    /// proxy lacks CAP_NET_ADMIN, CAP_NET_RAW or CAP_SYS_ADMIN.
    /// Next step: Free the port in the pod, or grant the proxy these capabilities.
    LISTEN = "UP-PROXY-002";

    /// The proxy could not connect to the destination.
    /// Cause: Nothing listens there, the address is wrong, or a firewall blocks the connection.
    /// Next step: Check that the destination is running and listens on that port.
    CONNECT = "UP-PROXY-003";

    /// The proxy could not connect to the proxy at the other end.
    /// Cause: No proxy serves the destination pod, or a NetworkPolicy or firewall blocks port
    /// 15008.
    /// Next step: Check that the destination pod is enrolled and that port 15008 is open between
    /// the nodes.
    CONNECT_TUNNEL = "UP-PROXY-004";

    /// The TLS handshake failed.
    /// Cause: The peer has an unexpected identity, an expired certificate or another root, or is
    /// not a mesh proxy.
    /// Next step: Compare the identity in the message with the workload's service account, and
    /// check both certificates.
    TLS = "UP-PROXY-005";

    /// The proxy at the other end refused the connection.
    /// Cause: A policy denies it (401), the destination does not answer (503), or is not there
    /// (400).
    /// Next step: See the access log of the other proxy for the reason.
    TUNNEL_REFUSED = "UP-PROXY-006";

    /// The tunnel broke.
    /// Cause: The other proxy or the network in between failed, or the other proxy violated the
    /// protocol.
    /// Next step: See the log of the other proxy.
    TUNNEL_BROKE = "UP-PROXY-007";

    /// The service has no endpoint to connect to.
    /// Cause: No healthy workload serves that port.
    /// Next step: Check the workloads of the service and its ports.
    NO_UPSTREAM = "UP-PROXY-008";

    /// A connection to the proxy's own port was refused.
    /// Cause: An application connects to 15001, 15006, 15008 or 15053, which belong to the proxy.
    /// Next step: Connect to the application's own port.
    SELF_CALL = "UP-PROXY-009";

    /// A policy denied the connection.
    /// Cause: A deny policy matches, or allow policies exist and none matches; the message names
    /// it.
    /// Next step: If the connection should be allowed, change the policy that the message names.
    DENIED = "UP-PROXY-010";

    /// An open connection was closed because a policy now denies it.
    /// Cause: A policy or the workload changed.
    /// Next step: If the connection should be allowed, change the policy that the message names.
    POLICY_CHANGED = "UP-PROXY-011";

    /// A request on a tunnel was rejected.
    /// Cause: The peer requested a destination that is not in this pod.
    /// Next step: See the message; the peer runs another version or has stale state.
    SERVING = "UP-PROXY-012";

    /// An open connection was closed because its pod left.
    /// Cause: The pod was deleted or left the mesh.
    /// Next step: None.
    POD_GONE = "UP-PROXY-013";

    /// An open connection was closed because the proxy is shutting down.
    /// Cause: The proxy was asked to stop, and the drain time has passed.
    /// Next step: To allow more time, set CONNECTION_TERMINATION_DEADLINE.
    DRAINED = "UP-PROXY-014";

    /// A connection ended with an error.
    /// Cause: An application or the network reset it.
    /// Next step: See the application's log.
    IO = "UP-PROXY-015";

    /// The proxy could not listen on one of its own addresses.
    /// Cause: Another process on this node uses it, perhaps another proxy.
    /// Next step: Stop the other process, or choose another address with --admin-addr, --stats-addr
    /// or --readiness-addr.
    OWN_ADDRESS = "UP-PROXY-016";

    /// A connection to a pod was refused because its policies are not known yet.
    /// Cause: The mesh state did not include the pod within 5 s: the control plane has not sent it,
    /// or the mesh file does not list it.
    /// Next step: Check that the proxy is connected to the control plane and that the pod exists
    /// there, or add the pod to the mesh file.
    POD_UNKNOWN = "UP-PROXY-017";

    /// The proxy ended because a part of it panicked.
    /// Cause: A bug. New connections are refused until the next proxy serves the pods, which
    /// happens without any action; nothing is sent in plain text meanwhile.
    /// Next step: Report the panic message before this line.
    PANICKED = "UP-PROXY-018";

    /// A connection was refused because its pod has too many open ones.
    /// Cause: The pod opens or accepts connections faster than they end, or never closes them. If
    /// the message says that the descriptors of the proxy are short, it has most of the node's.
    /// Next step: Find out why the pod, which `underpass status` names, has so many connections, or
    /// raise UNDERPASS_POD_MAX_CONNECTIONS or the limit of open files of the proxy.
    TOO_MANY_CONNECTIONS = "UP-PROXY-019";

    /// A connection was closed because too many bytes wait for applications that do not read them.
    /// Cause: An application has stopped reading many connections; this one was stalled for
    /// longest.
    /// Next step: Find out why the application does not read, or raise the setting that the
    /// message names. `underpass status` names the pod.
    TOO_MANY_UNREAD = "UP-PROXY-020";

    /// New connections of a pod are delayed, because there are too many per second.
    /// Cause: The pod opens connections, or clients open them to it, at a higher rate than the
    /// limit. They wait in the queue of a socket; other pods are not affected.
    /// Next step: Find out why the pod has so many new connections, which usually means that they
    /// are not reused, or raise UNDERPASS_POD_MAX_NEW_CONNECTIONS; 0 accepts any number.
    TOO_MANY_NEW = "UP-PROXY-021";

    /// The proxy has no connection to the node agent.
    /// Cause: The agent is being restarted or hangs, or another version or another program serves
    /// its socket.
    /// Next step: None while the agent restarts: pods stay served, and the proxy connects again by
    /// itself. Otherwise see the agent's log on this node, and check INPOD_UDS.
    AGENT_CONNECTION = "UP-PROXY-023";

    /// The proxy rejected a request of the node agent.
    /// Cause: The agent has another version, or passed a descriptor that is not the network
    /// namespace of a pod. Other pods are not affected.
    /// Next step: See the reason in the message; finish the upgrade of the agent on this node.
    AGENT_REQUEST = "UP-PROXY-024";
}
