use std::path::PathBuf;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use outrigger_xds::json::Schema;
use prost::{Message, Name};

use super::*;
use crate::config::cluster::Discovery;
use crate::config::filter::{HttpFilterConfig, NetworkFilter};
use crate::config::load;

fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/istio").join(name)
}

const PROXIES: [&str; 3] = ["frontend-sidecar", "podinfo-sidecar", "ingress-gateway"];

fn resources<T: Message + Default>(proxy: &str, file: &str) -> Vec<T> {
    let bytes = std::fs::read(data(proxy).join(file)).unwrap();
    let response = DiscoveryResponse::decode(bytes.as_slice()).unwrap();
    assert!(!response.resources.is_empty(), "{proxy}/{file}");
    response.resources.iter().map(|a| T::decode(a.value.as_slice()).unwrap()).collect()
}

#[allow(dead_code)]
fn parse<T: Message + Default + Name>(yaml: &str) -> T {
    Schema::load().parse_yaml(yaml).unwrap()
}

#[test]
fn istiods_clusters_convert() {
    let env = Env::default();
    let mut eds = 0;
    for proxy in PROXIES {
        for m in resources::<Cluster>(proxy, "cds.pb") {
            let (cluster, needs) = cluster::cluster(&env, m).unwrap_or_else(|e| panic!("{proxy}: {e}"));
            if let Discovery::Eds { service_name } = &cluster.discovery {
                eds += 1;
                assert!(needs.iter().any(|n| n.kind == NeedKind::Endpoints
                    && n.name == *service_name
                    && n.fetch_timeout.is_none()));
            }
        }
    }
    assert!(eds > 10);
}

#[test]
fn istiods_endpoints_convert() {
    for proxy in PROXIES {
        for m in resources::<ClusterLoadAssignment>(proxy, "eds.pb") {
            endpoint::load_assignment(&Env::default(), m).unwrap_or_else(|e| panic!("{proxy}: {e}"));
        }
    }
}

#[test]
fn istiods_routes_convert() {
    for proxy in PROXIES {
        for m in resources::<RouteConfiguration>(proxy, "rds.pb") {
            route::route_config(&Env::default(), m).unwrap_or_else(|e| panic!("{proxy}: {e}"));
        }
    }
}

#[test]
fn istiods_listeners_convert_but_for_jwt() {
    let mut refused = Vec::new();
    for proxy in PROXIES {
        for m in resources::<Listener>(proxy, "lds.pb") {
            match listener::listener(&Env::default(), m) {
                Ok((l, _)) => assert!(!l.filter_chains.is_empty() || l.default_chain.is_some()),
                Err(e) => refused.push((proxy, e.to_string())),
            }
        }
    }
    for (proxy, e) in &refused {
        assert!(e.contains("envoy.filters.http.jwt_authn"), "{proxy}: {e}");
    }
    assert_eq!(refused.len(), 1, "{refused:?}");
}

#[test]
fn istios_own_bootstrap_converts() {
    let loaded = load::bootstrap_from_file(&data("bootstrap.json")).unwrap();
    let b = &loaded.bootstrap;
    assert_eq!(b.clusters.len(), 4);
    assert_eq!(b.listeners.len(), 2);
    assert!(b.ads.as_ref().unwrap().delta);
    assert_eq!(&*b.clusters[0].stat_name, "prometheus_stats;");
    assert_eq!(b.max_downstream_connections, Some(2_147_483_647));
    let chain = &b.listeners[0].filter_chains[0];
    let NetworkFilter::Hcm(hcm) = &chain.filters[0] else { panic!("no connection manager") };
    assert!(matches!(hcm.filters[0].config, HttpFilterConfig::Compressor(_)));
    assert!(b.listeners[0].is_static);
}
