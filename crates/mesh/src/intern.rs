//! Interning of texts and port mappings.

use std::collections::HashSet;

use crate::ports::Ports;
use crate::service::Service;
use crate::text::Text;
use crate::workload::Workload;

/// Number of entries below which unused ones are not purged.
const MIN_PURGE_LEN: usize = 4096;

/// Texts and port mappings that many workloads share.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    texts: HashSet<Text>,
    ports: HashSet<Ports>,
    purge_at: usize,
}

impl Interner {
    /// Replaces texts and ports of a workload with shared clones.
    pub(crate) fn workload(&mut self, w: &mut Workload) {
        let own = [
            &mut w.namespace,
            &mut w.hostname,
            &mut w.trust_domain,
            &mut w.service_account,
            &mut w.network,
            &mut w.node,
            &mut w.workload_name,
            &mut w.canonical_name,
            &mut w.canonical_revision,
            &mut w.cluster_id,
            &mut w.locality.region,
            &mut w.locality.zone,
            &mut w.locality.subzone,
        ];
        own.into_iter()
            .chain(&mut w.authorization_policies)
            .for_each(|text| self.text(text));
        for (key, ports) in w.services.iter_mut() {
            self.text(key);
            self.ports(ports);
        }
    }

    /// Replaces texts and ports of a service with shared clones.
    pub(crate) fn service(&mut self, s: &mut Service) {
        self.text(&mut s.namespace);
        self.ports(&mut s.ports);
        s.vips
            .iter_mut()
            .for_each(|vip| self.text(&mut vip.network));
    }

    /// Removes unused entries once their number has doubled: amortized O(1) per entry.
    pub(crate) fn purge(&mut self) {
        if self.texts.len() + self.ports.len() > self.purge_at.max(MIN_PURGE_LEN) {
            self.texts.retain(Text::is_shared);
            self.ports.retain(Ports::is_shared);
            self.purge_at = 2 * (self.texts.len() + self.ports.len());
        }
    }

    fn text(&mut self, text: &mut Text) {
        match self.texts.get(text.as_str()) {
            Some(known) => *text = known.clone(),
            None if text.is_empty() => {}
            None => {
                self.texts.insert(text.clone());
            }
        }
    }

    fn ports(&mut self, ports: &mut Ports) {
        match self.ports.get(ports) {
            Some(known) => *ports = known.clone(),
            None if ports.as_slice().is_empty() => {}
            None => {
                self.ports.insert(ports.clone());
            }
        }
    }
}
