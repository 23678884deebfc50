//! Mappings from service ports to target ports.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Target port for each service port. Clones share memory, since all workloads of a Deployment have
/// the same ports.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Ports(Option<Arc<[(u16, u16)]>>);

impl Ports {
    /// The target port of a service port.
    pub fn get(&self, port: u16) -> Option<u16> {
        let pairs = self.as_slice();
        pairs
            .binary_search_by_key(&port, |(service, _)| *service)
            .ok()
            .map(|at| pairs[at].1)
    }

    /// All mappings, ordered by service port.
    pub fn as_slice(&self) -> &[(u16, u16)] {
        self.0.as_deref().unwrap_or_default()
    }

    /// Whether other clones exist.
    pub(crate) fn is_shared(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|pairs| Arc::strong_count(pairs) > 1)
    }
}

impl FromIterator<(u16, u16)> for Ports {
    /// If a service port occurs twice, the last target port wins.
    fn from_iter<I: IntoIterator<Item = (u16, u16)>>(pairs: I) -> Self {
        let sorted: BTreeMap<u16, u16> = pairs.into_iter().collect();
        Self((!sorted.is_empty()).then(|| sorted.into_iter().collect()))
    }
}

impl Serialize for Ports {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_map(self.as_slice().iter().copied())
    }
}

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Ok(BTreeMap::deserialize(d)?.into_iter().collect())
    }
}
