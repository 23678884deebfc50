//! Codes of the command line.

codes! {
    NO_ANSWER = "UP-CLI-001" {
        what: "The program that was asked does not answer.",
        cause: "It does not run on this node, listens elsewhere, or this command runs in another network namespace.",
        next_step: "Run the command on the node, see whether the program runs, or give its admin address.",
    }
    STRANGE_ANSWER = "UP-CLI-002" {
        what: "The answer is not one that Underpass gives.",
        cause: "Something else listens at that address, or it is a version that this one does not know.",
        next_step: "Check the address, and use the command line of the same version.",
    }
    NO_SUCH_POD = "UP-CLI-003" {
        what: "No such pod is enrolled on this node.",
        cause: "A typo, a pod of another node, or one that does not belong to the mesh.",
        next_step: "See 'underpass status --all' for the pods of this node and why each is in the mesh or not.",
    }
    NO_SUCH_PARTY = "UP-CLI-004" {
        what: "The proxy cannot tell about this connection.",
        cause: "It knows no workload, service or address of that name, knows several, or the port is missing.",
        next_step: "See 'underpass workloads' and 'underpass services' for the names; NAMESPACE/NAME:PORT is precise.",
    }
    NO_CLUSTER = "UP-CLI-005" {
        what: "The cluster cannot be asked.",
        cause: "There is no kubeconfig, it names another cluster or has expired, or the API server does not answer or refuses.",
        next_step: "See whether kubectl works with the same --kubeconfig and --context; on a node, --node does without.",
    }
}
