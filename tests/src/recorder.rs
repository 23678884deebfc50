//! A CNI plugin that writes down how it was called: what a runtime really does, by the runtime itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::binaries;

/// Its name in a conflist.
pub const TYPE: &str = "underpass-test-recorder";

/// The environment as the runtime gave it, an empty line, the input. libcni sorts the keys of its JSON, and prevResult
/// stands before type. What is written appears under its name at once, complete.
const SCRIPT: &str = r#"#!/bin/sh
input=$(cat)
name=$(date +%s%N)-$$
{ tr '\0' '\n' </proc/$$/environ; echo; printf '%s\n' "$input"; } >FOLDER/.$name
mv FOLDER/.$name FOLDER/$name
case $CNI_COMMAND in
ADD) printf '%s' "$input" | sed 's/.*"prevResult":\({.*}\),"type":.*/\1/' ;;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}' ;;
esac
"#;

/// One call.
#[derive(Debug)]
pub struct Recorded {
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// Standard input.
    pub input: Value,
}

impl Recorded {
    /// The verb.
    pub fn verb(&self) -> &str {
        &self.env["CNI_COMMAND"]
    }

    /// The names of the variables, in order.
    pub fn variables(&self) -> Vec<&str> {
        self.env.keys().map(String::as_str).collect()
    }

    /// Whether there was a namespace, and whether there was a previous result: what CHECK and DEL differ in.
    pub fn given(&self) -> (bool, bool) {
        let netns = self.env.get("CNI_NETNS").is_some_and(|n| !n.is_empty());
        (netns, !self.input["prevResult"].is_null())
    }
}

/// The calls of one test.
#[derive(Debug)]
pub struct Recorder(PathBuf);

impl Recorder {
    /// Puts the plugin into a runtime's folder; the calls are written into a folder of the test.
    pub fn install(bin_dir: &Path, calls: PathBuf) -> Self {
        fs::create_dir_all(&calls).unwrap();
        let script = calls.with_extension("sh");
        fs::write(&script, SCRIPT.replace("FOLDER", calls.to_str().unwrap())).unwrap();
        binaries::copy(&script, &bin_dir.join(TYPE));
        Self(calls)
    }

    /// All calls until now, in order.
    pub fn calls(&self) -> Vec<Recorded> {
        let mut names: Vec<PathBuf> = fs::read_dir(&self.0).unwrap().flatten().map(|e| e.path()).collect();
        names.retain(|n| !n.file_name().unwrap().to_str().unwrap().starts_with('.'));
        names.sort();
        names.iter().map(|n| parse(&fs::read_to_string(n).unwrap())).collect()
    }

    /// The calls with what they were given, such as `ADD netns prevResult`.
    pub fn story(&self) -> Vec<String> {
        let told = |call: &Recorded| {
            let (netns, result) = call.given();
            format!("{}{}{}", call.verb(), if netns { " netns" } else { "" }, if result { " prevResult" } else { "" })
        };
        self.calls().iter().map(told).collect()
    }

    /// Forgets all calls.
    pub fn clear(&self) {
        for entry in fs::read_dir(&self.0).unwrap().flatten() {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}

fn parse(text: &str) -> Recorded {
    let (env, input) = text.split_once("\n\n").unwrap();
    let env = env.lines().filter_map(|l| l.split_once('=')).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    Recorded { env, input: serde_json::from_str(input).unwrap_or_default() }
}
