//! The few messages of the Kubernetes container runtime interface (`runtime.v1`) that the tests
//! send and read.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use prost::Message;

use super::grpc::{self, Status};

/// Long enough for calls that succeed; a kubelet waits for two minutes.
const DEADLINE: Duration = Duration::from_secs(20);

/// A client of a runtime.
#[derive(Debug, Clone)]
pub struct Cri {
    /// The runtime's socket.
    pub socket: PathBuf,
}

/// The configuration of a pod sandbox.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<PodSandboxMetadata>,
    #[prost(string, tag = "2")]
    hostname: String,
    #[prost(string, tag = "3")]
    log_directory: String,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxPodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
    #[prost(uint32, tag = "4")]
    attempt: u32,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxPodSandboxConfig {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    security_context: Option<LinuxSandboxSecurityContext>,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxSandboxSecurityContext {
    #[prost(message, optional, tag = "1")]
    namespace_options: Option<NamespaceOption>,
}

#[derive(Clone, PartialEq, Message)]
struct NamespaceOption {
    /// 0: the pod's own, 1: the container's own, 2: the node's.
    #[prost(int32, tag = "1")]
    network: i32,
    #[prost(int32, tag = "2")]
    pid: i32,
}

impl PodSandboxConfig {
    /// A pod of the mesh, or not: the runtime does not know.
    pub fn new(namespace: &str, name: &str, uid: &str, logs: &str, cgroup_parent: &str) -> Self {
        let options = NamespaceOption { network: 0, pid: 1 };
        let (name, uid, namespace) = (name.to_owned(), uid.to_owned(), namespace.to_owned());
        Self {
            hostname: name.clone(),
            metadata: Some(PodSandboxMetadata {
                name,
                uid,
                namespace,
                attempt: 0,
            }),
            log_directory: logs.to_owned(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: cgroup_parent.to_owned(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(options),
                }),
            }),
        }
    }

    /// The same pod in the node's own network namespace.
    #[must_use]
    pub fn in_the_nodes_network(mut self) -> Self {
        self.hostname.clear();
        let context = self
            .linux
            .as_mut()
            .and_then(|l| l.security_context.as_mut());
        context
            .and_then(|c| c.namespace_options.as_mut())
            .unwrap()
            .network = 2;
        self
    }
}

#[derive(Clone, PartialEq, Message)]
struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
    #[prost(string, tag = "11")]
    log_path: String,
    #[prost(message, optional, tag = "15")]
    linux: Option<Empty>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, tag = "2")]
    attempt: u32,
}

#[derive(Clone, PartialEq, Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, Message)]
struct ImageStatusRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct ImageStatusResponse {
    #[prost(message, optional, tag = "1")]
    image: Option<Empty>,
}

/// Requests and answers that are, or begin with, one id.
#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct ExecSyncRequest {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(string, repeated, tag = "2")]
    cmd: Vec<String>,
    #[prost(int64, tag = "3")]
    timeout: i64,
}

/// What a command in a container printed, and how it ended.
#[derive(Clone, PartialEq, Message)]
pub struct ExecSyncResponse {
    /// Standard output.
    #[prost(bytes = "vec", tag = "1")]
    pub stdout: Vec<u8>,
    /// Standard error.
    #[prost(bytes = "vec", tag = "2")]
    pub stderr: Vec<u8>,
    /// The exit code.
    #[prost(int32, tag = "3")]
    pub exit_code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<PodSandboxStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatus {
    #[prost(message, optional, tag = "5")]
    network: Option<PodSandboxNetworkStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxNetworkStatus {
    #[prost(string, tag = "1")]
    ip: String,
    #[prost(message, repeated, tag = "2")]
    additional_ips: Vec<Id>,
}

#[derive(Clone, PartialEq, Message)]
struct StatusRequest {
    #[prost(bool, tag = "1")]
    verbose: bool,
}

#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct Empty {}

impl Cri {
    /// Creates a pod sandbox; returns its id.
    ///
    /// # Errors
    /// The runtime's; a failing CNI plugin's message is part of it.
    pub fn run_pod_sandbox(&self, pod: &PodSandboxConfig) -> Result<String, Status> {
        self.run_pod_sandbox_by(pod, DEADLINE)
    }

    /// Creates a pod sandbox with a deadline for the runtime.
    ///
    /// # Errors
    /// The runtime's.
    pub fn run_pod_sandbox_by(
        &self,
        pod: &PodSandboxConfig,
        deadline: Duration,
    ) -> Result<String, Status> {
        let request = RunPodSandboxRequest {
            config: Some(pod.clone()),
        };
        self.runtime_by("RunPodSandbox", &request, deadline)
            .map(|Id { id }| id)
    }

    /// Stops and removes a sandbox with all of its containers.
    ///
    /// # Errors
    /// The runtime's.
    pub fn remove_pod_sandbox(&self, sandbox: &str) -> Result<(), Status> {
        self.runtime(
            "StopPodSandbox",
            &Id {
                id: sandbox.to_owned(),
            },
        )
        .map(|Empty {}| ())?;
        self.runtime(
            "RemovePodSandbox",
            &Id {
                id: sandbox.to_owned(),
            },
        )
        .map(|Empty {}| ())
    }

    /// A sandbox's addresses, the primary one first.
    ///
    /// # Errors
    /// The runtime's.
    pub fn addresses(&self, sandbox: &str) -> Result<Vec<String>, Status> {
        let answer: PodSandboxStatusResponse = self.runtime(
            "PodSandboxStatus",
            &Id {
                id: sandbox.to_owned(),
            },
        )?;
        let network = answer.status.and_then(|s| s.network).unwrap_or_default();
        Ok(std::iter::once(network.ip)
            .chain(network.additional_ips.into_iter().map(|a| a.id))
            .collect())
    }

    /// Starts a container in a sandbox; returns its id.
    ///
    /// # Errors
    /// The runtime's.
    pub fn run_container(
        &self,
        sandbox: &str,
        pod: &PodSandboxConfig,
        image: &str,
        command: &[&str],
    ) -> Result<String, Status> {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: "app".to_owned(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: image.to_owned(),
            }),
            command: command.iter().map(|c| (*c).to_owned()).collect(),
            log_path: format!("{sandbox}.log"),
            linux: Some(Empty {}),
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(pod.clone()),
        };
        let container: Id = self.runtime("CreateContainer", &request)?;
        let Empty {} = self.runtime("StartContainer", &container)?;
        Ok(container.id)
    }

    /// Runs a command in a container.
    ///
    /// # Errors
    /// The runtime's; a failing command is not an error.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<ExecSyncResponse, Status> {
        let cmd = command.iter().map(|c| (*c).to_owned()).collect();
        self.runtime(
            "ExecSync",
            &ExecSyncRequest {
                container_id: container.to_owned(),
                cmd,
                timeout: 10,
            },
        )
    }

    /// Whether the runtime knows an image.
    ///
    /// # Errors
    /// The runtime's.
    pub fn has_image(&self, image: &str) -> Result<bool, Status> {
        let request = ImageStatusRequest {
            image: Some(ImageSpec {
                image: image.to_owned(),
            }),
        };
        let answer: ImageStatusResponse = grpc::call(
            &self.socket,
            "/runtime.v1.ImageService/ImageStatus",
            &request,
            DEADLINE,
        )?;
        Ok(answer.image.is_some())
    }

    /// The network configuration that the runtime reports as active.
    ///
    /// # Errors
    /// The runtime's.
    pub fn network_configuration(&self) -> Result<String, Status> {
        let mut answer: StatusResponse =
            self.runtime("Status", &StatusRequest { verbose: true })?;
        Ok(answer.info.remove("cniconfig").unwrap_or_default())
    }

    fn runtime<Q: Message, A: Message + Default>(
        &self,
        method: &str,
        request: &Q,
    ) -> Result<A, Status> {
        self.runtime_by(method, request, DEADLINE)
    }

    fn runtime_by<Q: Message, A: Message + Default>(
        &self,
        method: &str,
        request: &Q,
        deadline: Duration,
    ) -> Result<A, Status> {
        grpc::call(
            &self.socket,
            &format!("/runtime.v1.RuntimeService/{method}"),
            request,
            deadline,
        )
    }
}
