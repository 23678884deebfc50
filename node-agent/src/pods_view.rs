//! The pods of this node, as the parts of the agent share them.

use std::cell::{Ref, RefCell, RefMut};
use std::rc::Rc;

use pod_life::Pods;

/// The pods of this node, for reading; only the agent's loop changes them.
#[derive(Debug, Clone, Default)]
pub(crate) struct PodsView(Rc<RefCell<Pods>>);

impl PodsView {
    /// Reads the pods. Must not be held across an await.
    pub(crate) fn read(&self) -> Ref<'_, Pods> {
        self.0.borrow()
    }

    /// Changes the pods; for the agent's loop.
    pub(crate) fn write(&self) -> RefMut<'_, Pods> {
        self.0.borrow_mut()
    }
}
