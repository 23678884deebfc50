//! Codes of the proxy.

codes! {
    CA_FOLDER = "UP-PROXY-001" {
        what: "The folder of the local certificate authority cannot be used.",
        cause: "It is not writable, or its files do not fit together.",
        next_step: "Check the folder given with --ca-dir: ca-cert.pem, ca-key.pem, cert-chain.pem and root-cert.pem, as of Istio's plug-in CA.",
    }
    LISTEN = "UP-PROXY-002" {
        what: "The proxy could not listen in a pod.",
        cause: "Something in the pod has one of the ports 15001, 15006, 15008 and 15053, or the proxy lacks CAP_NET_ADMIN, CAP_NET_RAW or CAP_SYS_ADMIN.",
        next_step: "Free the port in the pod, or give the proxy these capabilities.",
    }
    CONNECT = "UP-PROXY-003" {
        what: "The destination could not be connected to.",
        cause: "Nobody listens there, the address is wrong, or a firewall is in the way.",
        next_step: "Check that the destination is running and listens on that port.",
    }
    CONNECT_TUNNEL = "UP-PROXY-004" {
        what: "The proxy at the other end could not be connected to.",
        cause: "No proxy serves the destination pod, or a NetworkPolicy or firewall blocks port 15008.",
        next_step: "Check that the destination pod is enrolled and that port 15008 is open between the nodes.",
    }
    TLS = "UP-PROXY-005" {
        what: "The TLS handshake failed.",
        cause: "Another identity than expected, an expired certificate, another root, or a peer that is no mesh proxy.",
        next_step: "Compare the identity in the message with the workload's service account, and check both certificates.",
    }
    TUNNEL_REFUSED = "UP-PROXY-006" {
        what: "The proxy at the other end refused the connection.",
        cause: "A policy denies it (401), the destination does not answer (503), or it is not there (400).",
        next_step: "See the access log of the other proxy for the reason.",
    }
    TUNNEL_BROKE = "UP-PROXY-007" {
        what: "The tunnel broke.",
        cause: "The other proxy or the network between went away, or it did what no good proxy does.",
        next_step: "See the log of the other proxy.",
    }
    NO_UPSTREAM = "UP-PROXY-008" {
        what: "The service has no endpoint to connect to.",
        cause: "No healthy workload serves that port.",
        next_step: "Check the workloads of the service and its ports.",
    }
    SELF_CALL = "UP-PROXY-009" {
        what: "A connection to the proxy's own port was refused.",
        cause: "An application connects to 15001, 15006, 15008 or 15053, which belong to the proxy.",
        next_step: "Connect to the application's own port.",
    }
    DENIED = "UP-PROXY-010" {
        what: "A policy denied the connection.",
        cause: "A deny policy matches, or allow policies exist and none matches; the message names it.",
        next_step: "Change the policy that the message names, if the connection should be allowed.",
    }
    POLICY_CHANGED = "UP-PROXY-011" {
        what: "An open connection was closed because a policy now denies it.",
        cause: "A policy or the workload has changed.",
        next_step: "Change the policy that the message names, if the connection should be allowed.",
    }
    SERVING = "UP-PROXY-012" {
        what: "A request on a tunnel was not accepted.",
        cause: "The peer asked for something that is not a destination in this pod.",
        next_step: "See the message; a proxy of another version or with stale state sent it.",
    }
    POD_GONE = "UP-PROXY-013" {
        what: "An open connection was closed because its pod has left.",
        cause: "The pod was deleted or left the mesh.",
        next_step: "None.",
    }
    DRAINED = "UP-PROXY-014" {
        what: "An open connection was closed because the proxy stops.",
        cause: "The proxy was told to stop and the drain time has passed.",
        next_step: "Give it more time with CONNECTION_TERMINATION_DEADLINE.",
    }
    IO = "UP-PROXY-015" {
        what: "A connection ended with an error.",
        cause: "An application or the network reset it.",
        next_step: "See the application's log.",
    }
    OWN_ADDRESS = "UP-PROXY-016" {
        what: "The proxy could not listen on an address of its own.",
        cause: "Another process, perhaps another proxy, has it on this node.",
        next_step: "End the other process, or choose another address with --admin-addr, --stats-addr or --readiness-addr.",
    }
}
