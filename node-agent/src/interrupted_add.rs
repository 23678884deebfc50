//! What became of an ADD that the last agent did not answer, because it ended before.

use std::time::{Duration, Instant};

use netns::NetNs;
use pod_life::Record;

/// Time for a plugin to remove its rules, once the agent has closed the connection.
const PLUGIN_CLEANUP: Duration = Duration::from_millis(500);
/// Interval at which the rules are read meanwhile.
const POLL: Duration = Duration::from_millis(10);

/// Whether the ADD of this record has failed: then its plugin has removed the rules, or does so
/// until shortly after `started`, when this agent began to take over. Blocks until it is known.
pub(crate) fn has_failed(record: &Record, netns: &NetNs, started: Instant) -> bool {
    loop {
        // Rules that cannot be read may be there.
        let rules = netns.run(redirect::read_back);
        let has_rules = !matches!(rules, Ok(Ok(rules)) if rules.is_empty());
        if !has_rules || started.elapsed() >= PLUGIN_CLEANUP {
            return record.is_of_failed_add(has_rules);
        }
        std::thread::sleep(POLL);
    }
}
