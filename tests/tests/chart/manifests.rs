//! The rendered chart and its metadata.

use std::fs;

use underpass_tests::skip::skip;

use crate::helm;

/// `deploy/manifests/underpass.yaml` is the chart rendered with its default values, without helm's
/// hooks.
///
/// `UPDATE_DOCS=1` writes the file.
#[test]
fn the_manifests_are_what_the_chart_prints() {
    if let Some(why) = helm::missing() {
        return skip(&why);
    }
    let rendered = helm::rendered(&["--name-template", "underpass", "--no-hooks"], &[]);
    let path = helm::repository().join("deploy/manifests/underpass.yaml");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &rendered).unwrap();
    }
    let file = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        file == rendered,
        "deploy/manifests is out of date; run UPDATE_DOCS=1 cargo test --workspace --test \
         chart"
    );
}

#[test]
fn the_chart_passes_lint() {
    if let Some(why) = helm::missing() {
        return skip(&why);
    }
    for values in [
        &[][..],
        &[
            "ztunnel.resourceQuotas.enabled=true",
            "cni.affinity={\"nodeAffinity\":{}}",
        ],
    ] {
        let output = helm::run("lint", &["--strict"], values);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
}

#[test]
fn the_chart_has_the_version_of_the_programs() {
    let chart =
        fs::read_to_string(helm::repository().join("deploy/helm/underpass/Chart.yaml")).unwrap();
    let chart: serde_json::Value = serde_saphyr::from_str(&chart).unwrap();
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
}
