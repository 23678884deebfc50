//! Exceptions of connections that were open when their pod joined are dropped once these connections have closed.

use std::rc::Rc;
use std::time::Duration;

use crate::agent::Agent;

const INTERVAL: Duration = Duration::from_secs(10);

/// Looks at the pods that have exceptions, now and then.
pub(crate) async fn release(agent: Rc<Agent>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        agent.release_exceptions();
    }
}
