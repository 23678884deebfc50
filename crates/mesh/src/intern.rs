//! The same text is kept once.

use std::collections::HashSet;

use crate::ports::Ports;
use crate::service::Service;
use crate::text::Text;
use crate::workload::Workload;

/// What is not looked through for things that nobody has any more.
const SMALL: usize = 4096;

/// Texts and ports that many workloads have in common.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    texts: HashSet<Text>,
    ports: HashSet<Ports>,
    tidy_at: usize,
}

impl Interner {
    /// Makes a workload share what others have, too.
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
        own.into_iter().chain(&mut w.authorization_policies).for_each(|text| self.text(text));
        for (key, ports) in w.services.iter_mut() {
            self.text(key);
            self.ports(ports);
        }
    }

    /// Makes a service share what others have, too.
    pub(crate) fn service(&mut self, s: &mut Service) {
        self.text(&mut s.namespace);
        self.ports(&mut s.ports);
        s.vips.iter_mut().for_each(|vip| self.text(&mut vip.network));
    }

    /// Forgets what nobody has any more; now and then, so that it costs nothing by and large.
    pub(crate) fn tidy(&mut self) {
        if self.texts.len() + self.ports.len() > self.tidy_at.max(SMALL) {
            self.texts.retain(Text::is_shared);
            self.ports.retain(Ports::is_shared);
            self.tidy_at = 2 * (self.texts.len() + self.ports.len());
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
