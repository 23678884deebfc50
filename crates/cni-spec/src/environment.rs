//! The environment variables of a CNI call.

use std::fmt;
use std::path::PathBuf;

/// CNI_COMMAND.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Attach a container.
    Add,
    /// Detach a container.
    Del,
    /// Check that a container is still as ADD left it.
    Check,
    /// Report whether ADD could succeed now.
    Status,
    /// Remove all attachments that the runtime does not list.
    Gc,
    /// Report the supported versions.
    Version,
}

/// The environment of a CNI call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_NETNS; absent for a DEL after the namespace was deleted.
    pub netns: Option<PathBuf>,
    /// CNI_IFNAME.
    pub ifname: String,
    /// The Kubernetes keys of CNI_ARGS.
    pub kubernetes: KubernetesArgs,
}

/// The pod, as named by the runtime in CNI_ARGS.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KubernetesArgs {
    /// K8S_POD_NAMESPACE.
    pub namespace: Option<String>,
    /// K8S_POD_NAME.
    pub name: Option<String>,
    /// K8S_POD_UID.
    pub uid: Option<String>,
}

/// Why the environment is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvironmentError {
    /// CNI_COMMAND is unknown.
    #[error("unknown CNI_COMMAND {0:?}: expected ADD, CHECK, DEL, GC, STATUS or VERSION")]
    UnknownCommand(String),
    /// Required variables are missing or empty.
    #[error("missing environment variables: {}", .0.join(", "))]
    Missing(Vec<&'static str>),
    /// A variable has a value that the specification forbids.
    #[error("invalid {variable} {value:?}: expected {expected}")]
    Invalid {
        /// Name of the variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// Description of a valid value.
        expected: &'static str,
    },
}

impl Command {
    /// Parses CNI_COMMAND.
    ///
    /// # Errors
    /// Returns [`EnvironmentError::UnknownCommand`] for any other text.
    pub fn parse(text: &str) -> Result<Self, EnvironmentError> {
        match text {
            "ADD" => Ok(Self::Add),
            "DEL" => Ok(Self::Del),
            "CHECK" => Ok(Self::Check),
            "STATUS" => Ok(Self::Status),
            "GC" => Ok(Self::Gc),
            "VERSION" => Ok(Self::Version),
            other => Err(EnvironmentError::UnknownCommand(other.to_owned())),
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        })
    }
}

impl Environment {
    /// Reads the variables of ADD and CHECK. All except CNI_ARGS are required.
    ///
    /// # Errors
    /// Returns [`EnvironmentError::Missing`] with all missing variables, or
    /// [`EnvironmentError::Invalid`].
    pub fn for_add(get: impl Fn(&str) -> Option<String>) -> Result<Self, EnvironmentError> {
        let present = |name: &str| get(name).filter(|v| !v.is_empty());
        let mut missing = Vec::new();
        let mut require = |name: &'static str| {
            present(name).unwrap_or_else(|| {
                missing.push(name);
                String::new()
            })
        };
        let container_id = require("CNI_CONTAINERID");
        let netns = require("CNI_NETNS");
        let ifname = require("CNI_IFNAME");
        require("CNI_PATH");
        if !missing.is_empty() {
            return Err(EnvironmentError::Missing(missing));
        }
        check_netns(&netns)?;
        check_container_id(&container_id)?;
        check_ifname(&ifname)?;
        let kubernetes = KubernetesArgs::parse(&get("CNI_ARGS").unwrap_or_default());
        Ok(Self {
            container_id,
            netns: Some(netns.into()),
            ifname,
            kubernetes,
        })
    }

    /// Reads the variables of DEL. None is required, because DEL must not fail.
    pub fn for_del(get: impl Fn(&str) -> Option<String>) -> Self {
        Self {
            container_id: get("CNI_CONTAINERID").unwrap_or_default(),
            netns: get("CNI_NETNS")
                .filter(|v| !v.is_empty())
                .map(PathBuf::from),
            ifname: get("CNI_IFNAME").unwrap_or_default(),
            kubernetes: KubernetesArgs::parse(&get("CNI_ARGS").unwrap_or_default()),
        }
    }
}

impl KubernetesArgs {
    /// Parses `KEY=VALUE;KEY=VALUE`. Unknown keys and malformed pairs are ignored.
    pub fn parse(args: &str) -> Self {
        let mut out = Self::default();
        for (key, value) in args.split(';').filter_map(|pair| pair.split_once('=')) {
            let value = || Some(value.to_owned()).filter(|v| !v.is_empty());
            match key {
                "K8S_POD_NAMESPACE" => out.namespace = value(),
                "K8S_POD_NAME" => out.name = value(),
                "K8S_POD_UID" => out.uid = value(),
                _ => {}
            }
        }
        out
    }
}

fn check_container_id(id: &str) -> Result<(), EnvironmentError> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let is_valid = id.starts_with(|c: char| c.is_ascii_alphanumeric()) && id.chars().all(inner);
    let expected = "a letter or digit, followed by letters, digits, '_', '.' or '-'";
    check("CNI_CONTAINERID", id, is_valid, expected)
}

/// The path must be absolute: the agent, whose working directory differs, reopens the namespace by
/// it.
fn check_netns(path: &str) -> Result<(), EnvironmentError> {
    let is_valid = path.starts_with('/');
    check("CNI_NETNS", path, is_valid, "an absolute path")
}

fn check_ifname(name: &str) -> Result<(), EnvironmentError> {
    let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace();
    let is_valid = name.len() <= 15 && name != "." && name != ".." && !name.contains(forbidden);
    let expected = "an interface name of at most 15 bytes without '/', ':' or white space";
    check("CNI_IFNAME", name, is_valid, expected)
}

fn check(
    variable: &'static str,
    value: &str,
    is_valid: bool,
    expected: &'static str,
) -> Result<(), EnvironmentError> {
    if is_valid {
        return Ok(());
    }
    Err(EnvironmentError::Invalid {
        variable,
        value: value.to_owned(),
        expected,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment<'a>(vars: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name| {
            vars.iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| (*v).to_owned())
        }
    }

    #[test]
    fn every_missing_variable_is_named() {
        let missing =
            Environment::for_add(environment(&[("CNI_IFNAME", "eth0"), ("CNI_NETNS", "")]))
                .unwrap_err();
        assert_eq!(
            missing,
            EnvironmentError::Missing(vec!["CNI_CONTAINERID", "CNI_NETNS", "CNI_PATH"])
        );
    }

    #[test]
    fn forbidden_values_are_rejected() {
        for bad in ["", "-a", "a/b", "a b", "ä"] {
            assert!(check_container_id(bad).is_err(), "{bad:?}");
        }
        assert!(check_container_id("0a_.-Z").is_ok());
        for bad in [".", "..", "a/b", "a:b", "a b", "sixteen-bytes-xx"] {
            assert!(check_ifname(bad).is_err(), "{bad:?}");
        }
        assert!(check_ifname("fifteen-bytes-x").is_ok());
        assert!(check_netns("run/netns/x").is_err() && check_netns("/run/netns/x").is_ok());
    }

    #[test]
    fn kubernetes_arguments_are_accepted_in_any_order() {
        let args = KubernetesArgs::parse(
            "IgnoreUnknown=1;K8S_POD_UID=u;;x;K8S_POD_NAME=p;K8S_POD_NAMESPACE=n",
        );
        let text = |s: &str| Some(s.to_owned());
        assert_eq!(
            args,
            KubernetesArgs {
                namespace: text("n"),
                name: text("p"),
                uid: text("u")
            }
        );
        assert_eq!(KubernetesArgs::parse(""), KubernetesArgs::default());
    }
}
