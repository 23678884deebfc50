//! Codes of the CNI plugin.

codes! {
    ENVIRONMENT = "UP-CNI-001" {
        what: "The environment is not that of a CNI call.",
        cause: "The plugin was not started by a container runtime, or variables are missing.",
        next_step: "Start it through the runtime or cnitool; to see it work, run underpass-cni with CNI_COMMAND=VERSION.",
    }
    STDIN = "UP-CNI-002" {
        what: "The configuration on standard input cannot be read.",
        cause: "The conflist is not valid JSON, or a key of the underpass-cni entry has a value of the wrong type.",
        next_step: "Check the underpass-cni entry of the conflist in the runtime's CNI folder.",
    }
    VERSION = "UP-CNI-003" {
        what: "The cniVersion of the configuration is not supported.",
        cause: "The conflist names a version that Underpass does not speak.",
        next_step: "Use one of 0.3.1, 0.4.0, 1.0.0 and 1.1.0 in the conflist.",
    }
    CONFIG = "UP-CNI-004" {
        what: "The configuration lacks something.",
        cause: "The network has no valid name.",
        next_step: "Give the conflist a name of letters, digits, '_', '.' and '-'.",
    }
    NO_PREV_RESULT = "UP-CNI-005" {
        what: "There is no usable prevResult.",
        cause: "Underpass is the first plugin of the conflist, but it must come after the one that makes the interface.",
        next_step: "Move the underpass-cni entry to the end of the conflist.",
    }
    NETNS = "UP-CNI-006" {
        what: "CNI_NETNS is not the network namespace of a pod.",
        cause: "The path is gone, is no network namespace, or is the namespace that the plugin itself runs in.",
        next_step: "If the sandbox is gone, the runtime makes a new one; otherwise check how the runtime is configured.",
    }
    AGENT_ABSENT = "UP-CNI-007" {
        what: "The node agent cannot be reached.",
        cause: "underpass-agent does not run on this node, or listens on another socket.",
        next_step: "Check that the agent's pod on this node is running; the pod starts by itself afterwards.",
    }
    AGENT_SILENT = "UP-CNI-008" {
        what: "The node agent did not finish in time.",
        cause: "The agent or the proxy on this node hangs or is overloaded.",
        next_step: "Look at the agent's log and status on this node; the runtime tries again by itself.",
    }
    AGENT_CONFUSED = "UP-CNI-009" {
        what: "The node agent's answer was not understood.",
        cause: "Plugin and agent are of different versions, or something else listens on the agent's socket.",
        next_step: "Finish the upgrade of the agent on this node; it installs the plugin that goes with it.",
    }
    REFUSED = "UP-CNI-010" {
        what: "The node agent could not enrol the pod.",
        cause: "The agent's own code and reason stand in the message.",
        next_step: "Follow the next step that the agent gives.",
    }
    INSTALL = "UP-CNI-011" {
        what: "The redirect rules could not be installed in the pod.",
        cause: "The kernel refused them; the reason stands in the message.",
        next_step: "See the code of the reason; the rules that were installed have been removed again.",
    }
    INTERNAL = "UP-CNI-012" {
        what: "The plugin failed in a way that it should not.",
        cause: "A defect in Underpass.",
        next_step: "Report the message with the version of the plugin.",
    }
    CHECK = "UP-CNI-013" {
        what: "CHECK found the pod not as ADD left it.",
        cause: "Its rules were changed, the proxy is away, or the agent does not know the pod; the reason stands in the message.",
        next_step: "See the agent's status on this node; what can be repaired is repaired by itself.",
    }
    STATUS = "UP-CNI-014" {
        what: "No pod can be enrolled on this node now.",
        cause: "The agent runs, and no proxy is connected to it.",
        next_step: "Check that the proxy's pod on this node is running.",
    }
}
