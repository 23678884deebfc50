//! The CNI network of a real runtime: the reference plugins `bridge` and `host-local`, then the
//! recorder.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cni_recorder::{self, CniRecorder};

/// The network's name.
pub const NAME: &str = "test";
/// Debian's plugins, which support CNI up to 1.0.0.
pub const PLUGINS: [&str; 3] = ["cni/bridge", "cni/host-local", "cni/loopback"];

const CONFLIST: &str = "10-test.conflist";

/// A runtime's CNI folders, inside a test's folder. The first pod gets `10.88.0.2` and `fd88::2`,
/// the next one `10.88.0.3`, and so on.
#[derive(Debug)]
pub struct CniNetwork {
    folder: PathBuf,
    arguments: [OsString; 5],
    /// Records how the runtime calls plugins.
    pub recorder: CniRecorder,
}

impl CniNetwork {
    /// Writes the conflist, without Underpass. `plugins` are the plugin binaries; at most `pods`
    /// pods can have addresses at a time.
    pub fn new(folder: &Path, version: &str, plugins: &[PathBuf], pods: u8) -> Self {
        for part in ["bin", "net.d"] {
            fs::create_dir_all(folder.join(part)).unwrap();
        }
        for plugin in plugins {
            let name = plugin.file_name().unwrap();
            std::os::unix::fs::symlink(plugin, folder.join("bin").join(name)).unwrap();
        }
        let recorder = CniRecorder::install(&folder.join("bin"), folder.join("calls"));
        let [conf, bin] = ["net.d", "bin"].map(|part| folder.join(part).into_os_string());
        let arguments = [
            "--install-cni".into(),
            "--conf-dir".into(),
            conf,
            "--bin-dir".into(),
            bin,
        ];
        let network = Self {
            folder: folder.to_owned(),
            arguments,
            recorder,
        };
        network.write(&network.conflist(version, pods));
        network
    }

    fn conflist(&self, version: &str, pods: u8) -> Value {
        let last = 1 + pods;
        json!({
            "cniVersion": version,
            "name": NAME,
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni0",
                    "isGateway": true,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": self.folder.join("ipam"),
                        "ranges": [
                            [{
                                "subnet": "10.88.0.0/24",
                                "rangeStart": "10.88.0.2",
                                "rangeEnd": format!("10.88.0.{last}"),
                            }],
                            [{
                                "subnet": "fd88::/64",
                                "rangeStart": "fd88::2",
                                "rangeEnd": format!("fd88::{last:x}"),
                            }],
                        ],
                        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
                    },
                },
                { "type": cni_recorder::TYPE },
            ],
        })
    }

    /// The folders of the configurations and of the plugins.
    pub fn folders(&self) -> [PathBuf; 2] {
        ["net.d", "bin"].map(|part| self.folder.join(part))
    }

    /// Arguments with which the agent installs its plugin into this network.
    pub fn install_arguments(&self) -> [&OsStr; 5] {
        self.arguments.each_ref().map(OsString::as_os_str)
    }

    /// The current conflist.
    pub fn read(&self) -> Value {
        serde_json::from_slice(&fs::read(self.folder.join("net.d").join(CONFLIST)).unwrap())
            .unwrap()
    }

    /// Replaces the conflist.
    pub fn write(&self, conflist: &Value) {
        let staged = self.folder.join("net.d").join(".staged");
        fs::write(&staged, conflist.to_string()).unwrap();
        fs::rename(staged, self.folder.join("net.d").join(CONFLIST)).unwrap();
    }

    /// Addresses that host-local has allocated.
    pub fn allocated_addresses(&self) -> Vec<IpAddr> {
        let entries = fs::read_dir(self.folder.join("ipam").join(NAME))
            .into_iter()
            .flatten()
            .flatten();
        entries
            .filter_map(|e| e.file_name().to_str()?.parse().ok())
            .collect()
    }
}
