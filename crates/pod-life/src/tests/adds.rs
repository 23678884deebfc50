//! ADDs, from the presentation to the answer.

use std::time::Duration;

use handoff::FromAgent;

use super::world::{PLUGIN_DEADLINE, World};
use super::{enrol, plan, sandbox, skip, unknown};
use crate::{Conflict, Effect, Event, Input, Life, Phase, Refusal, Verdict, Via, Work};

/// A presented pod whose namespace is checked and whose plan the plugin has installed.
fn installed() -> World {
    let mut world = World::presented(enrol());
    world.proceed();
    world.install();
    world
}

/// A pod that waits for a proxy.
fn offered() -> World {
    let mut world = installed();
    world.proceed();
    world
}

/// A pod that waits for a proxy, and whose record is on disk.
fn saved() -> World {
    let mut world = offered();
    world.answer(1, false);
    assert!(world.disk.0.is_some(), "{:?}", world.pending);
    world
}

/// A pod that waits for its record only.
fn saving() -> World {
    let mut world = offered();
    world.proceed();
    world
}

#[test]
fn an_add_is_answered_when_rules_proxy_and_record_are_in_place() {
    let mut world = World::presented(enrol());
    assert!(matches!(world.work(), Some(Work::Prepare { plan: Ok(_) })));
    world.proceed();
    assert!(matches!(world.last_message(), Some(FromAgent::Enrol { plan: p }) if **p == plan()));
    world.install();
    assert!(matches!(world.work(), Some(Work::ReadBack { .. })));
    world.proceed();
    assert_eq!(world.final_answers(), 0, "no proxy serves the pod yet");
    world.proceed();
    assert_eq!(world.final_answers(), 0, "the record is not on disk yet");
    world.proceed();
    assert_eq!(world.last_message(), Some(&FromAgent::Ready));
    assert!(world.is_member() && world.is_hung_up && world.is_watched);
    assert!(matches!(world.work(), Some(Work::Verify { .. })));
    assert!(matches!(
        world.events[..],
        [Event::Joined { via: Via::Add, .. }]
    ));
}

#[test]
fn a_pod_outside_the_mesh_is_answered_before_anything_is_written() {
    let world = World::presented(skip());
    let skipped = FromAgent::Skip {
        reason: "no label".to_owned(),
    };
    assert_eq!(world.last_message(), Some(&skipped));
    assert!(world.is_outside() && world.is_hung_up && world.work().is_none());
    assert_eq!(world.disk, (None, None), "not written yet");
    let event = Event::Skipped {
        reason: "no label".to_owned(),
        at_add: true,
    };
    assert_eq!(world.events, [event]);
}

#[test]
fn an_unknown_pod_does_not_start_and_is_not_kept() {
    let world = World::presented(unknown());
    assert_eq!(world.failure(), "UP-AGENT-003");
    assert!(world.life.is_none() && world.is_hung_up);
}

#[test]
fn a_namespace_that_is_not_the_pods_is_rejected_and_not_touched() {
    let mut world = World::presented(enrol());
    world.fail();
    assert_eq!(world.failure(), "UP-AGENT-005");
    assert!(world.life.is_none() && world.pending.is_empty());
}

#[test]
fn a_plan_that_cannot_be_made_is_reported_after_the_namespace_was_checked() {
    let mut intent = match enrol() {
        Verdict::Enrol(intent) => *intent,
        other => panic!("{other:?}"),
    };
    intent.plan = Err(Refusal::new(&error_code::agent::ANNOTATION, "a typo"));
    let mut world = World::presented(Verdict::Enrol(Box::new(intent)));
    assert_eq!(world.final_answers(), 0);
    world.proceed();
    assert_eq!(world.failure(), "UP-AGENT-015");
}

#[test]
fn every_failure_after_the_plan_is_answered_first_and_then_removed() {
    for (make, code) in [
        (installed as fn() -> World, "UP-AGENT-005"),
        (offered, "UP-AGENT-008"),
        (saved, "UP-AGENT-008"),
        (saving, "UP-AGENT-009"),
    ] {
        let mut world = make();
        world.fail();
        assert_eq!(world.failure(), code);
        assert!(!world.is_hung_up, "the plugin waits for the removal");
        assert!(matches!(world.work(), Some(Work::Remove)), "{code}");
        world.settle();
        assert!(world.life.is_none() && world.is_hung_up, "{code}");
        assert!(!world.is_captured && !world.is_served, "{code}");
        assert_eq!(world.disk, (None, None), "{code}");
        assert_eq!(world.final_answers(), 1);
    }
}

#[test]
fn the_record_is_written_while_a_proxy_is_asked_but_not_while_there_is_none() {
    let mut world = saved();
    assert_eq!(world.final_answers(), 0, "no proxy serves the pod yet");
    world.proceed();
    assert_eq!(world.last_message(), Some(&FromAgent::Ready));

    let mut world = offered();
    world.answer(1, true);
    assert_eq!(world.failure(), "UP-AGENT-009");
    world.settle();
    assert!(world.life.is_none() && !world.is_served && !world.is_captured);

    let mut world = installed();
    world.proxies = 0;
    world.proceed();
    world.proceed();
    let is_write = |e: &Effect| matches!(e, Effect::Persist(Some(_)));
    assert!(world.effects().iter().any(is_write), "a proxy has accepted");
    assert_eq!(world.final_answers(), 0);
    world.proceed();
    assert_eq!(world.last_message(), Some(&FromAgent::Ready));
}

#[test]
fn a_record_is_marked_until_after_its_add_is_answered() {
    let is_marked = |world: &World| world.disk.0.as_ref().unwrap().unanswered;
    let mut world = saved();
    assert!(is_marked(&world));
    world.proceed();
    assert_eq!(world.last_message(), Some(&FromAgent::Ready));
    assert!(is_marked(&world), "the answer waits for no other write");
    world.flush();
    assert!(!is_marked(&world));

    // The agent is killed before the mark is removed, and before the answer.
    let mut world = saved();
    world.proceed();
    world.restart();
    assert!(world.life.is_some(), "it has its rules");
    let mut world = saved();
    world.restart();
    assert!(world.life.is_none(), "its plugin has removed the rules");
}

#[test]
fn a_failed_removal_is_reported_and_ends_the_add() {
    let mut world = saved();
    world.fail();
    world.flush();
    world.fail();
    assert!(world.life.is_none() && world.is_hung_up);
    assert!(matches!(world.events.last(), Some(Event::RemovalFailed(_))));
}

#[test]
fn each_step_is_answered_at_the_deadline_with_what_is_missing() {
    let planned = || {
        let mut world = World::presented(enrol());
        world.proceed();
        world
    };
    for (make, proxies, code) in [
        (
            (|| World::presented(enrol())) as fn() -> World,
            1,
            "UP-AGENT-005",
        ),
        (planned, 1, "UP-AGENT-001"),
        (installed, 1, "UP-AGENT-005"),
        (offered, 0, "UP-AGENT-006"),
        (offered, 1, "UP-AGENT-007"),
        (saving, 1, "UP-AGENT-009"),
    ] {
        let mut world = make();
        world.proxies = proxies;
        world.tick();
        assert_eq!(world.at - world.start, PLUGIN_DEADLINE);
        assert_eq!(world.failure(), code);
        let can_retry = matches!(
            world.last_message(),
            Some(FromAgent::Failed { retry: true, .. })
        );
        assert!(can_retry, "{code}");
        world.settle();
        assert!(world.life.is_none() && !world.is_captured, "{code}");
    }
}

#[test]
fn removal_waits_for_work_that_the_deadline_has_overtaken() {
    let mut world = installed();
    world.tick();
    assert!(matches!(world.work(), Some(Work::ReadBack { .. })));
    world.proceed();
    assert!(matches!(world.work(), Some(Work::Remove)));
}

#[test]
fn a_plugin_that_exits_is_undone() {
    for make in [installed as fn() -> World, offered, saved, saving] {
        let mut world = make();
        world.input(Input::PluginFailed(Refusal::plugin_disconnected()));
        world.settle();
        assert!(world.life.is_none() && !world.is_captured && !world.is_served);
    }
}

#[test]
fn an_unexpected_installed_fails_the_add() {
    let mut world = offered();
    world.input(Input::Installed);
    assert_eq!(world.failure(), "UP-AGENT-001");
}

#[test]
fn an_add_waits_for_a_proxy_and_needs_only_one_of_several() {
    let mut world = installed();
    world.proxies = 0;
    world.proceed();
    assert_eq!(world.final_answers(), 0);
    let mut world = offered();
    world.proxies = 2;
    let generation = world.life.as_ref().unwrap().generation();
    let reject = || Input::Answered(generation, crate::Answer::Proxy(Err("no".to_owned())));
    world.input(reject());
    assert_eq!(world.final_answers(), 0, "the other may accept");
    world.input(reject());
    assert_eq!(world.failure(), "UP-AGENT-008");
}

#[test]
fn names_that_do_not_fit_into_a_packet_are_rejected() {
    let mut verdict = enrol();
    if let Verdict::Enrol(intent) = &mut verdict {
        intent.uid = "u".repeat(100_000);
    }
    let mut world = World::presented(verdict);
    world.proceed();
    world.install();
    world.proceed();
    assert_eq!(world.failure(), "UP-AGENT-010");
    assert!(matches!(world.work(), Some(Work::Remove)));
}

#[test]
fn an_add_replaces_earlier_lives_only_when_its_rules_are_in_place() {
    let replaces = |world: &World| {
        let supersede = |e: &Effect| {
            matches!(
                e,
                Effect::Supersede {
                    is_offered: true,
                    ..
                }
            )
        };
        world.effects().iter().any(supersede)
    };
    let mut world = World::presented(enrol());
    assert!(!replaces(&world));
    world.proceed();
    assert!(!replaces(&world));
    world.install();
    world.proceed();
    assert!(replaces(&world));
}

fn present(world: &mut World, conflict: Conflict) {
    world.life = Some(Life::presented(sandbox()));
    world.plugin = Some(Vec::new());
    world.input(Input::Presented {
        verdict: enrol(),
        conflict: Some(conflict),
        repeated: true,
        deadline: world.at + PLUGIN_DEADLINE,
    });
}

#[test]
fn an_add_beside_another_is_refused_and_beside_a_removal_waits() {
    let mut world = World::new(enrol());
    present(&mut world, Conflict::Adding);
    assert_eq!(world.failure(), "UP-AGENT-020");
    assert!(world.life.is_none());

    let mut world = World::new(enrol());
    present(&mut world, Conflict::Changing);
    assert!(matches!(world.phase(), Some(Phase::Waiting { .. })));
    assert_eq!(world.final_answers(), 0);
    world.input(Input::Unblocked);
    assert!(matches!(world.work(), Some(Work::Prepare { .. })));

    let mut world = World::new(enrol());
    present(&mut world, Conflict::Changing);
    world.tick();
    assert_eq!(world.failure(), "UP-AGENT-020");
}

#[test]
fn a_waiting_add_is_decided_again() {
    let mut world = World::new(skip());
    present(&mut world, Conflict::Changing);
    world.input(Input::Unblocked);
    assert!(matches!(world.last_message(), Some(FromAgent::Skip { .. })));
}

#[test]
fn del_during_an_add_answers_and_removes() {
    for make in [installed as fn() -> World, offered, saved, saving] {
        let mut world = make();
        world.input(Input::Deleted);
        assert_eq!(world.final_answers(), 1);
        world.settle();
        assert!(world.life.is_none() && !world.is_captured && world.disk.0.is_none());
    }
}

#[test]
fn a_label_that_changes_during_the_add_takes_effect_afterwards() {
    let mut world = saving();
    world.verdict = skip();
    world.decide();
    assert_eq!(world.final_answers(), 0);
    world.proceed();
    assert_eq!(world.last_message(), Some(&FromAgent::Ready));
    world.flush();
    world.proceed();
    assert!(matches!(world.phase(), Some(Phase::Leaving(_))));
}

#[test]
fn the_reported_duration_is_that_of_the_whole_add() {
    let mut world = saving();
    world.at += Duration::from_millis(30);
    world.proceed();
    let took = Duration::from_millis(30);
    let joined = Event::Joined {
        via: Via::Add,
        took,
    };
    assert!(world.events.contains(&joined), "{:?}", world.events);
}
