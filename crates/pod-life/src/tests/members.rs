//! Members: verification, changes of the plan, and leaving.

use std::time::Duration;

use agent_status::VerificationState;
use redirect::TcpConnection;

use super::world::World;
use super::{enrol, other_plan, skip, unknown, with_plan};
use crate::{
    Answer, Effect, Event, Exceptions, Input, Member, Phase, Refusal, Verdict, WORK_BUDGET, Work,
};

/// A member that was verified once.
fn member() -> World {
    let mut world = World::presented(enrol());
    world.proceed();
    world.install();
    while !world.pending.is_empty() {
        world.proceed();
    }
    assert_eq!(state(&world), Some(VerificationState::Verified));
    world.events.clear();
    world
}

fn of(world: &World) -> &Member {
    match world.phase() {
        Some(Phase::Member(member)) => member,
        other => panic!("not a member: {other:?}"),
    }
}

fn state(world: &World) -> Option<VerificationState> {
    of(world).checks.state()
}

fn connections(ports: &[u16]) -> Exceptions {
    let to = |port: &u16| TcpConnection {
        local_port: *port,
        peer: ([10, 0, 0, 9], 80).into(),
    };
    ports.iter().map(to).collect()
}

#[test]
fn a_member_is_verified_at_once_and_again_within_its_interval() {
    let mut world = member();
    let before = world.at;
    world.tick();
    assert!(matches!(world.work(), Some(Work::Verify { .. })));
    assert!(world.at - before <= Duration::from_secs(35));
    world.proceed();
    let one = |e: &Effect| matches!(e, Effect::Probe { all: false, .. });
    assert!(
        world.effects().iter().any(one),
        "nothing has changed since the last one"
    );
}

#[test]
fn a_change_is_verified_after_5_ms_and_probed_in_full() {
    let mut world = member();
    let before = world.at;
    world.is_captured = false;
    world.input(Input::Changed);
    assert!(world.work().is_none());
    world.tick();
    assert_eq!(world.at - before, Duration::from_millis(5));
    world.proceed();
    let all = |e: &Effect| matches!(e, Effect::Probe { all: true, .. });
    assert!(world.effects().iter().any(all));
    assert!(world.is_captured);
    assert!(matches!(&world.events[..], [Event::Repaired { by, .. }, ..] if by == "nft"));
    assert!(of(&world).checks.repair.is_some());
}

#[test]
fn a_drift_is_reported_once_and_its_repair_lasts_from_the_detection() {
    let mut world = member();
    world.is_captured = false;
    world.input(Input::Changed);
    world.tick();
    world.fail();
    assert_eq!(state(&world), Some(VerificationState::Drifted));
    world.tick();
    world.fail();
    let drifted = |e: &&Event| matches!(e, Event::Drifted { .. });
    assert_eq!(world.events.iter().filter(drifted).count(), 1);
    world.tick();
    world.proceed();
    let lasted = world.events.iter().find_map(|e| match e {
        Event::Repaired { lasted, .. } => Some(*lasted),
        _ => None,
    });
    assert_eq!(
        lasted,
        Some(Duration::from_secs(3)),
        "one and two seconds of delay"
    );
}

#[test]
fn a_silent_proxy_is_reported_and_its_return_as_well() {
    let mut world = member();
    world.input(Input::ProxiesChanged);
    world.proceed();
    world.fail();
    assert_eq!(state(&world), Some(VerificationState::Unverified));
    world.input(Input::ProxiesChanged);
    world.proceed();
    world.proceed();
    let after = |e: &Event| matches!(e, Event::Verified { after: Some(_) });
    assert!(world.events.iter().any(after));
}

#[test]
fn a_request_during_a_verification_starts_another_one() {
    let mut world = member();
    world.input(Input::VerifyRequested);
    let requested = world.life.as_ref().unwrap().generation();
    world.input(Input::VerifyRequested);
    world.proceed();
    world.proceed();
    assert!(of(&world).checks.completed <= requested);
    assert!(matches!(world.work(), Some(Work::Verify { .. })));
    world.proceed();
    world.proceed();
    assert!(of(&world).checks.completed > requested);
}

#[test]
fn work_beyond_its_budget_is_reported_and_not_waited_for() {
    let mut world = member();
    world.input(Input::VerifyRequested);
    world.tick();
    assert_eq!(
        world.life.as_ref().unwrap().busy.unwrap().since + WORK_BUDGET,
        world.at
    );
    assert_eq!(state(&world), Some(VerificationState::Unverified));
    assert!(
        world.life.as_ref().unwrap().deadline().is_none(),
        "reported once"
    );
    world.proceed();
    world.proceed();
    assert_eq!(state(&world), Some(VerificationState::Verified));
}

#[test]
fn another_plan_is_applied_and_saved_with_the_same_capture() {
    let mut world = member();
    let mut plan = other_plan();
    plan.capture = redirect::CaptureKind::Nat;
    world.set_verdict(with_plan(plan));
    assert_eq!(
        world.work(),
        Some(&Work::Repair {
            plan: other_plan(),
            exceptions: Some(Exceptions::new())
        }),
        "the capture stays"
    );
    world.proceed();
    assert_eq!(of(&world).membership.plan, other_plan());
    assert!(world.events.contains(&Event::PlanChanged));
}

#[test]
fn a_plan_that_cannot_be_applied_is_tried_again() {
    let mut world = member();
    world.set_verdict(with_plan(other_plan()));
    world.fail();
    assert!(matches!(world.events[..], [Event::PlanFailed(_)]));
    world.settle();
    assert_eq!(of(&world).membership.plan, other_plan());
}

#[test]
fn a_pod_that_keeps_its_plan_because_of_an_invalid_annotation_is_not_verified() {
    let mut world = member();
    let mut verdict = enrol();
    if let Verdict::Enrol(intent) = &mut verdict {
        intent.plan = Err(Refusal::new(&error_code::agent::ANNOTATION, "a typo"));
    }
    world.set_verdict(verdict);
    assert!(matches!(world.events[..], [Event::PlanKept(_)]));
    assert!(world.is_member());
    world.proceed();
    world.proceed();
    assert_eq!(state(&world), Some(VerificationState::Unverified));
    world.set_verdict(enrol());
    world.proceed();
    world.proceed();
    assert_eq!(state(&world), Some(VerificationState::Verified));
}

#[test]
fn a_pod_in_a_virtual_machine_is_a_member_but_never_verified() {
    let mut world = member();
    let mut verdict = enrol();
    if let Verdict::Enrol(intent) = &mut verdict {
        intent.unprovable = Some("it has a kernel of its own".to_owned());
    }
    world.set_verdict(verdict);
    world.proceed();
    world.proceed();
    assert_eq!(state(&world), Some(VerificationState::Unverified));
    assert!(world.is_member());
}

#[test]
fn a_decision_during_work_is_made_again_afterwards() {
    let mut world = member();
    world.input(Input::VerifyRequested);
    world.set_verdict(skip());
    assert!(world.is_member());
    world.proceed();
    assert!(matches!(world.work(), Some(Work::Leave { .. })));
}

#[test]
fn exemptions_are_released_every_10_s_and_never_added() {
    let mut world = World::found(enrol());
    world.proceed();
    world.proceed();
    let generation = world.life.as_ref().unwrap().generation();
    world.pending.clear();
    world.is_captured = true;
    let joined = Answer::Joined(Ok(connections(&[1, 2, 3])));
    world.input(Input::Answered(generation, joined));
    while !world.pending.is_empty() {
        world.proceed();
    }
    assert_eq!(of(&world).membership.exempted, 3);
    let release = |world: &mut World, open: &[u16]| {
        while !matches!(world.work(), Some(Work::ReleaseExceptions { .. })) {
            if world.pending.is_empty() {
                world.tick();
            } else {
                world.proceed();
            }
        }
        let generation = world.life.as_ref().unwrap().generation();
        world.pending.clear();
        let released = Answer::ExceptionsReleased(Ok(connections(open)));
        world.input(Input::Answered(generation, released));
    };
    release(&mut world, &[2, 3, 4]);
    assert_eq!(of(&world).membership.exceptions, Some(connections(&[2, 3])));
    release(&mut world, &[4]);
    assert_eq!(of(&world).membership.exempted, 0);
}

#[test]
fn a_pod_leaves_when_it_has_lingered_and_its_connections_are_closed() {
    let mut world = member();
    world.set_verdict(skip());
    assert!(
        !world.is_watched,
        "the verification would restore the rules"
    );
    let keeps = |world: &World| match world.work() {
        Some(Work::Leave {
            keep_return_path, ..
        }) => *keep_return_path,
        other => panic!("{other:?}"),
    };
    assert!(keeps(&world));
    world.proceed();
    assert!(world.events.contains(&Event::Leaving { open: 0 }));
    let since = world.at;
    while world.at - since < Duration::from_secs(5) {
        assert!(world.is_served, "tunnels are served while it lingers");
        while !world.pending.is_empty() {
            world.proceed();
        }
        world.tick();
    }
    world.settle();
    assert!(world.is_outside() && !world.is_served);
    assert!(world.disk.0.is_none() && world.disk.1.is_some());
}

#[test]
fn captured_connections_keep_a_pod_leaving() {
    let mut world = member();
    world.set_verdict(skip());
    world.at += Duration::from_secs(60);
    let left = |world: &mut World, open| {
        let generation = world.life.as_ref().unwrap().generation();
        world
            .pending
            .retain(|p| matches!(p, super::world::Pending::Disk(..)));
        world.input(Input::Answered(generation, Answer::Left(Ok(open))));
    };
    left(&mut world, 2);
    world.at += Duration::from_secs(60);
    world.input(Input::Tick);
    left(&mut world, 1);
    assert!(matches!(world.phase(), Some(Phase::Leaving(_))));
    world.input(Input::Tick);
    world.at += Duration::from_secs(1);
    world.input(Input::Tick);
    left(&mut world, 0);
    assert!(world.is_outside());
}

#[test]
fn a_leaving_pod_can_rejoin_and_exempts_what_was_opened_meanwhile() {
    let mut world = member();
    world.set_verdict(skip());
    world.proceed();
    world.set_verdict(with_plan(other_plan()));
    assert_eq!(world.work(), Some(&Work::Join { plan: other_plan() }));
    world.fail();
    assert!(matches!(world.phase(), Some(Phase::Leaving(_))));
    world.settle();
    assert_eq!(of(&world).membership.plan, other_plan());
    assert!(world.is_captured && world.is_watched && world.disk.0.is_some());
}

#[test]
fn a_leaving_pod_continues_to_leave_when_too_little_is_known() {
    let mut world = member();
    world.set_verdict(skip());
    world.set_verdict(unknown());
    world.settle();
    assert!(world.is_outside());
}

#[test]
fn rules_that_cannot_be_removed_are_tried_again() {
    let mut world = member();
    world.set_verdict(skip());
    world.fail();
    assert!(matches!(world.events.last(), Some(Event::RemovalFailed(_))));
    world.settle();
    assert!(world.is_outside() && !world.is_captured);
}

#[test]
fn del_removes_a_member_and_a_second_del_changes_nothing() {
    let mut world = member();
    world.input(Input::Deleted);
    assert!(matches!(world.work(), Some(Work::Remove)) && !world.is_served);
    world.input(Input::Deleted);
    world.settle();
    assert!(world.life.is_none() && !world.is_captured);
    assert_eq!(world.disk, (None, None));
}

#[test]
fn a_newer_sandbox_of_the_same_pod_is_not_interrupted_by_the_old_one() {
    for (uid, withdraws) in [(Some("u"), false), (Some("another"), true), (None, true)] {
        let mut world = member();
        let uid = uid.map(str::to_owned);
        world.input(Input::Superseded { uid });
        let withdrawn = |e: &Effect| matches!(e, Effect::Withdraw { .. });
        assert_eq!(world.effects().iter().any(withdrawn), withdraws);
        assert!(world.life.is_none() && world.work().is_none());
    }
}

#[test]
fn a_restored_member_is_announced_watched_and_verified() {
    let mut world = member();
    world.restart();
    assert!(world.is_member() && world.is_watched && state(&world).is_none());
    world.settle();
    assert!(world.is_served);
    assert_eq!(state(&world), Some(VerificationState::Verified));
}

#[test]
fn a_restored_member_without_a_namespace_is_only_kept_until_it_is_found() {
    let mut world = member();
    let record = world.disk.0.clone().unwrap();
    world.life = Some(crate::Life::restored(record, false, world.at));
    world.input(Input::Begun);
    assert!(world.work().is_none());
    assert_eq!(state(&world), Some(VerificationState::Unverified));
    let located = |inode| Input::Located {
        path: "/proc/9/ns/net".into(),
        inode,
    };
    world.input(located(8));
    assert!(world.work().is_none(), "another namespace");
    world.input(located(7));
    assert!(matches!(world.work(), Some(Work::Verify { .. })));
    assert!(world.is_watched);
}
