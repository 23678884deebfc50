//! Repeated requests of an application: on one open connection, or on a new one each time.

#![allow(clippy::disallowed_types)] // kubectl

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

use super::{Kube, until};

/// An application that sends requests until this is dropped.
#[derive(Debug)]
pub struct RequestLoop {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Kube {
    /// Sends requests from a pod on one open connection, and waits for the first responses.
    #[track_caller]
    pub fn request_on_one_connection(&self, namespace: &str, pod: &str, to: &str) -> RequestLoop {
        self.start_request_loop(namespace, pod, "repeat", to)
    }

    /// Sends requests from a pod on new connections, and waits for the first responses.
    #[track_caller]
    pub fn request_on_new_connections(&self, namespace: &str, pod: &str, to: &str) -> RequestLoop {
        self.start_request_loop(namespace, pod, "reconnect", to)
    }

    #[track_caller]
    fn start_request_loop(&self, namespace: &str, pod: &str, how: &str, to: &str) -> RequestLoop {
        let mut command = self.command("kubectl");
        command.args([
            "exec",
            "-i",
            "-n",
            namespace,
            pod,
            "--",
            "underpass-app",
            how,
            to,
        ]);
        netns::process::die_with_parent(&mut command);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (received, output) = (lines.clone(), child.stdout.take().unwrap());
        std::thread::spawn(move || {
            BufReader::new(output)
                .lines()
                .map_while(Result::ok)
                .for_each(|line| received.lock().unwrap().push(line));
        });
        let requests = RequestLoop { child, lines };
        requests.await_answers();
        requests
    }
}

impl RequestLoop {
    /// Waits for five more responses; returns the total.
    ///
    /// # Panics
    /// When a request fails.
    #[track_caller]
    pub fn await_answers(&self) -> usize {
        let before = self.answers();
        until("five more responses", || {
            assert_eq!(self.end(), None, "a request failed");
            (self.answers() >= before + 5).then(|| self.answers())
        })
    }

    /// Waits until a request fails; returns its line.
    #[track_caller]
    pub fn await_end(&self) -> String {
        until("a request fails", || self.end())
    }

    fn answers(&self) -> usize {
        self.lines
            .lock()
            .unwrap()
            .iter()
            .filter(|l| l.contains(" sees "))
            .count()
    }

    fn end(&self) -> Option<String> {
        self.lines
            .lock()
            .unwrap()
            .iter()
            .find(|l| l.contains("failed: "))
            .cloned()
    }
}

impl Drop for RequestLoop {
    fn drop(&mut self) {
        drop(self.child.stdin.take()); // the application exits at the end of its input
        let _ = self.child.wait();
    }
}
