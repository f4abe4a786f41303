use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::Cluster as PbCluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener as PbListener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use outrigger_xds::json::Schema;
use outrigger_xds::type_url;
use prost::Name;

use super::*;
use crate::config::load;

fn encode<T: Message + Default + Name>(yaml: &str) -> Vec<u8> {
    Schema::load().parse_yaml::<T>(yaml).unwrap().encode_to_vec()
}

fn applier(yaml: &str) -> Applier {
    let loaded = load::bootstrap_from_yaml(yaml).unwrap();
    Applier::new(Arc::new(Store::default()), &loaded, &Stats::default(), Instant::now())
}

const DYNAMIC: &str = "dynamic_resources: {cds_config: {ads: {}}, lds_config: {ads: {}}}";

fn update<'a>(url: &'a str, added: Vec<Vec<u8>>) -> Update<'a> {
    let added = added.into_iter().map(|b| (String::new(), String::new(), b)).collect();
    Update { type_url: url, version: "v1", added, removed: Vec::new(), complete: false }
}

fn eds_cluster(name: &str, timeout: &str) -> Vec<u8> {
    encode::<PbCluster>(&format!(
        "{{name: {name}, type: EDS, eds_cluster_config: {{eds_config: {{ads: {{}}, initial_fetch_timeout: {timeout}}}}}}}"
    ))
}

fn endpoints(name: &str) -> Vec<u8> {
    encode::<ClusterLoadAssignment>(&format!(
        "{{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}}}}}]}}]}}"
    ))
}

fn listener(name: &str, port: u16, route: &str) -> Vec<u8> {
    encode::<PbListener>(&format!(
        r#"{{name: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, filter_chains: [{{filters: [{{name: hcm,
        typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
        stat_prefix: s, rds: {{route_config_name: {route}, config_source: {{ads: {{}}}}}},
        http_filters: [{{name: r, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]}}]}}"#
    ))
}

#[test]
fn a_good_resource_is_applied_beside_a_bad_one_whose_last_good_version_stays() {
    let mut a = applier(DYNAMIC);
    let now = Instant::now();
    let good = |timeout: &str| encode::<PbCluster>(&format!("{{name: a, connect_timeout: {timeout}}}"));
    assert!(a.apply(update(type_url::CLUSTER, vec![good("1s")]), now).rejected.is_empty());
    let bad = encode::<PbCluster>("{name: a, connect_timeout: 0s}");
    let other = encode::<PbCluster>("{name: b}");
    let verdict = a.apply(update(type_url::CLUSTER, vec![bad, other]), now);
    assert_eq!(verdict.rejected.len(), 1);
    assert_eq!(verdict.rejected[0].name, "a");
    assert_eq!(
        verdict.rejected[0].reason,
        "connect_timeout: 0s is not accepted; it must be greater than zero"
    );
    let s = a.store().load();
    assert_eq!(s.clusters["a"].connect_timeout, Duration::from_secs(1));
    assert!(s.clusters.contains_key("b"));
    let record = &a.records(Kind::Cluster).by_name["a"];
    assert_eq!(record.error.as_ref().unwrap().details, verdict.rejected[0].reason);
    assert!(a.apply(update(type_url::CLUSTER, vec![good("2s")]), now).rejected.is_empty());
    assert!(a.records(Kind::Cluster).by_name["a"].error.is_none());
    assert_eq!(a.store().load().clusters["a"].connect_timeout, Duration::from_secs(2));
}

#[test]
fn a_cluster_waits_for_its_endpoints_or_its_fetch_timeout() {
    let mut a = applier(DYNAMIC);
    let now = Instant::now();
    a.apply(update(type_url::CLUSTER, vec![eds_cluster("fast", "5s"), eds_cluster("slow", "0s")]), now);
    assert!(a.store().load().clusters.is_empty());
    assert_eq!(a.needed().endpoints.len(), 2);
    assert_eq!(a.next_deadline(), Some(now + Duration::from_secs(5)));
    assert!(a.settle(now + Duration::from_secs(5)));
    assert!(a.store().load().clusters.contains_key("fast"));
    assert_eq!(a.next_deadline(), None);
    a.apply(update(type_url::ENDPOINT, vec![endpoints("slow"), endpoints("unwanted")]), now);
    let s = a.store().load();
    assert!(s.clusters.contains_key("slow"));
    assert!(s.endpoints.contains_key("slow"));
    assert!(!s.endpoints.contains_key("unwanted"));
}

#[test]
fn a_listener_waits_for_its_routes_and_they_go_with_it() {
    let mut a = applier(DYNAMIC);
    let now = Instant::now();
    a.apply(update(type_url::LISTENER, vec![listener("l", 1, "r")]), now);
    assert_eq!(a.warming(Kind::Listener), [Arc::from("l")]);
    assert!(a.needed().routes.contains("r"));
    a.apply(update(type_url::ROUTE, vec![encode::<RouteConfiguration>("{name: r}")]), now);
    assert!(a.store().load().listeners.contains_key("l"));
    let gone = Update { removed: vec!["l".into()], ..update(type_url::LISTENER, Vec::new()) };
    a.apply(gone, now);
    let s = a.store().load();
    assert!(s.listeners.is_empty() && s.routes.is_empty());
}

#[test]
fn a_listener_on_a_taken_address_is_refused() {
    let mut a = applier(DYNAMIC);
    let now = Instant::now();
    let verdict =
        a.apply(update(type_url::LISTENER, vec![listener("l", 1, "r"), listener("m", 1, "r")]), now);
    assert_eq!(verdict.rejected[0].reason, "has duplicate address '127.0.0.1:1' as existing listener 'l'");
}

#[test]
fn a_complete_update_removes_what_it_does_not_name_but_nothing_static() {
    let mut a = applier(&format!("{{static_resources: {{clusters: [{{name: s}}]}}, {DYNAMIC}}}"));
    let now = Instant::now();
    a.apply(
        update(
            type_url::CLUSTER,
            vec![encode::<PbCluster>("{name: a}"), encode::<PbCluster>("{name: s, connect_timeout: 9s}")],
        ),
        now,
    );
    assert_eq!(a.store().load().clusters["s"].connect_timeout, Duration::from_secs(5));
    a.apply(
        Update { complete: true, ..update(type_url::CLUSTER, vec![encode::<PbCluster>("{name: b}")]) },
        now,
    );
    let s = a.store().load();
    let mut names: Vec<_> = s.clusters.keys().map(|k| &**k).collect();
    names.sort_unstable();
    assert_eq!(names, ["b", "s"]);
}

#[test]
fn the_same_bytes_again_change_nothing() {
    let mut a = applier(DYNAMIC);
    let now = Instant::now();
    a.apply(update(type_url::CLUSTER, vec![encode::<PbCluster>("{name: a}")]), now);
    let before = a.store().load();
    a.apply(update(type_url::CLUSTER, vec![encode::<PbCluster>("{name: a}")]), now);
    assert!(Arc::ptr_eq(&before, &a.store().load()));
}

#[test]
fn an_unknown_cluster_of_a_route_is_refused_where_asked_for() {
    let mut a = applier(DYNAMIC);
    let now = Instant::now();
    a.apply(update(type_url::LISTENER, vec![listener("l", 1, "r")]), now);
    let routes = "{name: r, validate_clusters: true, virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: x}}]}]}";
    let verdict = a.apply(update(type_url::ROUTE, vec![encode::<RouteConfiguration>(routes)]), now);
    assert_eq!(verdict.rejected[0].reason, "virtual_hosts[0].routes[0].route.cluster: unknown cluster 'x'");
    assert!(a.store().load().listeners.is_empty());
}
