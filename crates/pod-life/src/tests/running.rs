//! Running pods join and stay outside.

use std::time::Duration;

use agent_status::LateCause;

use super::world::World;
use super::{enrol, skip, unknown};
use crate::{Answer, Effect, Event, Input, Leftovers, Phase, Via, Work};

/// A running pod whose namespace was checked, and that proxies are asked about.
fn offered() -> World {
    let mut world = World::found(enrol());
    world.proceed();
    world
}

fn reason(world: &World) -> &str {
    match world.phase() {
        Some(Phase::Outside(outside)) => &outside.reason,
        other => panic!("not outside: {other:?}"),
    }
}

#[test]
fn a_running_pod_is_captured_after_a_proxy_has_accepted_it() {
    let mut world = World::found(enrol());
    assert!(matches!(world.work(), Some(Work::Prepare { .. })));
    world.proceed();
    assert!(world.work().is_none() && !world.is_captured);
    world.proceed();
    assert!(matches!(world.work(), Some(Work::Join { .. })));
    world.proceed();
    assert!(
        world.is_captured && !world.is_member(),
        "the record is not on disk"
    );
    world.proceed();
    assert!(world.is_member() && world.is_watched);
    assert!(matches!(
        world.events[..],
        [Event::Joined {
            via: Via::Running,
            ..
        }]
    ));
}

/// The times outside that were reported, in milliseconds.
fn reported(world: &World) -> Vec<u128> {
    let times = world.events.iter().filter_map(|event| match event {
        Event::StartedOutside { lasted, .. } => Some(lasted.as_millis()),
        _ => None,
    });
    times.collect()
}

#[test]
fn a_late_start_is_reported_once_with_the_time_until_the_capture() {
    let mut world = World::new(enrol());
    world.proxies = 0;
    world.find_late();
    world.flush();
    world.proceed();
    assert!(reason(&world).contains("UP-AGENT-006"));
    assert_eq!(reported(&world), [], "it is still outside");
    world.proxies = 1;
    world.pending.clear();
    world.tick();
    world.settle();
    assert!(world.is_member());
    assert_eq!(
        reported(&world),
        [4000],
        "three seconds, and one until the second attempt"
    );
    let (record, _) = world.disk.clone();
    let started = record.unwrap().membership.started_outside.unwrap();
    assert_eq!(
        (started.outside_ms, started.cause),
        (4000, LateCause::PluginNotCalled)
    );
    // It is not reported again when the pod leaves and joins, or by the next agent.
    world.set_verdict(skip());
    world.settle();
    world.set_verdict(enrol());
    world.settle();
    world.restart();
    world.settle();
    assert!(world.is_member());
    assert_eq!(reported(&world), [4000]);
}

#[test]
fn a_pod_that_did_not_belong_to_the_mesh_meanwhile_has_no_late_start() {
    let mut world = World::new(skip());
    world.find_late();
    world.settle();
    world.set_verdict(enrol());
    world.settle();
    assert!(world.is_member());
    assert_eq!(reported(&world), []);
}

#[test]
fn without_a_proxy_it_stays_outside_and_tries_again_after_a_second() {
    let mut world = World::found(enrol());
    world.proxies = 0;
    world.proceed();
    assert!(
        reason(&world).contains("UP-AGENT-006"),
        "{}",
        reason(&world)
    );
    let failed = |w: &World| {
        let refused = |e: &&Event| {
            matches!(
                e,
                Event::Refused {
                    via: Via::Running,
                    ..
                }
            )
        };
        w.events.iter().filter(refused).count()
    };
    assert_eq!(failed(&world), 1);
    world.pending.clear();
    let before = world.at;
    world.tick();
    assert_eq!(world.at - before, Duration::from_secs(1));
    world.proceed();
    assert_eq!(failed(&world), 1, "the same reason is reported once");
    world.proxies = 1;
    world.settle();
    assert!(world.is_member());
}

#[test]
fn a_proxy_that_does_not_answer_in_5_s_is_not_waited_for() {
    let mut world = offered();
    world.tick();
    assert_eq!(world.at - world.start, Duration::from_secs(5));
    assert!(reason(&world).contains("no proxy answered within 5000 ms"));
    let withdrawn = |e: &Effect| matches!(e, Effect::Withdraw { .. });
    assert!(world.effects().iter().any(withdrawn));
}

#[test]
fn a_failed_join_is_withdrawn_and_one_that_is_not_saved_is_undone() {
    let mut world = offered();
    world.proceed();
    world.fail();
    assert!(reason(&world).contains("UP-AGENT-005") && !world.is_served);
    assert!(world.work().is_none(), "a failed join has undone itself");

    let mut world = offered();
    world.proceed();
    world.proceed();
    world.fail();
    assert!(matches!(world.work(), Some(Work::Remove)));
    while !world.is_outside() {
        world.proceed();
    }
    assert!(!world.is_captured && !world.is_served);
    assert!(reason(&world).contains("UP-AGENT-009"));
}

#[test]
fn a_lost_namespace_is_forgotten_so_that_it_is_searched_for() {
    let mut world = World::found(enrol());
    let generation = world.life.as_ref().unwrap().generation();
    world.pending.clear();
    world.input(Input::Answered(
        generation,
        Answer::Prepared {
            plan: Err(super::refusal()),
            lost: true,
        },
    ));
    assert_eq!(world.life.as_ref().unwrap().sandbox.netns_path, None);
    world.pending.clear();
    let path = std::path::PathBuf::from("/proc/7/ns/net");
    world.input(Input::Located {
        path: path.clone(),
        inode: 9,
    });
    let sandbox = &world.life.as_ref().unwrap().sandbox;
    assert_eq!((&sandbox.netns_path, sandbox.netns_inode), (&Some(path), 9));
    assert!(matches!(world.work(), Some(Work::Prepare { .. })));
}

#[test]
fn leftovers_of_an_interrupted_join_are_cleared_once() {
    let mut world = World::new(skip());
    world.is_captured = true;
    world.find();
    world.flush();
    assert!(matches!(world.work(), Some(Work::ClearLeftovers)));
    world.proceed();
    assert!(!world.is_captured && world.events.contains(&Event::LeftoversRemoved));
    assert_eq!(reason(&world), "no label");
    world.decide();
    assert!(world.work().is_none(), "the pod is known to have none");
}

#[test]
fn leftovers_that_cannot_be_cleared_are_reported_and_tried_again() {
    let mut world = World::found(skip());
    world.fail();
    assert!(reason(&world).starts_with("no label; leftover redirect rules may block"));
    world.tick();
    assert!(matches!(world.work(), Some(Work::ClearLeftovers)));
    world.proceed();
    assert_eq!(reason(&world), "no label");
}

#[test]
fn a_namespace_that_is_not_found_is_checked_for_leftovers_later() {
    let mut world = World::found(skip());
    let generation = world.life.as_ref().unwrap().generation();
    world.pending.clear();
    let unplaced = Answer::Cleared(Ok(Leftovers::Unplaced));
    world.input(Input::Answered(generation, unplaced));
    assert_eq!(reason(&world), "no label");
    world.decide();
    assert!(matches!(world.work(), Some(Work::ClearLeftovers)));
}

#[test]
fn a_pod_that_is_not_known_well_enough_stays_as_it_is() {
    let world = World::found(unknown());
    assert_eq!(reason(&world), "older than the agent");
    assert!(world.work().is_none());
}

#[test]
fn del_of_a_pod_that_joins_removes_what_was_begun() {
    for steps in 0..4 {
        let mut world = World::found(enrol());
        (0..steps).for_each(|_| world.proceed());
        world.input(Input::Deleted);
        world.settle();
        assert!(
            world.life.is_none() && !world.is_captured && !world.is_served,
            "{steps}"
        );
        assert_eq!(world.disk, (None, None), "{steps}");
    }
}

#[test]
fn a_released_pod_keeps_its_rules() {
    let mut world = World::found(enrol());
    world.settle();
    world.input(Input::Released("finished".to_owned()));
    assert!(world.life.is_none() && world.is_captured && !world.is_served);
}
