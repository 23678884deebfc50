//! Codes of redirection.

codes! {
    NO_ADDRESS = "UP-REDIR-001" {
        what: "There is no address to redirect.",
        cause: "The plugin before Underpass gave the pod no IP address.",
        next_step: "Look at the result of the main CNI plugin; Underpass must come after it in the conflist.",
    }
    NF_TABLES = "UP-REDIR-002" {
        what: "nf_tables did not take the rules.",
        cause: "The kernel lacks nf_tables or its tproxy expression, or the caller lacks CAP_NET_ADMIN.",
        next_step: "Load the kernel modules nf_tables and nft_tproxy, and check the capabilities of the caller.",
    }
    ROUTING = "UP-REDIR-003" {
        what: "Policy routing did not take a rule or a route.",
        cause: "The kernel lacks policy routing for that family, or the caller lacks CAP_NET_ADMIN.",
        next_step: "Check that the kernel has IP_MULTIPLE_TABLES and IPV6_MULTIPLE_TABLES, and the capabilities of the caller.",
    }
    IPTABLES = "UP-REDIR-004" {
        what: "An iptables program did not take the rules.",
        cause: "It is not installed on this node, or the kernel lacks what its rules need.",
        next_step: "Install iptables with its nft and legacy variants, or choose another capture with the agent's --capture.",
    }
}
