//! What the chart prints.

use std::fs;

use underpass_tests::skip::skip;

use crate::helm;

/// `deploy/manifests/underpass.yaml` is what the chart prints with its own values, without the hooks that only helm runs.
///
/// `UPDATE_DOCS=1` writes the file.
#[test]
fn the_manifests_are_what_the_chart_prints() {
    if let Some(why) = helm::missing() {
        return skip("the_manifests_are_what_the_chart_prints", &why);
    }
    let printed = helm::printed(&["--name-template", "underpass", "--no-hooks"], &[]);
    let path = helm::repository().join("deploy/manifests/underpass.yaml");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &printed).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == printed,
        "deploy/manifests is out of date; run UPDATE_DOCS=1 cargo test -p underpass-tests --test chart"
    );
}

#[test]
fn the_chart_passes_lint() {
    if let Some(why) = helm::missing() {
        return skip("the_chart_passes_lint", &why);
    }
    for values in [&[][..], &["ztunnel.resourceQuotas.enabled=true", "cni.affinity={\"nodeAffinity\":{}}"]] {
        let output = helm::run("lint", &["--strict"], values);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn chart_and_programs_have_the_same_version() {
    let chart = fs::read_to_string(helm::repository().join("deploy/helm/underpass/Chart.yaml")).unwrap();
    let chart: serde_json::Value = serde_saphyr::from_str(&chart).unwrap();
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
}
