//! Connections to the API server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

/// Time limit for establishing a connection to the API server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time after which a silent connection of an agent counts as broken. The API server sends a
/// bookmark to every watch about once a minute.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(180);

/// Why a client could not be created. The API server is not contacted.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The file is missing or invalid, or it refers to a missing context or file.
    #[error("cannot use kubeconfig {path}: {source}")]
    Kubeconfig {
        /// The kubeconfig.
        path: PathBuf,
        /// The underlying error.
        source: Box<KubeconfigError>,
    },
    /// The process does not run in a pod, or the pod has no service account token.
    #[error("cannot use the pod's service account: {0}")]
    ServiceAccount(#[source] Box<InClusterError>),
    /// The certificates of the configuration are invalid.
    #[error("cannot create a client: {0}")]
    Client(#[source] Box<kube::Error>),
}

/// Creates a client from a kubeconfig, or from the pod's service account if there is none. Token
/// files are reloaded when they change. Must be called in the tokio runtime that will use the
/// client.
///
/// # Errors
/// The configuration is missing or invalid.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, ConnectError> {
    let mut config = match kubeconfig {
        Some(_) => load_kubeconfig(kubeconfig, KubeConfigOptions::default()).await?,
        None => Config::incluster().map_err(|e| ConnectError::ServiceAccount(Box::new(e)))?,
    };
    config.read_timeout = Some(SILENCE_TIMEOUT);
    client(config)
}

/// Creates a client like kubectl does: from the given kubeconfig, `KUBECONFIG`, or the one in the
/// home folder, and with the given or the current context.
///
/// # Errors
/// The configuration is missing or invalid.
pub async fn connect_as_user(
    kubeconfig: Option<&Path>,
    context: Option<&str>,
) -> Result<Client, ConnectError> {
    let context = context.map(str::to_owned);
    let options = KubeConfigOptions {
        context,
        ..KubeConfigOptions::default()
    };
    client(load_kubeconfig(kubeconfig, options).await?)
}

async fn load_kubeconfig(
    path: Option<&Path>,
    options: KubeConfigOptions,
) -> Result<Config, ConnectError> {
    let read = || match path {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let config = async { Config::from_custom_kubeconfig(read()?, &options).await };
    config.await.map_err(|source| ConnectError::Kubeconfig {
        path: path.map_or_else(
            || PathBuf::from("$KUBECONFIG or ~/.kube/config"),
            Path::to_owned,
        ),
        source: Box::new(source),
    })
}

fn client(mut config: Config) -> Result<Client, ConnectError> {
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    Client::try_from(config).map_err(|e| ConnectError::Client(Box::new(e)))
}
