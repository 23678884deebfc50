//! The cluster's keys and certificates, and who its clients are. Made anew for each cluster, as files for its programs.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::json;

/// Its clients by token: each with its name and group. Programs that are no pods yet have no other identity.
const CLIENTS: [[&str; 3]; 6] = [
    ["admin", "admin", "system:masters"],
    ["controller-manager", "system:kube-controller-manager", ""],
    ["scheduler", "system:kube-scheduler", ""],
    ["kube-proxy", "system:kube-proxy", ""],
    ["node-1", "system:node:node-1", "system:nodes"],
    ["node-2", "system:node:node-2", "system:nodes"],
];
/// The API server towards kubelets: they know it by certificate.
const KUBELET_CLIENT: &str = "apiserver-kubelet";

/// The folder of the keys.
#[derive(Debug)]
pub struct Pki {
    folder: PathBuf,
    ca: Authority,
}

impl Pki {
    /// Makes the cluster's own authority, the API server's certificate, the key that signs tokens, and the clients.
    pub fn create(folder: &Path, api_server: &[IpAddr]) -> Self {
        fs::create_dir_all(folder).unwrap();
        let pki = Self { folder: folder.to_owned(), ca: Authority::new("cluster") };
        pki.write("ca.crt", &pki.ca.certificate);
        pki.write("ca.key", &pki.ca.issuer.key().serialize_pem());
        let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        pki.issue("apiserver", names, api_server);
        let mut client = CertificateParams::default();
        client.distinguished_name.push(DnType::CommonName, KUBELET_CLIENT);
        client.distinguished_name.push(DnType::OrganizationName, "system:masters");
        pki.sign(KUBELET_CLIENT, client);
        let tokens = KeyPair::generate().unwrap();
        pki.write("tokens.key", &tokens.serialize_pem());
        pki.write("tokens.pub", &tokens.public_key_pem());
        let line = |[token, name, group]: [&str; 3]| format!("{token},{name},{name},{group}\n");
        pki.write("clients.csv", &CLIENTS.map(line).concat());
        pki
    }

    /// A server's certificate and key, as `NAME.crt` and `NAME.key`.
    pub fn issue<const N: usize>(&self, name: &str, names: [&str; N], addresses: &[IpAddr]) {
        let mut params = CertificateParams::new(names.map(str::to_owned)).unwrap();
        params.subject_alt_names.extend(addresses.iter().map(|a| SanType::IpAddress(*a)));
        self.sign(name, params);
    }

    fn sign(&self, name: &str, mut params: CertificateParams) {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        self.write(&format!("{name}.crt"), &params.signed_by(&key, &self.ca.issuer).unwrap().pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
    }

    /// The path of a file.
    pub fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    /// The certificate of the cluster's own authority.
    pub fn ca(&self) -> &str {
        &self.ca.certificate
    }

    /// Writes the kubeconfig of a client, and returns its path.
    pub fn kubeconfig(&self, name: &str, server: &str, token: &str) -> String {
        let name = format!("{name}.kubeconfig");
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "c", "cluster": { "server": server, "certificate-authority": self.path("ca.crt") } }],
            "users": [{ "name": "u", "user": { "token": token } }],
            "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u" } }],
            "current-context": "x",
        });
        self.write(&name, &config.to_string());
        self.path(&name)
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.folder.join(name), content).unwrap();
    }
}

/// A certificate authority.
#[derive(Debug)]
pub struct Authority {
    /// PEM.
    pub certificate: String,
    /// What signs.
    pub issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A root of its own.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Self { certificate, issuer: Issuer::new(params, key) }
    }
}
