//! Codes of the CNI plugin.

codes! {
    /// The environment is not that of a CNI call.
    /// Cause: A container runtime did not start the plugin, or CNI variables are missing or
    /// invalid.
    /// Next step: Run the plugin through the runtime or cnitool. To test the binary, run
    /// underpass-cni with CNI_COMMAND=VERSION.
    ENVIRONMENT = "UP-CNI-001";

    /// The configuration on standard input cannot be parsed.
    /// Cause: The conflist is not valid JSON, or a key of the underpass-cni entry has a value of
    /// the wrong type.
    /// Next step: Check the underpass-cni entry of the conflist in the runtime's CNI configuration
    /// folder.
    STDIN = "UP-CNI-002";

    /// The cniVersion of the configuration is not supported.
    /// Cause: The conflist names a CNI version that Underpass does not implement, or one that does
    /// not have the command of the call.
    /// Next step: Set cniVersion in the conflist to 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0 or
    /// 1.1.0; CHECK needs 0.4.0 or later, GC and STATUS need 1.1.0.
    VERSION = "UP-CNI-003";

    /// The configuration is incomplete.
    /// Cause: The network has no valid name.
    /// Next step: Set the name of the conflist; it may contain letters, digits, '_', '.' and '-'.
    CONFIG = "UP-CNI-004";

    /// prevResult is missing or unusable.
    /// Cause: Underpass is the first plugin of the conflist; it must come after the one that
    /// creates the interface.
    /// Next step: Move the underpass-cni entry to the end of the conflist.
    NO_PREV_RESULT = "UP-CNI-005";

    /// CNI_NETNS is not the network namespace of a pod.
    /// Cause: The path does not exist, is not a network namespace, or is the namespace in which the
    /// plugin itself runs.
    /// Next step: If the sandbox was deleted, the runtime creates a new one. Otherwise check the
    /// configuration of the runtime.
    NETNS = "UP-CNI-006";

    /// The node agent cannot be reached.
    /// Cause: underpass-agent is not running on this node, or listens on another socket.
    /// Next step: Check that the agent pod on this node is running; the runtime then retries
    /// automatically. Pods that must start without it belong into an excluded namespace.
    AGENT_UNAVAILABLE = "UP-CNI-007";

    /// The node agent did not finish in time.
    /// Cause: The agent or the proxy on this node hangs or is overloaded.
    /// Next step: Check the agent's log and status on this node; the runtime retries automatically.
    AGENT_TIMEOUT = "UP-CNI-008";

    /// The node agent sent an unexpected reply.
    /// Cause: Plugin and agent have different versions, or another process listens on the agent's
    /// socket.
    /// Next step: Finish the upgrade of the agent on this node; it installs the matching plugin.
    UNEXPECTED_REPLY = "UP-CNI-009";

    /// The node agent could not enrol the pod.
    /// Cause: The message contains the agent's own error code and reason.
    /// Next step: Follow the next step that the agent gives.
    REFUSED = "UP-CNI-010";

    /// The redirect rules could not be installed in the pod.
    /// Cause: The kernel rejected them; the message contains the reason.
    /// Next step: Look up the error code of the reason. Rules that were already installed have been
    /// removed.
    INSTALL = "UP-CNI-011";

    /// Internal error in the plugin.
    /// Cause: A bug in Underpass.
    /// Next step: Report the message together with the version of the plugin.
    INTERNAL = "UP-CNI-012";

    /// CHECK found that the pod is not as ADD left it.
    /// Cause: Its rules changed, the proxy is unreachable, or the agent does not know the pod; the
    /// message contains the reason.
    /// Next step: Check the agent's status on this node. The agent repairs what it can without
    /// intervention.
    CHECK = "UP-CNI-013";

    /// No pod can be enrolled on this node now.
    /// Cause: The agent is running, but no proxy is connected to it.
    /// Next step: Check that the proxy pod on this node is running.
    STATUS = "UP-CNI-014";
}
