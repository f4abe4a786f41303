//! Every case of the differential suite is well formed and recorded: needs no proxy.

use std::path::Path;

use outrigger_integration::case::{self, Case};
use outrigger_integration::ports::{Places, Ports};
use outrigger_integration::suite;

#[test]
fn every_case_parses_and_has_its_recording() {
    let ports = Ports::default();
    let cases = case::find(&suite::root().join("cases")).expect("the cases can be read");
    assert!(cases.len() >= 20, "only {} cases", cases.len());
    for (name, path) in cases {
        let text = std::fs::read_to_string(&path).expect("a readable case");
        let places =
            Places::allocate(&text, &ports, Path::new("/dir"), Path::new("/certs")).expect("ports are free");
        let case = Case::parse(&places.fill(&text)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(case.validate || !case.steps.is_empty(), "{name} does nothing");
        assert!(path.with_extension("envoy.json").exists(), "{name} has no recording");
        let differs = case.outrigger.is_some_and(|o| o.differs.is_some());
        assert_eq!(differs, path.with_extension("outrigger.json").exists(), "{name}");
    }
}

#[test]
fn every_recording_belongs_to_a_case() {
    let mut open = vec![suite::root().join("cases")];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "json") {
                let case = path.with_extension("").with_extension("yaml");
                assert!(case.exists(), "{} belongs to no case", path.display());
            }
        }
    }
}

#[test]
fn expected_failures_name_cases() {
    let cases = case::find(&suite::root().join("cases")).expect("the cases can be read");
    for name in suite::expected_failures(&suite::root()).expect("a well-formed file").keys() {
        assert!(cases.iter().any(|(n, _)| n == name), "{name} is no case");
    }
}
