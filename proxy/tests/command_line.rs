//! The binary from outside: Envoy's command line, errors that name what is wrong, and the demo's mesh end to end.

use std::process::{Command, Output};

fn outrigger(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_outrigger")).args(arguments).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn version_is_told() {
    let out = outrigger(&["--version"]);
    assert!(out.status.success());
    assert!(text(&out.stdout).contains(env!("CARGO_PKG_VERSION")), "{}", text(&out.stdout));
}

#[test]
fn unknown_field_is_named_and_fails_validation() {
    let yaml = "static_resources: {clusters: [{name: a, lb_polcy: RANDOM}]}";
    let out = outrigger(&["--config-yaml", yaml, "--mode", "validate"]);
    assert!(!out.status.success());
    assert!(text(&out.stderr).contains("lb_polcy"), "{}", text(&out.stderr));
}

#[test]
fn demo_answers_every_request_through_both_sidecars() {
    let out = outrigger(&["demo", "--requests", "300"]);
    let shown = text(&out.stdout);
    assert!(out.status.success(), "{shown}{}", text(&out.stderr));
    assert!(shown.contains("300 of 300, 0 failed"), "{shown}");
    assert!(shown.contains("client spiffe://cluster.local/ns/demo/sa/frontend"), "{shown}");
    assert!(shown.contains("server spiffe://cluster.local/ns/demo/sa/podinfo"), "{shown}");
}
