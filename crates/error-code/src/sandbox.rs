//! Codes of the sandbox.

codes! {
    /// The sandbox is not allowed to create network namespaces.
    /// Cause: It does not run as root, and the kernel does not allow user namespaces to this user.
    /// Next step: Run it with sudo, or allow user namespaces (sysctl
    /// kernel.unprivileged_userns_clone or user.max_user_namespaces).
    PRIVILEGE = "UP-BOX-001";

    /// A sandbox is already running.
    /// Cause: It was started earlier and not stopped.
    /// Next step: Use it, or stop it with 'underpass sandbox down'. To run another one, set another
    /// UNDERPASS_SANDBOX_DIR.
    RUNNING = "UP-BOX-002";

    /// No sandbox is running.
    /// Cause: It was not started, was stopped, or uses another UNDERPASS_SANDBOX_DIR.
    /// Next step: Start one with 'underpass sandbox up'.
    NOT_RUNNING = "UP-BOX-003";

    /// There is no such pod in the sandbox.
    /// Cause: A typo, or the name exists in more than one namespace.
    /// Next step: See 'underpass sandbox status' for the pods; NAMESPACE/NAME is unambiguous.
    NO_SUCH_POD = "UP-BOX-004";

    /// The sandbox cannot be created from this mesh file.
    /// Cause: A pod has no node or no address, or the file has no pods.
    /// Next step: Give every workload that should run a node and workloadIps.
    MESH = "UP-BOX-005";

    /// One of Underpass's programs is missing.
    /// Cause: The four programs must be in one folder.
    /// Next step: Build them all with scripts/build.
    BINARY = "UP-BOX-006";

    /// The sandbox could not be started.
    /// Cause: The step named in the message failed; everything created before it has been removed.
    /// Next step: See the logs in the folder that the message names, or run the command again with
    /// RUST_LOG=debug.
    START = "UP-BOX-007";

    /// A pod of the sandbox could not be started.
    /// Cause: A CNI plugin failed; the message contains its error code and reason.
    /// Next step: Follow the next step that the plugin gives; the other pods are running.
    POD = "UP-BOX-008";
}
