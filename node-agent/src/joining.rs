//! ADDs that have not ended: one at a time for each pod, container and namespace, for one that fails is undone, and
//! would take the other's rules along.

use std::cell::RefCell;
use std::rc::Rc;

use handoff::Attachment;
use netns::NetNsId;

/// What an ADD acts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) attachment: Attachment,
    pub(crate) uid: String,
    pub(crate) netns: NetNsId,
}

/// The ADDs that have not ended.
#[derive(Debug, Clone, Default)]
pub(crate) struct Joining(Rc<RefCell<Vec<Subject>>>);

/// An ADD that has not ended; it ends with this value.
#[derive(Debug)]
pub(crate) struct Turn {
    of: Joining,
    subject: Subject,
}

impl Joining {
    /// Begins an ADD; none when one that shares anything with it has not ended.
    pub(crate) fn begin(&self, subject: Subject) -> Option<Turn> {
        let mut all = self.0.borrow_mut();
        let shares =
            |s: &Subject| s.attachment == subject.attachment || s.uid == subject.uid || s.netns == subject.netns;
        if all.iter().any(shares) {
            return None;
        }
        all.push(subject.clone());
        Some(Turn { of: self.clone(), subject })
    }

    /// Whether an ADD of this pod has not ended.
    pub(crate) fn has(&self, uid: &str) -> bool {
        self.0.borrow().iter().any(|s| s.uid == uid)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.of.0.borrow_mut().retain(|s| *s != self.subject);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shares_anything_waits_its_turn() {
        let subject = |container: &str, uid: &str, ino| Subject {
            attachment: Attachment { container_id: container.to_owned(), ifname: "eth0".to_owned() },
            uid: uid.to_owned(),
            netns: NetNsId { dev: 4, ino },
        };
        let joining = Joining::default();
        let first = joining.begin(subject("a", "u", 1)).unwrap();
        for other in [subject("a", "v", 2), subject("b", "u", 2), subject("b", "v", 1)] {
            assert!(joining.begin(other).is_none());
        }
        let second = joining.begin(subject("b", "v", 2));
        assert!(second.is_some());
        drop(first);
        assert!(joining.begin(subject("a", "u", 1)).is_some());
    }
}
