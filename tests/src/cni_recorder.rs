//! A CNI plugin that records how a real runtime calls it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::binaries;

/// The plugin's type in a conflist.
pub const TYPE: &str = "underpass-test-recorder";

/// Each record is the environment as the runtime set it, an empty line, and the input. libcni sorts
/// JSON keys, so prevResult stands before type. Records are renamed into place when complete.
const SCRIPT: &str = r#"#!/bin/sh
input=$(cat)
name=$(date +%s%N)-$$
{ tr '\0' '\n' </proc/$$/environ; echo; printf '%s\n' "$input"; } >FOLDER/.$name
mv FOLDER/.$name FOLDER/$name
case $CNI_COMMAND in
ADD) printf '%s' "$input" | sed 's/.*"prevResult":\({.*}\),"type":.*/\1/' ;;
VERSION)
    echo '{"cniVersion":"1.0.0","supportedVersions":'
    echo '["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}'
    ;;
esac
"#;

/// One recorded call.
#[derive(Debug)]
pub struct RecordedCall {
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// Standard input.
    pub input: Value,
}

impl RecordedCall {
    /// The CNI verb.
    pub fn verb(&self) -> &str {
        &self.env["CNI_COMMAND"]
    }

    /// The names of the environment variables, sorted.
    pub fn variables(&self) -> Vec<&str> {
        self.env.keys().map(String::as_str).collect()
    }

    /// Whether the call had a namespace, and whether it had a previous result.
    pub fn inputs(&self) -> (bool, bool) {
        let netns = self.env.get("CNI_NETNS").is_some_and(|n| !n.is_empty());
        (netns, !self.input["prevResult"].is_null())
    }
}

/// The recorded calls of one test.
#[derive(Debug)]
pub struct CniRecorder(PathBuf);

impl CniRecorder {
    /// Installs the plugin into a runtime's folder; `calls` is the folder of the records.
    pub fn install(bin_dir: &Path, calls: PathBuf) -> Self {
        fs::create_dir_all(&calls).unwrap();
        let script = calls.with_extension("sh");
        fs::write(&script, SCRIPT.replace("FOLDER", calls.to_str().unwrap())).unwrap();
        binaries::copy(&script, &bin_dir.join(TYPE));
        Self(calls)
    }

    /// All calls so far, in order.
    pub fn calls(&self) -> Vec<RecordedCall> {
        let mut names: Vec<PathBuf> = fs::read_dir(&self.0)
            .unwrap()
            .flatten()
            .map(|e| e.path())
            .collect();
        names.retain(|n| !n.file_name().unwrap().to_str().unwrap().starts_with('.'));
        names.sort();
        names
            .iter()
            .map(|n| parse(&fs::read_to_string(n).unwrap()))
            .collect()
    }

    /// Verb and inputs of every call, such as `ADD netns prevResult`.
    pub fn summaries(&self) -> Vec<String> {
        let summary = |call: &RecordedCall| {
            let (netns, result) = call.inputs();
            format!(
                "{}{}{}",
                call.verb(),
                if netns { " netns" } else { "" },
                if result { " prevResult" } else { "" }
            )
        };
        self.calls().iter().map(summary).collect()
    }

    /// Deletes all records.
    pub fn clear(&self) {
        for entry in fs::read_dir(&self.0).unwrap().flatten() {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}

fn parse(text: &str) -> RecordedCall {
    let (env, input) = text.split_once("\n\n").unwrap();
    let env = env
        .lines()
        .filter_map(|l| l.split_once('='))
        .map(|(n, v)| (n.to_owned(), v.to_owned()))
        .collect();
    RecordedCall {
        env,
        input: serde_json::from_str(input).unwrap_or_default(),
    }
}
