//! Whether the container runtime calls the plugin, as far as starting pods show it.

use std::cell::RefCell;

use agent_status::PluginNotCalled;
use error_code::agent as codes;
use handoff::PodRef;

/// Number of pods from which the agent is not ready. A single one may be an exception, such as a
/// pod that a person started with another configuration.
const LIMIT: u32 = 2;

/// The pods for which the plugin was not called. An ADD clears them: the runtime calls the plugin
/// again.
#[derive(Debug, Default)]
pub(crate) struct RuntimeCalls(RefCell<Option<PluginNotCalled>>);

impl RuntimeCalls {
    /// Records an ADD.
    pub(crate) fn called(&self) {
        if let Some(missed) = self.0.take().filter(|missed| missed.pods >= LIMIT) {
            let pods = missed.pods;
            tracing::info!("the runtime calls the plugin again, after {pods} pods without it");
        }
    }

    /// Records a pod of the mesh that started without an ADD while the agent was ready.
    pub(crate) fn missed(&self, pod: &PodRef) {
        let mut missed = self.0.borrow_mut();
        let before = missed.as_ref().map_or(0, |missed| missed.pods);
        *missed = Some(PluginNotCalled {
            pods: before.saturating_add(1),
            last: format!("{}/{}", pod.namespace, pod.name),
        });
    }

    /// The pods since the last ADD.
    pub(crate) fn status(&self) -> Option<PluginNotCalled> {
        self.0.borrow().clone()
    }

    /// Why the agent is not ready; `None` if it is, as far as this is concerned.
    pub(crate) fn problem(&self) -> Option<String> {
        let PluginNotCalled { pods, last } = self.status()?;
        let code = codes::PLUGIN_NOT_CALLED;
        (pods >= LIMIT).then(|| {
            format!(
                "{code}: {pods} pods of the mesh started without an ADD, the last one {last}. \
                 Next step: {}",
                code.next_step
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_pods_without_an_add_are_a_problem_until_an_add_arrives() {
        let calls = RuntimeCalls::default();
        let pod = |name: &str| PodRef {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            uid: None,
        };
        let counted = || calls.status().map(|missed| (missed.pods, missed.last));
        assert_eq!((counted(), calls.problem()), (None, None));
        calls.missed(&pod("a"));
        assert_eq!(counted(), Some((1, "shop/a".to_owned())));
        assert_eq!(calls.problem(), None);
        calls.missed(&pod("b"));
        assert_eq!(counted(), Some((2, "shop/b".to_owned())));
        let problem = calls.problem().unwrap();
        for part in ["UP-AGENT-026", "2 pods", "shop/b", "Next step: "] {
            assert!(problem.contains(part), "{problem}");
        }
        calls.called();
        assert_eq!((counted(), calls.problem()), (None, None));
    }
}
