use tokio::time::Instant;

use super::*;
use crate::config::apply::Update;
use crate::config::load;
use crate::config::snapshot::Store;
use crate::telemetry::stats::Stats;

fn data(name: &str) -> std::path::PathBuf {
    std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/istio").join(name)
}

/// The frontend's configuration as istiod sends it.
fn applier() -> Applier {
    let loaded = load::bootstrap_from_file(&data("bootstrap.json")).unwrap();
    let mut a = Applier::new(Arc::new(Store::default()), &loaded, &Stats::default(), Instant::now());
    for file in ["cds", "eds", "lds", "rds"] {
        let bytes = std::fs::read(data("frontend-sidecar").join(format!("{file}.pb"))).unwrap();
        let r = envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse::decode(bytes.as_slice())
            .unwrap();
        let update = Update {
            type_url: &r.type_url,
            version: &r.version_info,
            added: r.resources.into_iter().map(|a| (String::new(), String::new(), a.value)).collect(),
            removed: Vec::new(),
            complete: false,
        };
        assert_eq!(a.apply(update, Instant::now()).rejected, []);
    }
    let key = crate::config::tls::TlsCertificate {
        chain_pem: Arc::from(b"chain".as_slice()),
        key_pem: Arc::from(b"very secret".as_slice()),
        chain_path: None,
        key_path: None,
        ocsp: None,
    };
    a.store().update(|s| {
        let secrets = Arc::make_mut(&mut s.secrets);
        secrets.insert("default".into(), Secret::Certificate(Arc::new(key)));
        secrets.insert("ROOTCA".into(), Secret::Roots { pem: Arc::from(b"roots".as_slice()), crl: None });
    });
    a.settle(Instant::now());
    a
}

fn section<'v>(dump: &'v Value, name: &str) -> &'v Value {
    let configs = dump["configs"].as_array().unwrap();
    configs.iter().find(|c| c["@type"].as_str().unwrap().ends_with(name)).unwrap()
}

#[test]
fn has_envoys_sections_in_envoys_order() {
    let dump = dump(&applier(), &Query { include_eds: true, ..Query::default() }).unwrap();
    let types: Vec<&str> = dump["configs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["@type"].as_str().unwrap().rsplit('.').next().unwrap())
        .collect();
    assert_eq!(
        types,
        [
            "BootstrapConfigDump",
            "ClustersConfigDump",
            "EndpointsConfigDump",
            "ListenersConfigDump",
            "ScopedRoutesConfigDump",
            "RoutesConfigDump",
            "SecretsConfigDump"
        ]
    );
    let clusters = section(&dump, "ClustersConfigDump");
    assert_eq!(clusters["static_clusters"].as_array().unwrap().len(), 4);
    let active = &clusters["dynamic_active_clusters"][0];
    assert_eq!(active["cluster"]["@type"], "type.googleapis.com/envoy.config.cluster.v3.Cluster");
    assert!(active["last_updated"].as_str().unwrap().ends_with('Z'));
    let listener = &section(&dump, "ListenersConfigDump")["dynamic_listeners"][0];
    assert!(
        listener["active_state"]["listener"]["address"]["socket_address"]["port_value"].is_u64(),
        "{listener}"
    );
    assert!(!section(&dump, ".RoutesConfigDump")["dynamic_route_configs"].as_array().unwrap().is_empty());
    assert!(
        !section(&dump, "EndpointsConfigDump")["dynamic_endpoint_configs"].as_array().unwrap().is_empty()
    );
}

#[test]
fn private_keys_are_redacted() {
    let dump = dump(&applier(), &Query::default()).unwrap();
    let secret = &section(&dump, "SecretsConfigDump")["dynamic_active_secrets"][1];
    assert_eq!(secret["name"], "default");
    assert_eq!(secret["secret"]["tls_certificate"]["private_key"]["inline_bytes"], REDACTED_BYTES);
    assert_eq!(secret["secret"]["tls_certificate"]["certificate_chain"]["inline_bytes"], "Y2hhaW4=");
    assert!(!dump.to_string().contains(&base64::engine::general_purpose::STANDARD.encode("very secret")));
}

#[test]
fn a_resource_a_mask_and_a_name_choose() {
    let a = applier();
    let q = |resource: Option<&str>, mask: Option<&str>, name: Option<&str>| Query {
        resource: resource.map(str::to_owned),
        mask: mask.map(str::to_owned),
        name_regex: name.map(str::to_owned),
        include_eds: false,
    };
    let one =
        dump(&a, &q(Some("dynamic_active_clusters"), Some("cluster.name"), Some("BlackHole.*"))).unwrap();
    let expected = json!({"configs": [{"@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump.DynamicCluster",
        "cluster": {"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "BlackHoleCluster"}}]});
    assert_eq!(one, expected);
    assert_eq!(dump(&a, &q(Some("nonsense"), None, None)).unwrap_err(), "nonsense not found in config dump");
    assert!(dump(&a, &q(None, None, Some("("))).unwrap_err().contains("name_regex"));
}

#[test]
fn a_refused_version_is_shown_beside_the_good_one() {
    let mut a = applier();
    let bad = Cluster { name: "BlackHoleCluster".into(), lb_policy: 99, ..Cluster::default() };
    let update = Update {
        type_url: type_url::CLUSTER,
        version: "2",
        added: vec![(String::new(), String::new(), bad.encode_to_vec())],
        removed: Vec::new(),
        complete: false,
    };
    assert_eq!(a.apply(update, Instant::now()).rejected.len(), 1);
    let dump = dump(&a, &Query { name_regex: Some("BlackHoleCluster".into()), ..Query::default() }).unwrap();
    let entry = &section(&dump, "ClustersConfigDump")["dynamic_active_clusters"][0];
    assert_eq!(entry["cluster"]["name"], "BlackHoleCluster");
    assert_eq!(entry["error_state"]["details"], "lb_policy: 99 is not a value of the enumeration");
    assert_eq!(entry["error_state"]["failed_configuration"]["name"], "BlackHoleCluster");
}
