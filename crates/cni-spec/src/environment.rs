//! What a runtime says in environment variables.

use std::path::PathBuf;

/// CNI_COMMAND.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Attach a container.
    Add,
    /// Detach a container.
    Del,
    /// Say whether a container is still as ADD left it.
    Check,
    /// Say whether ADD could succeed now.
    Status,
    /// Forget every attachment that the runtime does not name.
    Gc,
    /// Say which versions are spoken.
    Version,
}

/// The environment of one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_NETNS; absent on a DEL whose namespace is gone.
    pub netns: Option<PathBuf>,
    /// CNI_IFNAME.
    pub ifname: String,
    /// What CNI_ARGS says about Kubernetes.
    pub kubernetes: KubernetesArgs,
}

/// The pod, as container runtimes name it in CNI_ARGS.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KubernetesArgs {
    /// K8S_POD_NAMESPACE.
    pub namespace: Option<String>,
    /// K8S_POD_NAME.
    pub name: Option<String>,
    /// K8S_POD_UID.
    pub uid: Option<String>,
}

/// Why the environment is not that of a CNI call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvironmentError {
    /// CNI_COMMAND is none that we know.
    #[error("CNI_COMMAND is {0:?}; this plugin knows ADD, CHECK, DEL, GC, STATUS and VERSION")]
    UnknownCommand(String),
    /// Variables that this command needs are missing or empty.
    #[error("missing in the environment: {}", .0.join(", "))]
    Missing(Vec<&'static str>),
    /// A variable has a value that the specification forbids.
    #[error("{variable} is {value:?}, which is not {expected}")]
    Invalid {
        /// Which variable.
        variable: &'static str,
        /// What it says.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
}

impl Command {
    /// Reads CNI_COMMAND.
    ///
    /// # Errors
    /// [`EnvironmentError::UnknownCommand`].
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

impl Environment {
    /// Reads the variables that ADD and CHECK need, all of them mandatory but CNI_ARGS.
    ///
    /// # Errors
    /// [`EnvironmentError::Missing`] naming every missing variable, or [`EnvironmentError::Invalid`].
    pub fn for_add(get: impl Fn(&str) -> Option<String>) -> Result<Self, EnvironmentError> {
        let present = |name: &str| get(name).filter(|v| !v.is_empty());
        let mut missing = Vec::new();
        let mut need = |name: &'static str| {
            present(name).unwrap_or_else(|| {
                missing.push(name);
                String::new()
            })
        };
        let container_id = need("CNI_CONTAINERID");
        let netns = need("CNI_NETNS");
        let ifname = need("CNI_IFNAME");
        need("CNI_PATH");
        if !missing.is_empty() {
            return Err(EnvironmentError::Missing(missing));
        }
        check_netns(&netns)?;
        check_container_id(&container_id)?;
        check_ifname(&ifname)?;
        let kubernetes = KubernetesArgs::parse(&get("CNI_ARGS").unwrap_or_default());
        Ok(Self { container_id, netns: Some(netns.into()), ifname, kubernetes })
    }

    /// Reads what a DEL says, whatever is missing: a DEL must not fail.
    pub fn for_del(get: impl Fn(&str) -> Option<String>) -> Self {
        Self {
            container_id: get("CNI_CONTAINERID").unwrap_or_default(),
            netns: get("CNI_NETNS").filter(|v| !v.is_empty()).map(PathBuf::from),
            ifname: get("CNI_IFNAME").unwrap_or_default(),
            kubernetes: KubernetesArgs::parse(&get("CNI_ARGS").unwrap_or_default()),
        }
    }
}

impl KubernetesArgs {
    /// Reads `KEY=VALUE;KEY=VALUE`. Unknown keys and malformed pairs are nobody's business here.
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
    if id.starts_with(|c: char| c.is_ascii_alphanumeric()) && id.chars().all(inner) {
        return Ok(());
    }
    let expected = "a letter or digit, followed by letters, digits, '_', '.' or '-'";
    Err(EnvironmentError::Invalid { variable: "CNI_CONTAINERID", value: id.to_owned(), expected })
}

/// The agent finds the namespace again by this path, from a folder of its own.
fn check_netns(path: &str) -> Result<(), EnvironmentError> {
    if path.starts_with('/') {
        return Ok(());
    }
    let expected = "an absolute path";
    Err(EnvironmentError::Invalid { variable: "CNI_NETNS", value: path.to_owned(), expected })
}

fn check_ifname(name: &str) -> Result<(), EnvironmentError> {
    let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace();
    if name.len() <= 15 && name != "." && name != ".." && !name.contains(forbidden) {
        return Ok(());
    }
    let expected = "an interface name of at most 15 bytes without '/', ':' or white space";
    Err(EnvironmentError::Invalid { variable: "CNI_IFNAME", value: name.to_owned(), expected })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment<'a>(vars: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
    }

    #[test]
    fn every_missing_variable_is_named() {
        let missing = Environment::for_add(environment(&[("CNI_IFNAME", "eth0"), ("CNI_NETNS", "")])).unwrap_err();
        assert_eq!(missing, EnvironmentError::Missing(vec!["CNI_CONTAINERID", "CNI_NETNS", "CNI_PATH"]));
    }

    #[test]
    fn forbidden_names_are_refused() {
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
    fn kubernetes_arguments_are_found_in_any_order() {
        let args = KubernetesArgs::parse("IgnoreUnknown=1;K8S_POD_UID=u;;x;K8S_POD_NAME=p;K8S_POD_NAMESPACE=n");
        let text = |s: &str| Some(s.to_owned());
        assert_eq!(args, KubernetesArgs { namespace: text("n"), name: text("p"), uid: text("u") });
        assert_eq!(KubernetesArgs::parse(""), KubernetesArgs::default());
    }
}
