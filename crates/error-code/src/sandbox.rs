//! Codes of the sandbox.

codes! {
    PRIVILEGE = "UP-BOX-001" {
        what: "The sandbox may not make network namespaces.",
        cause: "It does not run as root, and the kernel does not allow user namespaces to this user.",
        next_step: "Run it with sudo, or allow user namespaces (sysctl kernel.unprivileged_userns_clone or user.max_user_namespaces).",
    }
    RUNNING = "UP-BOX-002" {
        what: "A sandbox is running already.",
        cause: "It was started before and not stopped.",
        next_step: "Use it, or stop it with 'underpass sandbox down'; another one needs another UNDERPASS_SANDBOX_DIR.",
    }
    NOT_RUNNING = "UP-BOX-003" {
        what: "No sandbox is running.",
        cause: "It was not started, was stopped, or runs with another UNDERPASS_SANDBOX_DIR.",
        next_step: "Start one with 'underpass sandbox up'.",
    }
    NO_SUCH_POD = "UP-BOX-004" {
        what: "There is no such pod in the sandbox.",
        cause: "A typo, or the name is there in more than one namespace.",
        next_step: "See 'underpass sandbox status' for the pods; NAMESPACE/NAME is precise.",
    }
    MESH = "UP-BOX-005" {
        what: "The sandbox cannot be made from this mesh file.",
        cause: "A pod has no node or no address, or there is no pod at all.",
        next_step: "Give every workload that should run a node and workloadIps.",
    }
    BINARY = "UP-BOX-006" {
        what: "A program of Underpass is missing.",
        cause: "The four programs are expected in one folder.",
        next_step: "Build them all with scripts/build.",
    }
    START = "UP-BOX-007" {
        what: "The sandbox could not be started.",
        cause: "The step named in the message failed; everything that was made has been removed again.",
        next_step: "See the logs in the folder that the message names, or run it again with RUST_LOG=debug.",
    }
    POD = "UP-BOX-008" {
        what: "A pod of the sandbox could not be started.",
        cause: "A CNI plugin failed; its own code and reason stand in the message.",
        next_step: "Follow the next step that the plugin gives; the other pods run.",
    }
}
