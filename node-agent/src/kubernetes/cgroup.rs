//! Identifies the pod of a process by the cgroup names that kubelets and runtimes use.
//!
//! | driver | `/proc/PID/cgroup` |
//! |---|---|
//! | cgroupfs, version 1 | `5:memory:/kubepods/burstable/podUID/CONTAINER` |
//! | cgroupfs, version 2 | `0::/kubepods/podUID/CONTAINER` |
//! | systemd | `0::/kubepods.slice/kubepods-podU_I_D.slice/cri-containerd-CONTAINER.scope` |
//! | cgroupfs, CRI-O | `0::/kubepods/podUID/crio-CONTAINER` |
//! | kubelet with systemd only | `0::/SERVICE/kubepods-podU_I_D.slice:cri-containerd:CONTAINER` |

/// The pod and container of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CgroupOwner {
    /// The pod's uid.
    pub(super) uid: String,
    /// The container's id; `None` for a process outside any container's cgroup.
    pub(super) container: Option<String>,
}

/// Returns the owner of a process, from the text of its `cgroup` file. The outermost pod name
/// counts: a pod can create any names below its own cgroup.
pub(super) fn owner(text: &str) -> Option<CgroupOwner> {
    text.lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .find_map(owner_of_path)
}

fn owner_of_path(path: &str) -> Option<CgroupOwner> {
    // A runtime without the systemd driver takes the triple `SLICE:PREFIX:CONTAINER`, by which the
    // kubelet asks systemd for a scope, for the name of a folder.
    let mut names = path.split(['/', ':']);
    let uid = names.find_map(uid)?;
    Some(CgroupOwner {
        uid,
        container: names.take(2).find_map(container),
    })
}

/// Parses `podUID`, or `kubepods-QOS-podU_I_D.slice`.
fn uid(name: &str) -> Option<String> {
    let (name, is_systemd) = name
        .strip_suffix(".slice")
        .map_or((name, false), |n| (n, true));
    let (before, uid) = name.rsplit_once("pod")?;
    let is_full_name = if is_systemd {
        before.ends_with('-')
    } else {
        before.is_empty()
    };
    let uid = if is_systemd {
        uid.replace('_', "-")
    } else {
        uid.to_owned()
    };
    let is_uid = uid.len() >= 32 && uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    (is_full_name && is_uid).then_some(uid)
}

/// Parses `CONTAINER`, `RUNTIME-CONTAINER`, or `RUNTIME-CONTAINER.scope`.
fn container(name: &str) -> Option<String> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let id = name.rsplit_once('-').map_or(name, |(_, id)| id);
    (id.len() >= 32 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f0e0d0c-1111-2222-3333-444455556666";

    fn found(text: &str) -> Option<(String, bool)> {
        owner(text).map(|o| (o.uid, o.container.is_some_and(|c| c == "ab".repeat(32))))
    }

    #[test]
    fn all_cgroup_drivers_and_runtimes_are_recognised() {
        let container = "ab".repeat(32);
        let systemd = UID.replace('-', "_");
        for (text, has_container) in [
            (
                format!("12:cpuset:/\n5:memory:/kubepods/burstable/pod{UID}/{container}\n"),
                true,
            ),
            (format!("0::/kubepods/pod{UID}/{container}"), true),
            (format!("0::/../../pod{UID}/{container}"), true),
            (
                format!("3:cpu,cpuacct:/kt-n1/kubepods/besteffort/pod{UID}/{container}"),
                true,
            ),
            (
                format!(
                    "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{systemd}.\
                     slice/cri-containerd-{container}.scope"
                ),
                true,
            ),
            (
                format!(
                    "0::/kubepods.slice/kubepods-pod{systemd}.slice/crio-{container}.scope/\
                     container"
                ),
                true,
            ),
            (
                format!("0::/kubepods.slice/kubepods-pod{systemd}.slice/crio-conmon"),
                false,
            ),
            (format!("0::/kubepods/pod{UID}"), false),
            (
                format!(
                    "0::/system.slice/containerd.service/kubepods-burstable-pod{systemd}.slice:\
                     cri-containerd:{container}"
                ),
                true,
            ),
            (
                format!(
                    "4:memory:/system.slice/containerd.service/kubepods-pod{systemd}.slice:\
                     cri-containerd:{container}"
                ),
                true,
            ),
            (
                format!("0::/kubepods/besteffort/pod{UID}/crio-{container}"),
                true,
            ),
            (
                format!("0::/kubepods/pod{UID}/crio-{container}/supervisor"),
                true,
            ),
            (
                format!(
                    "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/\
                     kubelet-kubepods-burstable-pod{systemd}.slice/cri-containerd-{container}.scope"
                ),
                true,
            ),
            (
                format!("11:pids:/docker/{container}/kubelet/kubepods/pod{UID}/{container}"),
                true,
            ),
            (
                format!(
                    "1:name=systemd:/kubepods.slice/kubepods-pod{systemd}.slice/\
                     docker-{container}.scope"
                ),
                true,
            ),
        ] {
            assert_eq!(
                found(&text),
                Some((UID.to_owned(), has_container)),
                "{text}"
            );
        }
        // The uid of a static pod is a digest.
        let digest = "9".repeat(32);
        for text in [
            format!("0::/kubepods/pod{digest}"),
            format!("0::/kubepods.slice/kubepods-pod{digest}.slice/crio-{container}.scope"),
        ] {
            assert_eq!(found(&text).map(|(uid, _)| uid), Some(digest.clone()));
        }
    }

    #[test]
    fn the_outermost_pod_name_counts() {
        let inner = "ffffffff-1111-2222-3333-444455556666";
        let text = format!("0::/kubepods/pod{UID}/{}/pod{inner}/x", "ab".repeat(32));
        assert_eq!(found(&text), Some((UID.to_owned(), true)));
    }

    #[test]
    fn other_cgroups_have_no_owner() {
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
            assert_eq!(owner(text), None, "{text:?}");
        }
    }
}
