//! How the API server is reached.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

/// A server that cannot be connected to within this time is away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no client. Whether the server is there is not looked at.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The file is missing, is no kubeconfig, or names something that is not there.
    #[error("the kubeconfig {path} cannot be used: {source}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<KubeconfigError>,
    },
    /// This is no pod, or one without a service account's token.
    #[error("the pod's service account cannot be used: {0}")]
    ServiceAccount(#[source] Box<InClusterError>),
    /// The certificates of the configuration cannot be used.
    #[error("no client can be made: {0}")]
    Client(#[source] Box<kube::Error>),
}

/// A client by a kubeconfig; without one, by the service account of the pod that this is. A token in a file, such as the
/// service account's, is read again as it changes. Needs the tokio runtime that it will be used in.
///
/// # Errors
/// What is wrong with the configuration.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, ConnectError> {
    let config = match kubeconfig {
        Some(_) => of_kubeconfig(kubeconfig, KubeConfigOptions::default()).await?,
        None => Config::incluster().map_err(|e| ConnectError::ServiceAccount(Box::new(e)))?,
    };
    client(config)
}

/// A client for a person, as kubectl has it: by a kubeconfig, or `KUBECONFIG`, or the one in the home folder, and a context
/// of it other than the current one.
///
/// # Errors
/// What is wrong with the configuration.
pub async fn connect_as_person(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Client, ConnectError> {
    let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
    client(of_kubeconfig(kubeconfig, options).await?)
}

async fn of_kubeconfig(path: Option<&Path>, options: KubeConfigOptions) -> Result<Config, ConnectError> {
    let read = || match path {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let config = async { Config::from_custom_kubeconfig(read()?, &options).await };
    config.await.map_err(|source| ConnectError::Kubeconfig {
        path: path.map_or_else(|| PathBuf::from("of KUBECONFIG or the home folder"), Path::to_owned),
        source: Box::new(source),
    })
}

fn client(mut config: Config) -> Result<Client, ConnectError> {
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    Client::try_from(config).map_err(|e| ConnectError::Client(Box::new(e)))
}
