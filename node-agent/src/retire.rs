//! Removes Underpass from a node that it leaves. The plugin is unchained first, so that pods start
//! again even if the agent is killed meanwhile; then the rules are removed from pods, and what is
//! left on the node. Every step is limited in time, and the log names what remains.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use handoff::PodRef;
use netns::NetNs;
use redirect::RedirectError;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::args::RunArgs;
use crate::disk;
use crate::inbox::{Inbox, Message};
use crate::install;

/// Time limit for the agent's loop to finish the work in pods and to hand over their namespaces.
const HANDOVER_LIMIT: Duration = Duration::from_secs(3);
/// Time limit for removing the rules from all pods. With the other limits, an agent retires within
/// the 30 s after which the kubelet kills it.
pub(crate) const RULES_LIMIT: Duration = Duration::from_secs(8);
/// Pods whose rules are removed at the same time.
const THREADS: usize = 4;

/// A pod from which rules are removed.
#[derive(Debug, Clone)]
pub(crate) struct HeldPod {
    pub(crate) pod: PodRef,
    /// Its network namespace; `None` if it is not known.
    pub(crate) netns: Option<Arc<NetNs>>,
    /// Whether the rules in it are known to be Underpass's. An earlier redirection of istio-cni
    /// looks similar.
    pub(crate) is_member: bool,
}

/// Unchains the plugin and removes the rules from pods. Call it while the agent's loop runs.
pub(crate) async fn leave_pods(args: &RunArgs, inbox: &Inbox) {
    let (chains, unchained) = install::unchain(&args.folders);
    match unchained {
        Ok(()) => tracing::info!(
            chains,
            "removed the plugin from the runtime's configuration"
        ),
        Err(e) => tracing::error!("the plugin remains in the runtime's configuration: {e:#}"),
    }
    let (sender, held) = oneshot::channel();
    inbox.send(Message::Retire(sender));
    let pods = match timeout(HANDOVER_LIMIT, held).await {
        Ok(Ok(pods)) => pods,
        Ok(Err(_)) | Err(_) => {
            tracing::warn!("the agent is busy: removing rules from the pods in its state file");
            match install::recorded_pods(&args.state_dir) {
                Ok(pods) => pods,
                Err(e) => return tracing::error!("rules remain in pods: {e:#}"),
            }
        }
    };
    let pods = remove_rules(pods, RULES_LIMIT);
    tracing::info!(pods, "removed the rules from pods");
}

/// Removes the agent's files and the node's own rules. Call it when the agent's tasks have ended.
pub(crate) fn clean_up_node(args: &RunArgs) -> anyhow::Result<()> {
    let plugin = args.folders.bin_dir.join(install::PLUGIN);
    let kept = args.cluster.keep_plugin.then_some(&plugin);
    let state = args.state_dir.join(disk::FILE);
    for file in [&plugin, &state, &args.agent_socket, &args.zds_socket]
        .into_iter()
        .filter(|f| Some(*f) != kept)
    {
        remove_file(file);
    }
    crate::host_probes::uninstall(args.host_netns.as_deref())?;
    Ok(())
}

fn remove_file(file: &Path) {
    match std::fs::remove_file(file) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!("cannot remove {}: {e}", file.display());
        }
        _ => {}
    }
}

/// Removes the rules from pods, several at a time. Returns the number of pods without rules; logs
/// the others, including those that are not done within the limit.
pub(crate) fn remove_rules(pods: Vec<HeldPod>, within: Duration) -> usize {
    let deadline = Instant::now() + within;
    let queue = Arc::new(Mutex::new((0..pods.len()).rev().collect::<Vec<_>>()));
    let pods = Arc::new(pods);
    let (sender, results) = mpsc::channel();
    for _ in 0..THREADS.min(pods.len()) {
        let (queue, pods, sender) = (queue.clone(), pods.clone(), sender.clone());
        // Not joined: a pod may take longer than the limit.
        std::thread::spawn(move || {
            while let Some(index) = pop(&queue) {
                let result = remove_from(&pods[index]);
                if sender.send((index, result)).is_err() {
                    return; // the limit has passed
                }
            }
        });
    }
    drop(sender);
    let mut remaining = vec![Some("not done within the time limit".to_owned()); pods.len()];
    let left = || deadline.saturating_duration_since(Instant::now());
    while let Ok((index, result)) = results.recv_timeout(left()) {
        remaining[index] = result.err();
    }
    pop_all(&queue);
    let failed = pods
        .iter()
        .zip(&remaining)
        .filter_map(|(p, why)| Some((&p.pod, why.as_ref()?)));
    let mut count = pods.len();
    for (pod, why) in failed {
        let PodRef {
            namespace,
            name,
            uid,
        } = pod;
        tracing::error!(
            uid,
            namespace,
            name,
            "rules remain in the pod, which has no proxy any more: {why}. Next step: restart \
             the pod"
        );
        count -= 1;
    }
    count
}

fn pop(queue: &Mutex<Vec<usize>>) -> Option<usize> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).pop()
}

fn pop_all(queue: &Mutex<Vec<usize>>) {
    queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

fn remove_from(pod: &HeldPod) -> Result<(), String> {
    let Some(netns) = &pod.netns else {
        return Err("its network namespace was not found".to_owned());
    };
    let removed = netns.run(|| {
        if pod.is_member || redirect::find_foreign_redirection()?.is_empty() {
            redirect::remove()?;
        }
        Ok::<_, RedirectError>(())
    });
    match removed {
        Ok(Ok(())) => Ok(()),
        Ok(Err(e)) => Err(format!("{}: {e}", e.code())),
        Err(e) => Err(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_whose_namespace_is_unknown_keep_their_rules_and_are_not_counted() {
        let pod = PodRef {
            namespace: "n".into(),
            name: "p".into(),
            uid: None,
        };
        let lost = HeldPod {
            pod,
            netns: None,
            is_member: true,
        };
        assert_eq!(remove_rules(vec![lost; 9], RULES_LIMIT), 0);
        assert_eq!(remove_rules(Vec::new(), RULES_LIMIT), 0);
    }
}
