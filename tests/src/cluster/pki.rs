//! The cluster's keys, certificates and clients, created for each cluster as files for its
//! programs.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::json;

/// Clients by token, each with its name and group, for programs that are not pods.
const CLIENTS: [[&str; 3]; 6] = [
    ["admin", "admin", "system:masters"],
    ["controller-manager", "system:kube-controller-manager", ""],
    ["scheduler", "system:kube-scheduler", ""],
    ["kube-proxy", "system:kube-proxy", ""],
    ["node-1", "system:node:node-1", "system:nodes"],
    ["node-2", "system:node:node-2", "system:nodes"],
];
/// The name under which the API server authenticates to kubelets by certificate.
const KUBELET_CLIENT: &str = "apiserver-kubelet";

/// The folder of the keys.
#[derive(Debug)]
pub struct Pki {
    folder: PathBuf,
    ca: RootCa,
}

impl Pki {
    /// Creates the cluster's authority, the API server's certificate, the token signing key and the
    /// clients.
    pub fn create(folder: &Path, api_server: &[IpAddr]) -> Self {
        fs::create_dir_all(folder).unwrap();
        let pki = Self {
            folder: folder.to_owned(),
            ca: RootCa::new("cluster"),
        };
        pki.write("ca.crt", &pki.ca.certificate);
        pki.write("ca.key", &pki.ca.issuer.key().serialize_pem());
        let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        pki.issue("apiserver", names, api_server);
        let mut client = CertificateParams::default();
        client
            .distinguished_name
            .push(DnType::CommonName, KUBELET_CLIENT);
        client
            .distinguished_name
            .push(DnType::OrganizationName, "system:masters");
        pki.sign(KUBELET_CLIENT, client);
        let tokens = KeyPair::generate().unwrap();
        pki.write("tokens.key", &tokens.serialize_pem());
        pki.write("tokens.pub", &tokens.public_key_pem());
        let line = |[token, name, group]: [&str; 3]| format!("{token},{name},{name},{group}\n");
        pki.write("clients.csv", &CLIENTS.map(line).concat());
        pki
    }

    /// Writes a server's certificate and key as `NAME.crt` and `NAME.key`.
    pub fn issue<const N: usize>(&self, name: &str, names: [&str; N], addresses: &[IpAddr]) {
        let mut params = CertificateParams::new(names.map(str::to_owned)).unwrap();
        params
            .subject_alt_names
            .extend(addresses.iter().map(|a| SanType::IpAddress(*a)));
        self.sign(name, params);
    }

    fn sign(&self, name: &str, mut params: CertificateParams) {
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        self.write(
            &format!("{name}.crt"),
            &params.signed_by(&key, &self.ca.issuer).unwrap().pem(),
        );
        self.write(&format!("{name}.key"), &key.serialize_pem());
    }

    /// The path of a file.
    pub fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    /// The certificate of the cluster's authority.
    pub fn ca(&self) -> &str {
        &self.ca.certificate
    }

    /// Writes the kubeconfig of a client, and returns its path.
    pub fn kubeconfig(&self, name: &str, server: &str, token: &str) -> String {
        let name = format!("{name}.kubeconfig");
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "c",
                "cluster": { "server": server, "certificate-authority": self.path("ca.crt") },
            }],
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

/// A root certificate with its key.
#[derive(Debug)]
pub struct RootCa {
    /// The certificate, PEM.
    pub certificate: String,
    /// The issuer with its key.
    pub issuer: Issuer<'static, KeyPair>,
}

impl RootCa {
    /// A new self-signed root.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Self {
            certificate,
            issuer: Issuer::new(params, key),
        }
    }
}
