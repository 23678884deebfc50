//! Codes of what the proxy has to do with the control plane: discovery, certificates, and what is made of them.

codes! {
    SETTING = "UP-CONTROL-001" {
        what: "An option or environment variable has a value that cannot be used.",
        cause: "A typo, or two options that contradict each other; the message names them.",
        next_step: "Correct the option that the message names; docs/control-plane.md lists all of them.",
    }
    AWAY = "UP-CONTROL-002" {
        what: "The control plane cannot be connected to.",
        cause: "istiod is not running, its name does not resolve, a NetworkPolicy blocks it, or its certificate is not of the root that is trusted.",
        next_step: "Check XDS_ADDRESS or CA_ADDRESS, and XDS_ROOT_CA or CA_ROOT_CA against the ConfigMap istio-ca-root-cert. Traffic goes on with the state that was read last.",
    }
    STREAM_ENDED = "UP-CONTROL-003" {
        what: "The control plane ended the discovery stream with an error.",
        cause: "It does not accept the token or the node of this proxy, or it restarts.",
        next_step: "See the message and istiod's log. Traffic goes on with the state that was read last, and the stream is opened again.",
    }
    RESOURCE = "UP-CONTROL-004" {
        what: "A resource of the control plane was not taken.",
        cause: "It is malformed, or uses something that this version does not know; the message names it.",
        next_step: "Correct or delete the Kubernetes object behind that resource; everything else of the push is in force.",
    }
    TOKEN = "UP-CONTROL-005" {
        what: "The token for the control plane cannot be read.",
        cause: "The projected volume is missing, or AUTH_TOKEN names a file that does not exist.",
        next_step: "Check the volume istio-token of the DaemonSet, and AUTH_TOKEN.",
    }
    CA_REFUSED = "UP-CONTROL-006" {
        what: "The certificate authority did not issue a certificate.",
        cause: "It is away, it does not trust this proxy's service account (CA_TRUSTED_NODE_ACCOUNTS), or the pod is not on this node.",
        next_step: "See the message and istiod's log. A certificate that is still valid goes on being used, and it is asked again.",
    }
    CA_ANSWER = "UP-CONTROL-007" {
        what: "The certificate authority issued something that cannot be used.",
        cause: "The certificate is for another identity or another key, has expired, or does not lead to the roots that came with it.",
        next_step: "Check the certificate authority, and the clocks of both nodes. A certificate that is still valid goes on being used.",
    }
    NO_CREDENTIALS = "UP-CONTROL-008" {
        what: "A connection failed because its pod has no valid certificate.",
        cause: "None has been issued yet, or the last one has expired and no other was issued; the message has the reason.",
        next_step: "See the certificates in the proxy's /status; the reason there has a code of its own.",
    }
    REVOKED = "UP-CONTROL-009" {
        what: "A connection was refused or cut because the peer's certificate is revoked.",
        cause: "It is on the list that CRL_PATH names.",
        next_step: "Give the peer a new certificate, or take it off the list.",
    }
    CRL = "UP-CONTROL-010" {
        what: "The list of revoked certificates cannot be used.",
        cause: "The file that CRL_PATH names is missing or is no CRL in PEM or DER.",
        next_step: "Correct the file; until then the lists that were read last stay in force.",
    }
    STATE_TOO_OLD = "UP-CONTROL-011" {
        what: "A connection was refused because the state of the mesh is older than it may be.",
        cause: "The control plane has been away, or has said nothing, for longer than UNDERPASS_MAX_STATE_AGE.",
        next_step: "See `underpass status` for how the proxy stands with its control plane, and bring that back.",
    }
}
