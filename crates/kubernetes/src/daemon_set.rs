//! DaemonSets.

use std::borrow::Cow;

use kube::Resource;
use kube::core::NamespaceResourceScope;
use serde::Deserialize;

use crate::metadata::ObjectMeta;

/// A DaemonSet: whether it is there, and on how many nodes.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct DaemonSet {
    /// With the time at which it was told to go, if it was.
    pub metadata: ObjectMeta,
    /// How far it is.
    #[serde(default)]
    pub status: DaemonSetStatus,
}

/// How far a DaemonSet is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DaemonSetStatus {
    /// On how many nodes a pod of it is.
    #[serde(default)]
    pub current_number_scheduled: u32,
}

impl Resource for DaemonSet {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "DaemonSet".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "apps".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "daemonsets".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
