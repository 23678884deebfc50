//! The budgets that a pod has exhausted, for `/status` and `/why`.

use std::time::{Duration, Instant};

use serde::Serialize;

/// How long a budget is reported after it last delayed, refused or closed a connection.
const REPORTED: Duration = Duration::from_secs(5 * 60);

/// A budget that can delay, refuse or close connections of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Budget {
    /// Connections that are accepted in the pod each second.
    NewConnections,
    /// Open connections of the pod.
    PodConnections,
    /// Open descriptors of the process.
    Descriptors,
    /// Bytes of the pod that wait for applications that do not read.
    PodUnread,
    /// The same of all pods of the node.
    NodeUnread,
}

impl Budget {
    /// The environment variable or the limit of the process that sets the limit.
    pub(crate) const fn setting(self) -> &'static str {
        match self {
            Self::NewConnections => "UNDERPASS_POD_MAX_NEW_CONNECTIONS",
            Self::PodConnections => "UNDERPASS_POD_MAX_CONNECTIONS",
            Self::Descriptors => "RLIMIT_NOFILE of the proxy",
            Self::PodUnread => "UNDERPASS_POD_MAX_UNREAD_BYTES",
            Self::NodeUnread => "UNDERPASS_NODE_MAX_UNREAD_BYTES",
        }
    }

    /// What the budget limits.
    const fn subject(self) -> &'static str {
        match self {
            Self::NewConnections => "new connections per second",
            Self::PodConnections => "open connections",
            Self::Descriptors => "descriptors of all pods",
            Self::PodUnread => "unread bytes",
            Self::NodeUnread => "unread bytes of all pods",
        }
    }

    /// What happens to the connections of a pod that has exhausted it.
    const fn effect(self) -> &'static str {
        match self {
            Self::NewConnections => "delayed",
            Self::PodConnections | Self::Descriptors => "refused",
            Self::PodUnread | Self::NodeUnread => "closed",
        }
    }
}

/// How often each budget has delayed, refused or closed a connection of a pod.
#[derive(Debug, Default)]
pub(super) struct Actions([Option<Acted>; 5]);

#[derive(Debug, Clone, Copy)]
struct Acted {
    times: u64,
    last: Instant,
}

impl Actions {
    /// Records that a budget has delayed, refused or closed a connection. Returns whether it was
    /// the first one for a while.
    pub(super) fn record(&mut self, budget: Budget, now: Instant) -> bool {
        let acted = &mut self.0[budget as usize];
        let is_first = !acted.is_some_and(|acted| acted.is_recent(now));
        let times = acted.map_or(0, |acted| acted.times) + 1;
        *acted = Some(Acted { times, last: now });
        is_first
    }
}

impl Acted {
    fn is_recent(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) <= REPORTED
    }
}

/// A budget that a pod has exhausted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ExhaustedBudget {
    /// The environment variable that sets the limit.
    setting: &'static str,
    /// What the pod uses, unless it is a rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    used: Option<usize>,
    limit: usize,
    /// Connections of the pod that it has delayed, refused or closed.
    affected_connections: u64,
    /// Time since the last of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_affected_s: Option<u64>,
    /// All of this in words.
    pub(crate) line: String,
}

impl ExhaustedBudget {
    /// Returns `None` if the budget is not exhausted and did not act in the last minutes. Budgets
    /// of the node are only exhausted for pods that have lost a connection.
    pub(super) fn new(
        budget: Budget,
        used: Option<usize>,
        limit: usize,
        actions: &Actions,
        now: Instant,
    ) -> Option<Self> {
        let acted = actions.0[budget as usize];
        let is_of_node = matches!(budget, Budget::NodeUnread | Budget::Descriptors);
        let is_exhausted = used.is_some_and(|used| used >= limit) && !is_of_node;
        if !is_exhausted && !acted.is_some_and(|acted| acted.is_recent(now)) {
            return None;
        }
        let (subject, setting) = (budget.subject(), budget.setting());
        let used_text = used.map_or_else(String::new, |used| format!("{used} "));
        let mut line = format!("{used_text}{subject}, limit {limit} ({setting})");
        let affected_connections = acted.map_or(0, |acted| acted.times);
        let last_affected_s =
            acted.map(|acted| now.saturating_duration_since(acted.last).as_secs());
        if let Some(seconds) = last_affected_s {
            let plural = if affected_connections == 1 { "" } else { "s" };
            let effect = budget.effect();
            line += &format!(
                "; {affected_connections} connection{plural} {effect}, the last {seconds} s ago"
            );
        }
        Some(Self {
            setting,
            used,
            limit,
            affected_connections,
            last_affected_s,
            line,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_reported_while_it_is_exhausted_and_for_a_while_after_it_acted() {
        let mut actions = Actions::default();
        let now = Instant::now();
        let line = |used, actions: &Actions, later: u64| {
            let now = now + Duration::from_secs(later);
            let found = ExhaustedBudget::new(Budget::PodConnections, Some(used), 10, actions, now);
            found.map(|found| found.line)
        };
        assert_eq!(line(9, &actions, 0), None);
        let exhausted = "10 open connections, limit 10 (UNDERPASS_POD_MAX_CONNECTIONS)";
        assert_eq!(line(10, &actions, 0).as_deref(), Some(exhausted));
        actions.record(Budget::PodConnections, now);
        actions.record(Budget::PodConnections, now);
        let acted = format!("{exhausted}; 2 connections refused, the last 3 s ago");
        assert_eq!(line(10, &actions, 3), Some(acted));
        let below = "9 open connections, limit 10 (UNDERPASS_POD_MAX_CONNECTIONS); 2 connections \
                     refused, the last 300 s ago";
        assert_eq!(line(9, &actions, 300).as_deref(), Some(below));
        assert_eq!(line(9, &actions, 301), None);
    }

    #[test]
    fn a_rate_is_reported_while_it_delays_connections() {
        let mut actions = Actions::default();
        let now = Instant::now();
        let line = |actions: &Actions| {
            let found = ExhaustedBudget::new(Budget::NewConnections, None, 7, actions, now);
            found.map(|found| found.line)
        };
        assert_eq!(line(&actions), None);
        assert!(actions.record(Budget::NewConnections, now));
        assert!(!actions.record(Budget::NewConnections, now));
        assert_eq!(
            line(&actions).as_deref(),
            Some(
                "new connections per second, limit 7 (UNDERPASS_POD_MAX_NEW_CONNECTIONS); 2 \
                 connections delayed, the last 0 s ago"
            )
        );
        assert!(actions.record(Budget::NewConnections, now + REPORTED * 2));
    }

    #[test]
    fn the_budget_of_the_node_is_reported_for_pods_that_lost_a_connection() {
        let mut actions = Actions::default();
        let now = Instant::now();
        let exhausted =
            |actions: &Actions| ExhaustedBudget::new(Budget::NodeUnread, Some(9), 8, actions, now);
        assert_eq!(exhausted(&actions), None);
        actions.record(Budget::NodeUnread, now);
        let found = exhausted(&actions).unwrap();
        assert_eq!(
            (found.affected_connections, found.last_affected_s),
            (1, Some(0))
        );
        assert_eq!(
            found.line,
            "9 unread bytes of all pods, limit 8 (UNDERPASS_NODE_MAX_UNREAD_BYTES); 1 connection \
             closed, the last 0 s ago"
        );
    }
}
