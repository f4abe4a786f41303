//! A handful of differential cases against the outrigger binary of this build, so that `cargo test` alone shows that the
//! proxy runs. The whole suite is `integration/run diff`.

use std::path::PathBuf;
use std::sync::Arc;

use outrigger_integration::certs::Certs;
use outrigger_integration::ports::Ports;
use outrigger_integration::run::Context;
use outrigger_integration::suite::{self, Options, Verdict};

const CASES: &[&str] = &[
    "http1/keep_alive",
    "http1/pipelining",
    "http1/bad_heads",
    "http2/h2_to_h2_trailers",
    "routing/path_matches",
    "headers/request_mutations",
    "retry/body_is_replayed",
    "tcp/echo",
    "tls/client_certificate",
    "config/unknown_field",
];

/// The binary beside the folder of this test: building the workspace builds it.
fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("the test knows its own path");
    let target = test.ancestors().nth(2).expect("tests lie in target/PROFILE/deps");
    target.join("outrigger")
}

#[tokio::test(flavor = "multi_thread")]
async fn outrigger_does_what_envoy_did() {
    let binary = binary();
    assert!(binary.exists(), "{} is not built: test the whole workspace", binary.display());
    let certs_dir = tempfile::tempdir().expect("a directory");
    let certs = Certs::create(certs_dir.path()).expect("certificates");
    let context = Context { binary, ports: Ports::default(), certs: Arc::new(certs), keep: None };
    let options =
        Options { filter: CASES.iter().map(|c| (*c).to_owned()).collect(), jobs: 4, ..Options::default() };
    let verdicts = suite::run_all(Arc::new(context), &options, |_, _, _| {}).await.expect("the suite runs");
    assert!(verdicts.len() >= CASES.len(), "only {} cases were found", verdicts.len());
    let failed: Vec<_> = verdicts
        .iter()
        .filter_map(|(name, verdict)| match verdict {
            Verdict::Failed(why) => Some(format!("{name}\n{why}")),
            Verdict::Passed | Verdict::Recorded | Verdict::Expected(_) => None,
        })
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
