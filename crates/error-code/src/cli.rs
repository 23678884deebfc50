//! Codes of the command line.

codes! {
    /// The program does not answer.
    /// Cause: It is not running on this node, listens on another address, or this command runs in
    /// another network namespace.
    /// Next step: Run the command on the node, check that the program is running, or pass its admin
    /// address.
    NO_ANSWER = "UP-CLI-001";

    /// The answer does not come from a compatible version of Underpass.
    /// Cause: Another program listens on that address, or the versions differ.
    /// Next step: Check the address, and use the command line of the same version.
    UNEXPECTED_ANSWER = "UP-CLI-002";

    /// No such pod is enrolled on this node.
    /// Cause: A typo, a pod of another node, or a pod that does not belong to the mesh.
    /// Next step: See 'underpass status --all' for the pods of this node and why each is in the
    /// mesh or not.
    NO_SUCH_POD = "UP-CLI-003";

    /// The proxy cannot explain this connection.
    /// Cause: It knows no workload, service or address of that name, or several, or the port is
    /// missing.
    /// Next step: See 'underpass workloads' and 'underpass services' for the names;
    /// NAMESPACE/NAME:PORT is unambiguous.
    NO_EXPLANATION = "UP-CLI-004";

    /// The Kubernetes API cannot be reached.
    /// Cause: There is no kubeconfig, it has expired or points to another cluster, or the API
    /// server does not answer or refuses access.
    /// Next step: Check that kubectl works with the same --kubeconfig and --context. On a node, use
    /// --node, which does not need the Kubernetes API.
    NO_CLUSTER = "UP-CLI-005";
}
