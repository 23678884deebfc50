//! Capabilities and API permissions of the chart's pods.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use underpass_tests::skip::skip;

use crate::helm::{self, object, objects, pod};

#[test]
fn pods_have_only_the_capabilities_that_they_use() {
    if let Some(why) = helm::missing() {
        return skip(&why);
    }
    let objects = objects(&[], &[]);
    let capabilities = [
        (
            "underpass-cni-node",
            json!(["NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE"]),
        ),
        ("ztunnel", json!(["NET_ADMIN", "SYS_ADMIN", "NET_RAW"])),
    ];
    for (name, capabilities) in capabilities {
        let pod = pod(&objects, name);
        assert_eq!(pod["containers"].as_array().unwrap().len(), 1);
        assert_eq!(pod["initContainers"], Value::Null);
        let context = &pod["containers"][0]["securityContext"];
        assert_eq!(
            context["capabilities"],
            json!({ "drop": ["ALL"], "add": capabilities }),
            "{name}"
        );
        assert_eq!(context["privileged"], false);
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(pod["priorityClassName"], "system-node-critical");
        assert_eq!(pod["tolerations"], json!([{ "operator": "Exists" }]));
    }
    assert_eq!(
        (
            &pod(&objects, "ztunnel")["hostNetwork"],
            &pod(&objects, "ztunnel")["hostPID"]
        ),
        (&Value::Null, &Value::Null)
    );
    let retirement =
        &object(&objects, "Job", "underpass-cni-retirement")["spec"]["template"]["spec"];
    let context = &retirement["containers"][0]["securityContext"];
    assert_eq!(context["capabilities"], json!({ "drop": ["ALL"] }));
    assert_eq!(
        (
            &context["runAsNonRoot"],
            &context["allowPrivilegeEscalation"]
        ),
        (&json!(true), &json!(false))
    );
}

#[test]
fn the_agent_has_only_the_documented_rights_and_the_proxy_none() {
    if let Some(why) = helm::missing() {
        return skip(&why);
    }
    let objects = objects(&[], &[]);
    let rules = object(&objects, "ClusterRole", "underpass-cni")["rules"]
        .as_array()
        .unwrap();
    let mut granted = BTreeSet::new();
    for rule in rules {
        assert_eq!(rule["apiGroups"], json!([""]));
        let texts = |key: &str| {
            rule[key]
                .as_array()
                .unwrap()
                .iter()
                .map(|t| t.as_str().unwrap().to_owned())
        };
        granted.extend(
            texts("resources").flat_map(|r| texts("verbs").map(move |v| format!("{v} {r}"))),
        );
    }
    let documented =
        std::fs::read_to_string(helm::repository().join("docs/kubernetes.md")).unwrap();
    let rows = documented
        .lines()
        .skip_while(|l| !l.starts_with("| resources | verbs |"))
        .skip(2);
    let quoted = |cell: &str| {
        cell.split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let documented: BTreeSet<String> = rows
        .take_while(|l| l.starts_with('|'))
        .flat_map(|row| {
            let cells: Vec<&str> = row.split('|').collect();
            let (resources, verbs) = (quoted(cells[1]), quoted(cells[2]));
            resources
                .into_iter()
                .flat_map(move |r| verbs.clone().into_iter().map(move |v| format!("{v} {r}")))
        })
        .collect();
    assert_eq!(granted, documented);
    let own = object(&objects, "Role", "underpass-cni");
    let rule = json!([{
        "apiGroups": ["apps"],
        "resources": ["daemonsets"],
        "resourceNames": ["underpass-cni-node"],
        "verbs": ["get", "list", "watch"],
    }]);
    assert_eq!(own["rules"], rule);
    assert_eq!(
        pod(&objects, "underpass-cni-node")["serviceAccountName"],
        "underpass-cni"
    );
    let proxy = pod(&objects, "ztunnel");
    assert_eq!(
        (
            &proxy["serviceAccountName"],
            &proxy["automountServiceAccountToken"]
        ),
        (&json!("ztunnel"), &json!(false))
    );
    let bindings = objects.iter().filter(|o| o["subjects"].is_array());
    assert!(
        bindings
            .into_iter()
            .all(|b| b["subjects"][0]["name"] != "ztunnel")
    );
}
