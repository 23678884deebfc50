//! Codes of redirection.

codes! {
    /// The pod has no IP address to redirect.
    /// Cause: The CNI plugins before Underpass assigned none.
    /// Next step: Check the result of the main CNI plugin; underpass-cni must come after it in the
    /// conflist.
    NO_ADDRESS = "UP-REDIR-001";

    /// The kernel rejected the nf_tables rules.
    /// Cause: The kernel lacks nf_tables or its tproxy expression, or the process lacks
    /// CAP_NET_ADMIN.
    /// Next step: Load the kernel modules nf_tables and nft_tproxy, and check the capabilities of
    /// the process.
    NF_TABLES = "UP-REDIR-002";

    /// The kernel rejected an ip rule or a route.
    /// Cause: The kernel lacks policy routing for that address family, or the process lacks
    /// CAP_NET_ADMIN.
    /// Next step: Check that the kernel has IP_MULTIPLE_TABLES and IPV6_MULTIPLE_TABLES, and check
    /// the capabilities of the process.
    ROUTING = "UP-REDIR-003";

    /// An iptables program rejected the rules.
    /// Cause: iptables is not installed on this node, or the kernel lacks a module that its rules
    /// need.
    /// Next step: Install iptables with its nft and legacy variants, or choose another capture with
    /// the agent's --capture.
    IPTABLES = "UP-REDIR-004";

    /// The pod's network namespace contains more objects than are read.
    /// Cause: A process with CAP_NET_ADMIN in the pod creates chains, rules, routes or addresses
    /// without end, or the application has more open connections than the mesh supports.
    /// Next step: Reduce their number in the pod (nft list ruleset, ip rule, ip address, ss), or
    /// restart the pod; the next verification finds the change.
    TOO_MANY = "UP-REDIR-005";
}
