//! What an application asks over and over: on a connection that it holds open, or on a new one each time.

#![allow(clippy::disallowed_types)] // kubectl

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

use super::{Kube, await_within};

/// An application that asks. It ends when this is dropped.
#[derive(Debug)]
pub struct Held {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Kube {
    /// Has an application open a connection, and waits for its first answer.
    #[track_caller]
    pub fn hold(&self, namespace: &str, pod: &str, to: &str) -> Held {
        self.ask_over_and_over(namespace, pod, "hold", to)
    }

    /// Has an application connect over and over, and waits for its first answer.
    #[track_caller]
    pub fn knock(&self, namespace: &str, pod: &str, to: &str) -> Held {
        self.ask_over_and_over(namespace, pod, "knock", to)
    }

    #[track_caller]
    fn ask_over_and_over(&self, namespace: &str, pod: &str, how: &str, to: &str) -> Held {
        let mut command = self.command("kubectl");
        command.args(["exec", "-i", "-n", namespace, pod, "--", "underpass-app", how, to]);
        netns::process::die_with_parent(&mut command);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (said, output) = (lines.clone(), child.stdout.take().unwrap());
        std::thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).for_each(|line| said.lock().unwrap().push(line));
        });
        let held = Held { child, lines };
        held.goes_on();
        held
    }
}

impl Held {
    /// Waits for five more answers.
    ///
    /// # Panics
    /// When the connection has ended.
    #[track_caller]
    pub fn goes_on(&self) -> usize {
        let before = self.answers();
        await_within(15, "the connection goes on", || {
            assert_eq!(self.end(), None, "the connection has ended");
            (self.answers() >= before + 5).then(|| self.answers())
        })
    }

    /// Waits until it has ended; why.
    #[track_caller]
    pub fn is_cut(&self) -> String {
        await_within(15, "the connection is cut", || self.end())
    }

    fn answers(&self) -> usize {
        self.lines.lock().unwrap().iter().filter(|l| l.contains(" sees ")).count()
    }

    fn end(&self) -> Option<String> {
        self.lines.lock().unwrap().iter().find(|l| l.contains("failed: ")).cloned()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.child.stdin.take()); // the application ends by this
        let _ = self.child.wait();
    }
}
