//! The metrics on an address of their own, which scrapers outside the node can reach. Status and
//! verification stay on the local address.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use admin_http::HostNames;
use error_code::agent as codes;
use tokio::net::TcpListener;

use crate::admin::{self, Admin};

/// Interval at which the agent tries to listen.
const RETRY: Duration = Duration::from_secs(10);

/// Serves the metrics, forever. The mesh does not depend on them: an address that is in use or not
/// configured yet is logged and tried again.
pub(crate) async fn serve(admin: Rc<Admin>, address: SocketAddr) {
    let listener = listen(address).await;
    admin_http::serve(listener, HostNames::Any, move |request| {
        admin::scrape(&admin, &request)
    })
    .await;
}

async fn listen(address: SocketAddr) -> TcpListener {
    let mut is_logged = false;
    loop {
        match process::listen(address, &codes::OWN_ADDRESS).await {
            Ok(listener) => return listener,
            Err(e) if !is_logged => tracing::warn!("no metrics on their own address: {e}"),
            Err(_) => {}
        }
        is_logged = true;
        tokio::time::sleep(RETRY).await;
    }
}
