//! The versions of the specification, and the commands that each of them has.

use crate::Command;

/// The supported versions of the specification, oldest first: all that libcni knows.
pub const SUPPORTED_VERSIONS: [&str; 7] = [
    "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
];

/// The version of a configuration whose `cniVersion` is missing or empty, as in libcni.
pub const IMPLIED_VERSION: &str = SUPPORTED_VERSIONS[0];

/// The reply to VERSION, in the version of the request.
pub fn version_reply(requested: &str) -> serde_json::Value {
    serde_json::json!({ "cniVersion": requested, "supportedVersions": SUPPORTED_VERSIONS })
}

/// The first version that has the command. Every version answers VERSION, although 0.1.0 does not
/// define it: a runtime sends it before it knows the version.
pub fn first_version(command: Command) -> &'static str {
    match command {
        Command::Add | Command::Del | Command::Version => IMPLIED_VERSION,
        Command::Check => "0.4.0",
        Command::Gc | Command::Status => "1.1.0",
    }
}

/// Whether the version has the command; `false` for unsupported versions.
pub(crate) fn has_command(version: &str, command: Command) -> bool {
    let position = |version| SUPPORTED_VERSIONS.iter().position(|v| *v == version);
    position(version).is_some_and(|at| Some(at) >= position(first_version(command)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_has_its_commands() {
        for version in SUPPORTED_VERSIONS {
            for command in [Command::Add, Command::Del, Command::Version] {
                assert!(has_command(version, command), "{version} {command:?}");
            }
            let check = ["0.4.0", "1.0.0", "1.1.0"].contains(&version);
            assert_eq!(has_command(version, Command::Check), check, "{version}");
            for command in [Command::Gc, Command::Status] {
                assert_eq!(
                    has_command(version, command),
                    version == "1.1.0",
                    "{version}"
                );
            }
        }
        assert!(!has_command("1.2.0", Command::Add));
    }
}
