//! Tests of the transitions, one by one and in arbitrary sequences.

mod adds;
mod members;
mod properties;
mod records;
mod running;
mod world;

use std::time::{Duration, Instant};

use handoff::{Attachment, PodRef};
use redirect::Plan;

use crate::{Intent, Now, Refusal, Sandbox, Verdict};

fn sandbox() -> Sandbox {
    let attachment = Attachment {
        container_id: "c".to_owned(),
        ifname: "eth0".to_owned(),
    };
    let pod = PodRef {
        namespace: "shop".to_owned(),
        name: "pod".to_owned(),
        uid: Some("u".to_owned()),
    };
    Sandbox {
        addresses: vec!["10.0.0.1".parse().unwrap()],
        netns_inode: 7,
        netns_path: Some("/run/netns/a".into()),
        attachment,
        further: Vec::new(),
        synthesised: false,
        pod,
        annotations: Default::default(),
    }
}

fn plan() -> Plan {
    Plan::for_pod(sandbox().addresses)
}

fn other_plan() -> Plan {
    Plan {
        dns: true,
        ..plan()
    }
}

fn with_plan(plan: Plan) -> Verdict {
    Verdict::Enrol(Box::new(Intent {
        uid: "u".to_owned(),
        service_account: "default".to_owned(),
        reason: "label".to_owned(),
        plan: Ok(plan),
        unprovable: None,
    }))
}

fn enrol() -> Verdict {
    with_plan(plan())
}

fn skip() -> Verdict {
    Verdict::Skip("no label".to_owned())
}

fn unknown() -> Verdict {
    Verdict::Unknown("not listed".to_owned())
}

fn refusal() -> Refusal {
    Refusal::new(&error_code::agent::RULES_DIFFER, "the kernel said no")
}

fn now(start: Instant, after: Duration) -> Now {
    Now {
        at: start + after,
        started: start,
        members: 1,
        proxies: 1,
    }
}
