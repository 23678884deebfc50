//! The input of a CNI call, before any I/O.

use std::time::Duration;

use cni_spec::{Command, Config, Environment};
use handoff::{Attachment, PodRef};
use serde_json::value::RawValue;

use crate::failure::Failure;

/// Default time limit of ADD and CHECK. For a CHECK, the agent probes the proxy from within the
/// pod, for at most a second for each address family.
const DEADLINE: Duration = Duration::from_secs(5);

/// The input of an ADD or CHECK.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) environment: Environment,
    pub(crate) config: Config,
    pub(crate) prev_result: Box<RawValue>,
}

impl Call {
    /// Parses the environment variables returned by `get`, and the configuration.
    pub(crate) fn parse(
        command: Command,
        get: impl Fn(&str) -> Option<String>,
        input: &[u8],
    ) -> Result<Self, Failure> {
        let environment = Environment::for_add(get)?;
        let mut config = Config::parse(command, input)?;
        let prev_result = config.prev_result.take().ok_or(Failure::NoPrevResult)?;
        Ok(Self {
            environment,
            config,
            prev_result,
        })
    }

    /// The Kubernetes pod, if it may belong to the mesh; only the agent can tell whether it does.
    /// `None` for other containers and for excluded namespaces, which never depend on the agent.
    pub(crate) fn mesh_candidate(&self) -> Option<PodRef> {
        kubernetes_pod(&self.environment)
            .filter(|pod| !self.config.exclude_namespaces.contains(&pod.namespace))
    }

    /// The time limit of the call.
    pub(crate) fn limit(&self) -> Duration {
        self.config
            .deadline_ms
            .map_or(DEADLINE, Duration::from_millis)
    }
}

/// The attachment that a call refers to.
pub(crate) fn attachment(environment: &Environment) -> Attachment {
    Attachment {
        container_id: environment.container_id.clone(),
        ifname: environment.ifname.clone(),
    }
}

/// The Kubernetes pod of a sandbox; `None` for other containers, which the plugin ignores.
pub(crate) fn kubernetes_pod(environment: &Environment) -> Option<PodRef> {
    let k = &environment.kubernetes;
    Some(PodRef {
        namespace: k.namespace.clone()?,
        name: k.name.clone()?,
        uid: k.uid.clone(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const VARIABLES: [(&str, &str); 5] = [
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/a"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
        (
            "CNI_ARGS",
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=a-0;K8S_POD_UID=u1",
        ),
    ];

    fn config() -> Value {
        json!({
            "cniVersion": "1.1.0",
            "name": "net",
            "prevResult": { "ips": [{ "address": "10.0.0.1/24" }] },
        })
    }

    /// Parses a call with one variable and one key of the configuration replaced.
    fn parse(variable: (&str, &str), key: (&str, Value)) -> Result<Call, Failure> {
        let mut config = config();
        config[key.0] = key.1;
        let get = |name: &str| {
            let mut all = std::iter::once(variable).chain(VARIABLES);
            all.find(|(n, _)| *n == name).map(|(_, v)| v.to_owned())
        };
        Call::parse(Command::Add, get, config.to_string().as_bytes())
    }

    #[test]
    fn a_call_names_its_attachment_and_pod() {
        let call = parse(("", ""), ("", Value::Null)).unwrap();
        let expected = Attachment {
            container_id: "c1".to_owned(),
            ifname: "eth0".to_owned(),
        };
        assert_eq!(attachment(&call.environment), expected);
        let pod = PodRef {
            namespace: "shop".to_owned(),
            name: "a-0".to_owned(),
            uid: Some("u1".to_owned()),
        };
        assert_eq!(call.mesh_candidate(), Some(pod));
        assert_eq!(
            call.prev_result.get(),
            r#"{"ips":[{"address":"10.0.0.1/24"}]}"#
        );
    }

    #[test]
    fn only_pods_that_may_belong_to_the_mesh_depend_on_the_agent() {
        let excluded = |namespaces| ("excludeNamespaces", namespaces);
        for (args, exclude, is_candidate) in [
            ("K8S_POD_NAMESPACE=a;K8S_POD_NAME=p", json!([]), true),
            (
                "K8S_POD_NAMESPACE=a;K8S_POD_NAME=p",
                json!(["b", "aa"]),
                true,
            ),
            (
                "K8S_POD_NAMESPACE=a;K8S_POD_NAME=p",
                json!(["b", "a"]),
                false,
            ),
            ("K8S_POD_NAMESPACE=a", json!([]), false),
            ("K8S_POD_NAME=p", json!([]), false),
            ("K8S_POD_NAMESPACE=;K8S_POD_NAME=p", json!([]), false),
            ("FOO=1", json!([]), false),
        ] {
            let call = parse(("CNI_ARGS", args), excluded(exclude.clone())).unwrap();
            let found = call.mesh_candidate().is_some();
            assert_eq!(found, is_candidate, "{args} without {exclude}");
        }
    }

    #[test]
    fn the_limit_is_5_s_unless_configured() {
        for (configured, limit) in [
            (Value::Null, Duration::from_secs(5)),
            (json!(200), Duration::from_millis(200)),
            (json!(0), Duration::ZERO),
        ] {
            let call = parse(("", ""), ("deadlineMs", configured)).unwrap();
            assert_eq!(call.limit(), limit);
        }
    }

    #[test]
    fn invalid_input_is_rejected_before_any_io() {
        let code = |variable, key| parse(variable, key).unwrap_err().codes().1.code;
        let (no_variable, no_key) = (("", ""), ("", Value::Null));
        for (variable, key, expected) in [
            (("CNI_CONTAINERID", ""), no_key.clone(), "UP-CNI-001"),
            (("CNI_NETNS", "run/netns/a"), no_key.clone(), "UP-CNI-001"),
            (("CNI_IFNAME", "a/b"), no_key, "UP-CNI-001"),
            (no_variable, ("deadlineMs", json!("5s")), "UP-CNI-002"),
            (no_variable, ("cniVersion", json!("0.5.0")), "UP-CNI-003"),
            (no_variable, ("name", json!("-")), "UP-CNI-004"),
            (no_variable, ("prevResult", Value::Null), "UP-CNI-005"),
        ] {
            assert_eq!(
                code(variable, key.clone()),
                expected,
                "{variable:?} {key:?}"
            );
        }
    }
}
