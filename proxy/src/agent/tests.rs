//! From what istiod injects to the node and the bootstrap.

use std::collections::BTreeMap;
use std::time::Duration;

use super::bootstrap::bootstrap;
use super::environment::{Environment, EnvironmentError, Source, go_duration};
use super::node::node;

/// What a pod of the injection template has.
fn variables() -> BTreeMap<String, String> {
    [
        ("POD_NAME", "frontend-1"),
        ("POD_NAMESPACE", "demo"),
        ("INSTANCE_IP", "10.244.0.8"),
        ("SERVICE_ACCOUNT", "frontend"),
        ("CA_ADDR", "istiod.istio-system.svc:15012"),
        ("ISTIO_CPU_LIMIT", "2"),
        ("PROXY_CONFIG", "{}\n"),
        ("ISTIO_META_POD_PORTS", "[\n  {\"name\":\"http\",\"containerPort\":9898,\"protocol\":\"TCP\"}\n]"),
        ("ISTIO_META_CLUSTER_ID", "Kubernetes"),
        ("ISTIO_META_WORKLOAD_NAME", "frontend"),
        ("ISTIO_META_INTERCEPTION_MODE", "REDIRECT"),
        ("ISTIO_METAJSON_EXTRA", "{\"a\":1}"),
        ("TRUST_DOMAIN", "cluster.local"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

fn read(variables: &BTreeMap<String, String>) -> Result<Environment, EnvironmentError> {
    let root = tempfile::tempdir().unwrap();
    let pod = root.path().join("etc/istio/pod");
    std::fs::create_dir_all(&pod).unwrap();
    std::fs::write(pod.join("labels"), "app=\"frontend\"\nversion=\"v1\"\n").unwrap();
    std::fs::write(pod.join("annotations"), "a=\"say \\\"hi\\\"\"\n").unwrap();
    Environment::read(&Source { variables, root: root.path() }, Some("demo.svc.cluster.local"))
}

#[test]
fn node_is_what_istiod_expects_of_a_sidecar() {
    let node = node(&read(&variables()).unwrap(), "sidecar");
    assert_eq!(node["id"], "sidecar~10.244.0.8~frontend-1.demo~demo.svc.cluster.local");
    assert_eq!(node["cluster"], "frontend.demo");
    let metadata = &node["metadata"];
    assert_eq!(metadata["LABELS"]["version"], "v1");
    assert_eq!(metadata["ANNOTATIONS"]["a"], "say \"hi\"");
    assert_eq!(metadata["INTERCEPTION_MODE"], "REDIRECT");
    assert_eq!(metadata["EXTRA"]["a"], 1);
    assert_eq!(metadata["PILOT_SAN"][0], "istiod.istio-system.svc");
    assert_eq!(metadata["PROXY_CONFIG"]["concurrency"], 2);
    assert!(metadata["POD_PORTS"].is_string());
}

#[test]
fn proxy_config_sets_what_the_pod_annotation_says() {
    let mut variables = variables();
    let config = r#"{"concurrency":1,"terminationDrainDuration":"3s","drainDuration":"1m0s","discoveryAddress":"x.y:15012",
        "proxyMetadata":{"ISTIO_META_DNS_CAPTURE":"true","SECRET_TTL":"60s"},"proxyStatsMatcher":{"inclusionRegexps":["cluster\\..*"]},
        "holdApplicationUntilProxyStarts":true,"somethingNew":1}"#;
    variables.insert("PROXY_CONFIG".into(), config.into());
    let environment = read(&variables).unwrap();
    assert_eq!(environment.concurrency(), 1);
    assert_eq!(environment.proxy_config.termination_drain(), Duration::from_secs(3));
    assert_eq!(environment.proxy_config.drain_duration(), Duration::from_secs(60));
    assert_eq!(environment.ttl, Duration::from_secs(60));
    assert!(environment.dns_capture);
    assert_eq!(environment.proxy_config.without_effect().collect::<Vec<_>>(), ["somethingNew"]);
    assert_eq!(node(&environment, "sidecar")["metadata"]["DNS_CAPTURE"], "true");
    assert!(bootstrap(&environment, "sidecar").to_string().contains(r#"{"regex":"cluster\\..*"}"#));
}

#[test]
fn concurrency_follows_the_limit_unless_told_otherwise() {
    let cores = std::thread::available_parallelism().unwrap().get();
    for (config, limit, expected) in [
        ("{}", "2", 2),
        ("{}", "", 2),
        ("{}", "7", 7),
        ("concurrency: 3", "2", 3),
        ("concurrency: 0", "", cores),
    ] {
        let mut variables = variables();
        variables.insert("PROXY_CONFIG".into(), config.into());
        variables.insert("ISTIO_CPU_LIMIT".into(), limit.into());
        assert_eq!(read(&variables).unwrap().concurrency(), expected, "{config} {limit}");
    }
}

#[test]
fn bootstrap_is_one_that_the_proxy_takes() {
    let json = bootstrap(&read(&variables()).unwrap(), "sidecar").to_string();
    let loaded = crate::config::load::bootstrap_from_yaml(&json).unwrap();
    let names: Vec<&str> = loaded.bootstrap.listeners.iter().map(|listener| &*listener.name).collect();
    assert_eq!(names, ["0.0.0.0_15090", "0.0.0.0_15021"]);
    assert_eq!(&*loaded.bootstrap.node.id, "sidecar~10.244.0.8~frontend-1.demo~demo.svc.cluster.local");
}

#[test]
fn errors_name_the_variable() {
    let mut missing = variables();
    missing.remove("POD_NAME");
    assert!(read(&missing).unwrap_err().to_string().starts_with("POD_NAME is not set"));
    for (name, value) in [
        ("INSTANCE_IP", "x"),
        ("SECRET_TTL", "1 day"),
        ("SECRET_GRACE_PERIOD_RATIO", "2"),
        ("ECC_SIGNATURE_ALGORITHM", "DSA"),
        ("ISTIO_METAJSON_X", "{"),
        ("PROXY_CONFIG", "concurrency: many"),
    ] {
        let mut variables = variables();
        variables.insert(name.into(), value.into());
        let error = read(&variables).unwrap_err().to_string();
        assert!(error.starts_with(name), "{name}: {error}");
    }
}

#[test]
fn durations_are_go_s() {
    for (text, millis) in [("1h30m", 5_400_000), ("1.5s", 1_500), ("300ms", 300), ("0", 0), ("60s", 60_000)] {
        assert_eq!(go_duration(text), Some(Duration::from_millis(millis)), "{text}");
    }
    for text in ["", "5", "s", "1d", "1h30"] {
        assert_eq!(go_duration(text), None, "{text}");
    }
}
