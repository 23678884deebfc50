//! What holds after any sequence of inputs, answers and restarts.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::world::World;
use super::{enrol, other_plan, skip, unknown, with_plan};
use crate::{Answer, Event, FromNode, Generation, Input, Phase, Verdict, Via};

/// Something that happens.
#[derive(Debug, Clone, Copy)]
enum Action {
    Present,
    Find,
    Answer(usize, bool),
    Repeat(usize),
    Install,
    PluginExits,
    Tick,
    Wait(u64),
    Decide(u8),
    Deleted,
    Released,
    Superseded(bool),
    Drift,
    ProxiesChanged,
    VerifyRequested,
    Proxies(usize),
    Restart,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        2 => Just(Action::Present),
        1 => Just(Action::Find),
        20 => (0..4_usize, prop::bool::weighted(0.15)).prop_map(|(n, e)| Action::Answer(n, e)),
        2 => (0..20_usize).prop_map(Action::Repeat),
        4 => Just(Action::Install),
        1 => Just(Action::PluginExits),
        6 => Just(Action::Tick),
        3 => (0..7000_u64).prop_map(Action::Wait),
        4 => (0..4_u8).prop_map(Action::Decide),
        1 => Just(Action::Deleted),
        1 => Just(Action::Released),
        1 => any::<bool>().prop_map(Action::Superseded),
        1 => Just(Action::Drift),
        1 => Just(Action::ProxiesChanged),
        1 => Just(Action::VerifyRequested),
        1 => (0..3_usize).prop_map(Action::Proxies),
        1 => Just(Action::Restart),
    ]
}

fn verdict(number: u8) -> Verdict {
    match number {
        0 => skip(),
        1 => unknown(),
        2 => with_plan(other_plan()),
        _ => enrol(),
    }
}

impl World {
    fn act(&mut self, action: Action) {
        match action {
            // A runtime presents a sandbox once; the agent handles another one as another life.
            Action::Present if self.life.is_none() => self.present(),
            Action::Find if self.life.is_none() && !self.is_captured => self.find_late(),
            Action::Present | Action::Find => {}
            Action::Answer(index, fails) => self.answer(index, fails),
            Action::Repeat(index) => {
                // A faulty performer answers twice, or an answer arrives late.
                if let Some((generation, answer)) = self.answered.get(index).cloned() {
                    self.input(Input::Answered(generation, answer));
                }
            }
            Action::Install => self.install(),
            Action::PluginExits => {
                if self.plugin.is_some() && !self.is_hung_up {
                    let refusal = crate::Refusal::plugin_disconnected();
                    self.input(Input::PluginFailed(refusal));
                }
            }
            Action::Tick => self.tick(),
            Action::Wait(ms) => {
                self.at += Duration::from_millis(ms);
                self.input(Input::Tick);
            }
            Action::Decide(number) => self.set_verdict(verdict(number)),
            Action::Deleted => self.input(Input::Deleted),
            Action::Released => self.input(Input::Released("finished".to_owned())),
            Action::Superseded(same) => {
                let uid = same.then(|| "u".to_owned());
                self.input(Input::Superseded { uid });
                self.is_served &= self.life.is_some(); // now on behalf of the newer one
            }
            Action::Drift => {
                if self.is_watched {
                    self.is_captured = false;
                    self.input(Input::Changed);
                }
            }
            Action::ProxiesChanged => self.input(Input::ProxiesChanged),
            Action::VerifyRequested => self.input(Input::VerifyRequested),
            Action::Proxies(count) => self.proxies = count,
            Action::Restart => self.restart(),
        }
        self.check();
    }

    /// What always holds. More is asserted while effects are performed.
    fn check(&self) {
        assert!(
            self.final_answers() <= 1,
            "answered twice: {:?}",
            self.plugin
        );
        // A late start is reported once, when the pod joins.
        let late = |e: &Event| matches!(e, Event::StartedOutside { .. });
        let joined = |e: &Event| matches!(e, Event::Joined { via, .. } if *via == Via::Running);
        let reported = self.events.iter().filter(|e| late(e)).count();
        assert!(reported <= self.late_starts, "{:?}", self.events);
        let mut pairs = self.events.windows(2);
        assert!(
            pairs.all(|w| !late(&w[1]) || joined(&w[0])),
            "{:?}",
            self.events
        );
        let is_adding = self.life.as_ref().is_some_and(|l| l.is_adding());
        if self.plugin.is_some() && !is_adding {
            assert_eq!(self.final_answers(), 1, "not answered");
        }
        if let Some(deadline) = self.add_deadline.filter(|_| is_adding) {
            let due = self.life.as_ref().and_then(|l| l.deadline());
            assert!(due.is_some_and(|due| due <= deadline), "never answered");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever has happened, the pod ends where it belongs once everything works.
    #[test]
    fn a_life_converges_after_any_sequence(
        actions in vec(action(), 1..60), found in any::<bool>(), last in 0..4_u8,
    ) {
        let mut world = if found { World::found(enrol()) } else { World::presented(enrol()) };
        actions.into_iter().for_each(|action| world.act(action));
        world.proxies = 1;
        world.set_verdict(verdict(last));
        world.settle();
        world.check();
        match (world.phase(), last) {
            (None, _) => prop_assert!(world.disk == (None, None), "{world:?}"),
            (Some(Phase::Outside(_)), 0) => {
                prop_assert!(!world.is_captured && !world.is_served, "{world:?}");
                prop_assert!(world.disk.0.is_none() && world.disk.1.is_some());
            }
            (Some(Phase::Member(member)), 2 | 3) => {
                prop_assert!(world.is_captured && world.is_served && world.is_watched);
                prop_assert_eq!(&world.disk.0.as_ref().unwrap().membership, &member.membership);
                let plan = &member.membership.plan;
                prop_assert_eq!(plan.dns, last == 2);
                let state = member.checks.state();
                prop_assert_eq!(state, Some(agent_status::VerificationState::Verified));
            }
            // Too little is known: the pod stays where it is.
            (Some(Phase::Member(_) | Phase::Outside(_)), 1) => {}
            (phase, _) => prop_assert!(false, "{phase:?} with verdict {last}"),
        }
    }

    /// A kill after any effect: the next agent reaches the same end.
    #[test]
    fn a_kill_at_any_time_changes_nothing_in_the_end(
        actions in vec(action(), 1..40),
        found in any::<bool>(),
        last in prop_oneof![Just(0), Just(3)],
    ) {
        let run = |kill: Option<usize>| {
            let mut world =
                if found { World::found(enrol()) } else { World::presented(enrol()) };
            for (index, action) in actions.iter().enumerate() {
                if kill == Some(index) {
                    world.restart();
                }
                world.act(*action);
            }
            world.proxies = 1;
            world.restart();
            world.set_verdict(verdict(last));
            world.settle();
            world
        };
        for kill in 0..actions.len() {
            let world = run(Some(kill));
            match world.phase() {
                None => prop_assert!(world.disk == (None, None)),
                Some(Phase::Outside(_)) => prop_assert!(last == 0 && !world.is_captured),
                Some(Phase::Member(_)) => {
                    prop_assert!(last == 3 && world.is_captured && world.is_served);
                }
                Some(other) => prop_assert!(false, "{other:?}"),
            }
        }
    }

    /// Answers that no request is waiting for change nothing.
    #[test]
    fn answers_of_other_generations_are_ignored(
        actions in vec(action(), 1..40), number in 1000..2000_u64,
    ) {
        let mut world = World::presented(enrol());
        actions.into_iter().for_each(|action| world.act(action));
        let before = (world.life.clone(), world.pending.len());
        for answer in [
            Answer::Proxy(Ok(())),
            Answer::Saved(Ok(())),
            Answer::Joined(Ok(Default::default())),
            Answer::Left(Ok(0)),
            Answer::Removed(Ok(())),
            Answer::Probed(Ok(FromNode::Probed)),
            Answer::PlanApplied(Ok(())),
        ] {
            world.input(Input::Answered(Generation(number), answer));
        }
        // A member may start what has become due.
        if !world.is_member() {
            prop_assert_eq!(before, (world.life, world.pending.len()));
        }
    }
}
