//! The state file, and what lives mean to each other.

use serde_json::{Value, json};

use super::world::World;
use super::{enrol, sandbox, skip};
use crate::{Conflict, Discarded, Life, Pods, Records, Sandbox};

fn member() -> World {
    let mut world = World::found(enrol());
    world.settle();
    world
}

fn file() -> Value {
    let (pod, _) = member().disk;
    let outside = World::found(skip()).life.unwrap().outside_record();
    let records = Records::new(
        "b1",
        pod.into_iter().collect(),
        outside.into_iter().collect(),
    );
    serde_json::from_slice(&records.to_json().unwrap()).unwrap()
}

fn parse(file: &Value) -> Result<Records, Discarded> {
    Records::parse(file.to_string().as_bytes(), "b1")
}

#[test]
fn pods_of_this_boot_are_restored() {
    let records = parse(&file()).unwrap();
    assert_eq!(records.pods, [member().disk.0.unwrap()]);
    assert_eq!(records.outside.len(), 1);
}

/// As the agents before this format extension wrote it.
#[test]
fn the_file_of_an_older_agent_is_read() {
    let mut old = file();
    old.as_object_mut().unwrap().remove("outside");
    let pod = old["pods"][0].as_object_mut().unwrap();
    for added in [
        "annotations",
        "leaving",
        "addresses",
        "exceptions",
        "synthesised",
    ] {
        pod.remove(added);
    }
    pod.insert("exempted".to_owned(), json!(2));
    let records = parse(&old).unwrap();
    let record = &records.pods[0];
    assert!(records.outside.is_empty() && !record.leaving);
    assert_eq!(record.sandbox.addresses, sandbox().addresses);
    assert_eq!(
        (record.membership.exempted, &record.membership.exceptions),
        (2, &None)
    );
    assert!(!record.sandbox.synthesised);
}

/// An older agent reads these keys of a newer file.
#[test]
fn the_keys_that_older_agents_read_remain() {
    let file = file();
    for key in [
        "attachment",
        "pod",
        "uid",
        "serviceAccount",
        "netnsInode",
        "netnsPath",
        "plan",
        "exempted",
        "reason",
    ] {
        assert!(file["pods"][0].get(key).is_some(), "{key}");
    }
    for key in [
        "attachment",
        "pod",
        "reason",
        "addresses",
        "netnsInode",
        "netnsPath",
    ] {
        assert!(file["outside"][0].get(key).is_some(), "{key}");
    }
}

#[test]
fn pods_of_an_earlier_boot_and_other_formats_are_not_used() {
    let with = |key: &str, value: Value| {
        let mut file = file();
        file[key] = value;
        parse(&file).unwrap_err()
    };
    assert!(matches!(with("bootId", json!("b0")), Discarded::Reboot));
    // The rest of another version's file may have any form.
    assert!(matches!(
        with("version", json!(2)),
        Discarded::OtherVersion(2)
    ));
    let foreign = parse(&json!({ "version": 7, "pods": {} }));
    assert!(matches!(foreign, Err(Discarded::OtherVersion(7))));
    assert!(matches!(with("pods", json!([{}])), Discarded::Damaged(_)));
    assert!(matches!(with("version", json!("1")), Discarded::Damaged(_)));
}

#[test]
fn a_file_that_is_torn_anywhere_is_damaged() {
    let whole = file().to_string();
    for length in 0..whole.len() {
        let torn = Records::parse(&whole.as_bytes()[..length], "b1");
        assert!(matches!(torn, Err(Discarded::Damaged(_))), "{length} bytes");
    }
}

fn other(container: &str, uid: &str, inode: u64) -> Sandbox {
    let mut other = sandbox();
    other.attachment.container_id = container.to_owned();
    other.pod.uid = Some(uid.to_owned());
    other.netns_inode = inode;
    other
}

#[test]
fn adds_of_the_same_pod_container_or_namespace_conflict() {
    let mut pods = Pods::default();
    let id = pods.insert(World::presented(enrol()).life.unwrap());
    for (container, uid, inode, conflict) in [
        ("c", "v", 2, Some(Conflict::Adding)),
        ("d", "u", 2, Some(Conflict::Adding)),
        ("d", "v", 7, Some(Conflict::Adding)),
        ("d", "v", 2, None),
    ] {
        let sandbox = other(container, uid, inode);
        assert_eq!(pods.conflict(None, &sandbox, Some(uid)), conflict);
    }
    assert_eq!(
        pods.conflict(Some(id), &sandbox(), Some("u")),
        None,
        "not with itself"
    );
}

#[test]
fn an_add_conflicts_with_a_change_but_not_with_a_settled_pod() {
    let mut pods = Pods::default();
    let mut world = member();
    pods.insert(world.life.clone().unwrap());
    assert_eq!(pods.conflict(None, &sandbox(), Some("u")), None);
    assert!(pods.is_repeated(&sandbox()));
    world.input(crate::Input::Deleted);
    let mut pods = Pods::default();
    pods.insert(world.life.unwrap());
    assert_eq!(
        pods.conflict(None, &sandbox(), Some("u")),
        Some(Conflict::Changing)
    );
}

#[test]
fn a_life_replaces_those_with_its_attachment_or_uid() {
    let mut pods = Pods::default();
    let insert = |pods: &mut Pods, sandbox| pods.insert(Life::found(sandbox, ""));
    let same_attachment = insert(&mut pods, other("c", "v", 1));
    let same_pod = insert(&mut pods, other("d", "u", 2));
    let neither = insert(&mut pods, other("e", "w", 3));
    let own = insert(&mut pods, sandbox());
    let replaced = pods.superseded_by(own, &sandbox(), Some("u"));
    assert_eq!(replaced, [same_attachment, same_pod]);
    assert!(!pods.superseded_by(own, &sandbox(), None).contains(&neither));
}

#[test]
fn a_made_up_attachment_is_deleted_by_uid_and_never_collected() {
    let mut pods = Pods::default();
    let made_up = Sandbox {
        synthesised: true,
        ..other("app", "u", 1)
    };
    let id = pods.insert(Life::found(made_up, ""));
    let of_runtime = pods.insert(Life::found(other("d", "v", 2), ""));
    let pod = |uid: &str| Some(other("", uid, 0).pod);
    let sandbox_id = &sandbox().attachment;
    assert_eq!(pods.deleted_by(sandbox_id, pod("u").as_ref()), [id]);
    assert_eq!(pods.deleted_by(sandbox_id, pod("v").as_ref()), []);
    assert_eq!(pods.deleted_by(sandbox_id, None), []);
    assert_eq!(pods.collected_by(&[]), [of_runtime]);
    assert_eq!(pods.collected_by(&[other("d", "v", 2).attachment]), []);
}

#[test]
fn a_life_ends_with_the_last_of_its_attachments() {
    let mut pods = Pods::default();
    let id = pods.insert(Life::found(sandbox(), ""));
    let [first, second] = [sandbox().attachment, other("debug", "u", 1).attachment];
    assert!(!pods.detach(&first) && !pods.detach(&second));
    for removed in [&second, &first] {
        let left = if *removed == first { &second } else { &first };
        pods.attach(id, second.clone());
        pods.attach(id, second.clone());
        assert_eq!(pods.collected_by(std::slice::from_ref(&second)), []);
        assert!(pods.detach(removed));
        assert_eq!(pods.deleted_by(left, None), [id]);
        assert_eq!(pods.deleted_by(removed, None), []);
        assert!(!pods.detach(left), "the last one ends the life");
    }
    assert_eq!(pods.collected_by(&[first]), [id]);
}

#[test]
fn health_probes_pass_to_members_that_are_not_leaving() {
    let mut pods = Pods::default();
    let mut world = member();
    let id = pods.insert(world.life.clone().unwrap());
    pods.insert(Life::found(other("d", "v", 2), ""));
    let probed: Vec<_> = pods.probed_addresses().into_iter().collect();
    assert_eq!(probed, sandbox().addresses);
    world.set_verdict(skip());
    world.proceed();
    let _ = pods.take(id);
    pods.put(id, world.life.unwrap());
    assert!(pods.probed_addresses().is_empty());
}
