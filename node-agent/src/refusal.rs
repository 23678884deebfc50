//! Errors of work in a pod's namespace, and how they are reported.

use error_code::agent as codes;
use netns::NetNsError;
use pod_life::Refusal;
use redirect::{AnnotationError, Difference, ForeignRedirection, RedirectError};

use crate::sandbox_check::SandboxError;

/// Why work in a pod's namespace failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkError {
    /// The namespace cannot be entered. Likely cause: CAP_SYS_ADMIN is missing.
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    /// The namespace is not the pod's.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The plugin installed something else. Likely cause: another version.
    #[error("{0}")]
    NotAsPlanned(Difference),
    /// The kernel does not list the rules.
    #[error("cannot read back the rules: {code}: {0}", code = .0.code())]
    ReadBack(#[source] RedirectError),
    /// The kernel rejected the rules.
    #[error("{code}: {0}", code = .0.code())]
    Redirect(#[from] RedirectError),
    /// The pod has redirection of istio-cni that must stay.
    #[error("{0}")]
    Foreign(ForeignRedirection),
    /// An annotation of the pod is invalid.
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
}

impl From<WorkError> for Refusal {
    fn from(error: WorkError) -> Self {
        let code = match &error {
            WorkError::Sandbox(SandboxError::List(e))
            | WorkError::ReadBack(e)
            | WorkError::Redirect(e)
                if e.is_too_many() =>
            {
                e.code()
            }
            WorkError::NetNs(_) | WorkError::Sandbox(_) => &codes::NETNS,
            WorkError::NotAsPlanned(_) | WorkError::ReadBack(_) | WorkError::Redirect(_) => {
                &codes::RULES_DIFFER
            }
            WorkError::Foreign(_) => &codes::FOREIGN_RULES,
            WorkError::Annotation(_) => &codes::ANNOTATION,
        };
        Self::new(code, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_work_keep_their_codes_and_only_some_can_be_retried() {
        for (error, code, retry) in [
            (WorkError::from(SandboxError::Gone), &codes::NETNS, false),
            (
                WorkError::ReadBack(RedirectError::NoAddress),
                &codes::RULES_DIFFER,
                true,
            ),
            (
                WorkError::Foreign(ForeignRedirection::Table("istio-ambient-nat".to_owned())),
                &codes::FOREIGN_RULES,
                true,
            ),
        ] {
            let (why, refusal) = (error.to_string(), Refusal::from(error));
            assert_eq!(
                (refusal.code, &refusal.why, refusal.retry),
                (code, &why, retry)
            );
        }
    }
}
