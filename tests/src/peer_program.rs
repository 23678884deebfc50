//! Programs of other projects as the other end of a tunnel, with certificates of a sandbox's
//! authority.

#![allow(clippy::disallowed_types)] // runs the programs

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::certificates::certificate;
use crate::sandbox::{Sandbox, until};

/// A certificate and its key as files for programs.
#[derive(Debug, Clone)]
pub struct PemFiles {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The mesh's root.
    pub root: PathBuf,
}

impl PemFiles {
    /// Issues a certificate for an identity. OpenSSL converts it.
    pub fn of(sandbox: &Sandbox, identity: &str) -> Self {
        let ca = sandbox.folder().join("box/ca");
        let (chain, key) = certificate(&ca, identity);
        let files = ["peer-cert", "peer-key"].map(|name| sandbox.folder().join(name));
        std::fs::write(&files[0], &chain[0]).unwrap();
        std::fs::write(&files[1], key.secret_der()).unwrap();
        Self {
            certificate: to_pem(&files[0], "x509"),
            key: to_pem(&files[1], "pkey"),
            root: ca.join("root-cert.pem"),
        }
    }
}

fn to_pem(der: &Path, kind: &str) -> PathBuf {
    let pem = der.with_extension("pem");
    let mut command = Command::new("openssl");
    command.args([kind, "-inform", "DER", "-in"]).arg(der);
    assert!(command.arg("-out").arg(&pem).status().unwrap().success());
    pem
}

/// A running program. It is killed when this value is dropped.
#[derive(Debug)]
pub struct PeerProgram {
    name: String,
    process: Child,
    input: ChildStdin,
    /// Its standard output and errors.
    output: Arc<Mutex<Vec<u8>>>,
}

impl PeerProgram {
    /// Starts a program in a pod.
    pub fn start(sandbox: &Sandbox, pod: &str, mut command: Command) -> Self {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        netns::process::in_netns(&mut command, &sandbox.pod(pod)).unwrap();
        let process = netns::process::die_with_parent(&mut command).spawn();
        let mut process = process.unwrap();
        let output = Arc::default();
        collect(process.stdout.take().unwrap(), &output);
        collect(process.stderr.take().unwrap(), &output);
        Self {
            name: command.get_program().to_string_lossy().into_owned(),
            input: process.stdin.take().unwrap(),
            process,
            output,
        }
    }

    /// Writes to its standard input.
    pub fn send(&mut self, bytes: &[u8]) {
        self.input.write_all(bytes).unwrap();
        self.input.flush().unwrap();
    }

    /// How often it has printed these bytes.
    pub fn count(&self, bytes: &[u8]) -> usize {
        let output = self.output.lock().unwrap();
        output.windows(bytes.len()).filter(|w| *w == bytes).count()
    }

    /// Waits until it has printed these bytes.
    pub fn await_output(&self, bytes: &[u8]) {
        let what = format!("{} prints {:?}", self.name, String::from_utf8_lossy(bytes));
        until(&what, || (self.count(bytes) > 0).then_some(()));
    }
}

impl Drop for PeerProgram {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let output = self.output.lock().unwrap();
            eprintln!("-- {}\n{}", self.name, String::from_utf8_lossy(&output));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn collect(mut from: impl Read + Send + 'static, to: &Arc<Mutex<Vec<u8>>>) {
    let to = to.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            to.lock().unwrap().extend_from_slice(&buffer[..length]);
        }
    });
}
