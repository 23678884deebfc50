//! Codes of the proxy's control plane clients: discovery, certificates and their use.

codes! {
    /// An option or environment variable has an invalid value.
    /// Cause: A typo, or two options that contradict each other; the message names them.
    /// Next step: Correct the option that the message names; docs/control-plane.md lists all of
    /// them.
    SETTING = "UP-CONTROL-001";

    /// The proxy cannot connect to the control plane.
    /// Cause: istiod is not running, its name does not resolve, a NetworkPolicy blocks the
    /// connection, or its certificate is not signed by a trusted root.
    /// Next step: Check XDS_ADDRESS or CA_ADDRESS, and XDS_ROOT_CA or CA_ROOT_CA against the
    /// ConfigMap istio-ca-root-cert. Traffic continues with the last known state.
    UNREACHABLE = "UP-CONTROL-002";

    /// The control plane ended the discovery stream with an error.
    /// Cause: It rejected the token or the node of this proxy, or it is restarting.
    /// Next step: See the message and istiod's log. Traffic continues with the last known state,
    /// and the proxy reopens the stream.
    STREAM_ENDED = "UP-CONTROL-003";

    /// A resource from the control plane was rejected, or is used without the parts that are not
    /// understood. These never allow anything.
    /// Cause: It is malformed, or uses a feature that this version does not support; the message
    /// names it.
    /// Next step: Correct or delete the Kubernetes object behind that resource, or upgrade
    /// Underpass; the rest of the push is in effect.
    RESOURCE = "UP-CONTROL-004";

    /// The token for the control plane cannot be read.
    /// Cause: The projected volume is missing, or AUTH_TOKEN names a file that does not exist.
    /// Next step: Check the volume istio-token of the DaemonSet, and AUTH_TOKEN.
    TOKEN = "UP-CONTROL-005";

    /// The certificate authority did not issue a certificate.
    /// Cause: It is unreachable, it does not trust this proxy's service account
    /// (CA_TRUSTED_NODE_ACCOUNTS), or the pod is not on this node.
    /// Next step: See the message and istiod's log. The proxy retries, and keeps using the current
    /// certificate until it expires.
    CA_REFUSED = "UP-CONTROL-006";

    /// The certificate authority issued an unusable certificate.
    /// Cause: The certificate is for another identity or another key, has expired, or does not
    /// chain to the roots that came with it.
    /// Next step: Check the certificate authority, and the clocks of both nodes. The proxy keeps
    /// using the current certificate until it expires.
    CA_ANSWER = "UP-CONTROL-007";

    /// A connection failed because its pod has no valid certificate.
    /// Cause: None has been issued yet, or the last one expired without a replacement; the message
    /// contains the reason.
    /// Next step: See the certificates in the proxy's /status; the reason there has its own error
    /// code.
    NO_CREDENTIALS = "UP-CONTROL-008";

    /// A connection was refused or closed because the peer's certificate is revoked.
    /// Cause: The certificate is on the revocation list in CRL_PATH.
    /// Next step: Issue a new certificate to the peer, or remove the old one from the list.
    REVOKED = "UP-CONTROL-009";

    /// A certificate revocation list cannot be used; those that were read before stay in effect.
    /// Cause: A file in CRL_PATH is missing or is not a CRL in PEM or DER, or another key than the
    /// authority's signed it.
    /// Next step: Correct the file that the message names.
    CRL = "UP-CONTROL-010";

    /// A connection was refused because the state of the mesh is too old.
    /// Cause: The control plane has been unreachable or silent for longer than
    /// UNDERPASS_MAX_STATE_AGE.
    /// Next step: Check the proxy's connection to the control plane with `underpass status`, and
    /// restore it.
    STATE_TOO_OLD = "UP-CONTROL-011";

    /// The proxy could not create a certificate request.
    /// Cause: The name of the pod's trust domain, namespace or service account is not valid in a
    /// certificate, or the operating system provides no random numbers.
    /// Next step: See the message. The certificate authority was not asked; the proxy retries, and
    /// keeps using the current certificate until it expires.
    SIGNING_REQUEST = "UP-CONTROL-012";

    /// A connection was refused because it is unknown whether its destination is in the mesh.
    /// Cause: With XDS_ON_DEMAND, the control plane did not answer for the address within 5 s, or
    /// the pod waits for too many addresses at once.
    /// Next step: Check the proxy's connection to the control plane with `underpass status`; if the
    /// pod waits for too many addresses, find out why it connects to so many.
    UNDISCOVERED = "UP-CONTROL-013";

    /// A certificate revocation list is not in effect, in no version.
    /// Cause: CRL_PATH or a file in it cannot be read or is not a CRL in PEM or DER, and has not
    /// been since the proxy started.
    /// Next step: Correct the file that the message names. If no list at all can be used, the proxy
    /// is not ready and serves no pods until one can.
    NO_CRL = "UP-CONTROL-014";
}
