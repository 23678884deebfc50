//! The services that a workload belongs to.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ports::Ports;
use crate::text::Text;

/// Services by key (`namespace/hostname`), with the workload's own ports for each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Memberships(Box<[(Text, Ports)]>);

impl Memberships {
    /// The workload's own ports for a service, if it is a member.
    pub fn get(&self, key: &str) -> Option<&Ports> {
        self.0
            .binary_search_by(|(k, _)| k.as_str().cmp(key))
            .ok()
            .map(|at| &self.0[at].1)
    }

    /// All memberships, ordered by key.
    pub fn iter(&self) -> impl Iterator<Item = &(Text, Ports)> {
        self.0.iter()
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &Text> {
        self.0.iter().map(|(key, _)| key)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut (Text, Ports)> {
        self.0.iter_mut()
    }
}

impl FromIterator<(Text, Ports)> for Memberships {
    fn from_iter<I: IntoIterator<Item = (Text, Ports)>>(services: I) -> Self {
        let sorted: BTreeMap<Text, Ports> = services.into_iter().collect();
        Self(sorted.into_iter().collect())
    }
}

impl Serialize for Memberships {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_map(self.0.iter().map(|(key, ports)| (key, ports)))
    }
}

impl<'de> Deserialize<'de> for Memberships {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Ok(BTreeMap::deserialize(d)?.into_iter().collect())
    }
}
