//! Which pod a process belongs to, by the names that kubelets and runtimes give to control groups.
//!
//! | driver | `/proc/PID/cgroup` |
//! |---|---|
//! | cgroupfs, version 1 | `5:memory:/kubepods/burstable/podUID/CONTAINER` |
//! | cgroupfs, version 2 | `0::/kubepods/podUID/CONTAINER` |
//! | systemd | `0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podU_I_D.slice/cri-containerd-CONTAINER.scope` |

/// A container of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Membership {
    /// The pod's.
    pub(super) uid: String,
    /// The container's id; none for a process that is in no container's own group.
    pub(super) container: Option<String>,
}

/// The pod that a process belongs to, by the text of its `cgroup` file. The outermost name counts: what a pod makes up
/// lies below its own group.
pub(super) fn membership(text: &str) -> Option<Membership> {
    text.lines().filter_map(|line| line.splitn(3, ':').nth(2)).find_map(of_path)
}

fn of_path(path: &str) -> Option<Membership> {
    let mut names = path.split('/');
    let uid = names.find_map(uid)?;
    Some(Membership { uid, container: names.next().and_then(container) })
}

/// `podUID`, or `kubepods-QOS-podU_I_D.slice`.
fn uid(name: &str) -> Option<String> {
    let (name, of_systemd) = name.strip_suffix(".slice").map_or((name, false), |n| (n, true));
    let (before, uid) = name.rsplit_once("pod")?;
    let whole = if of_systemd { before.ends_with('-') } else { before.is_empty() };
    let uid = if of_systemd { uid.replace('_', "-") } else { uid.to_owned() };
    let is_uid = uid.len() >= 32 && uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    (whole && is_uid).then_some(uid)
}

/// `CONTAINER`, or `RUNTIME-CONTAINER.scope`.
fn container(name: &str) -> Option<String> {
    let id = match name.strip_suffix(".scope") {
        Some(scope) => scope.rsplit_once('-').map_or(scope, |(_, id)| id),
        None => name,
    };
    (id.len() >= 32 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f0e0d0c-1111-2222-3333-444455556666";

    fn found(text: &str) -> Option<(String, bool)> {
        membership(text).map(|m| (m.uid, m.container.is_some_and(|c| c == "ab".repeat(32))))
    }

    #[test]
    fn every_shape_of_a_pods_group_is_understood() {
        let container = "ab".repeat(32);
        let systemd = UID.replace('-', "_");
        for (text, has_container) in [
            (format!("12:cpuset:/\n5:memory:/kubepods/burstable/pod{UID}/{container}\n"), true),
            (format!("0::/kubepods/pod{UID}/{container}"), true),
            (format!("0::/../../pod{UID}/{container}"), true),
            (format!("3:cpu,cpuacct:/kt-n1/kubepods/besteffort/pod{UID}/{container}"), true),
            (
                format!(
                    "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{systemd}.slice/cri-containerd-{container}.scope"
                ),
                true,
            ),
            (format!("0::/kubepods.slice/kubepods-pod{systemd}.slice/crio-{container}.scope/container"), true),
            (format!("0::/kubepods.slice/kubepods-pod{systemd}.slice/crio-conmon"), false),
            (format!("0::/kubepods/pod{UID}"), false),
        ] {
            assert_eq!(found(&text), Some((UID.to_owned(), has_container)), "{text}");
        }
        // The uid of a static pod is a digest.
        assert!(found(&format!("0::/kubepods/pod{}", "9".repeat(32))).is_some());
    }

    #[test]
    fn the_outermost_pod_counts() {
        let inner = "ffffffff-1111-2222-3333-444455556666";
        let text = format!("0::/kubepods/pod{UID}/{}/pod{inner}/x", "ab".repeat(32));
        assert_eq!(found(&text), Some((UID.to_owned(), true)));
    }

    #[test]
    fn what_is_no_pods_group_is_nobodys() {
        for text in [
            "",
            "\n",
            "0::/",
            "0::/system.slice/kubelet.service",
            "0::/kubepods/podxyz",
            "nonsense",
            "0:/kubepods/pod",
            &format!("0::/tripod{UID}"),
            &format!("0::/pod{UID}x"),
            &format!("0::/kubepodspod{UID}.slice"),
        ] {
            assert_eq!(membership(text), None, "{text:?}");
        }
    }
}
