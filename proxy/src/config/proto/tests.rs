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

fn cluster_error(yaml: &str) -> String {
    cluster::cluster(&Env::default(), parse(yaml)).unwrap_err().to_string()
}

fn route_error(yaml: &str) -> String {
    route::route_config(&Env::default(), parse(yaml)).unwrap_err().to_string()
}

#[test]
fn what_is_refused_names_resource_field_and_value() {
    assert_eq!(
        cluster_error("{name: a, connection_pool_per_downstream_connection: true}"),
        "cluster 'a': connection_pool_per_downstream_connection: true is not served; false is accepted"
    );
    assert_eq!(
        cluster_error("{name: a, outlier_detection: {max_ejection_percent: 101}}"),
        "cluster 'a': outlier_detection.max_ejection_percent: 101 is not a percentage; 0 to 100 is accepted"
    );
    assert_eq!(
        cluster_error(
            "{name: a, load_assignment: {cluster_name: a, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: host, port_value: 1}}}}]}]}}"
        ),
        "cluster 'a': load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address: \"host\" is not an IP \
         address; a host name needs a STRICT_DNS or LOGICAL_DNS cluster"
    );
    assert_eq!(
        cluster_error("{name: a, maglev_lb_config: {table_size: 4}, lb_policy: MAGLEV}"),
        "cluster 'a': maglev_lb_config.table_size: 4 is not accepted; a prime up to 5000011 is"
    );
    let lua = "{name: l, address: {socket_address: {address: 127.0.0.1, port_value: 1}}, filter_chains: [{filters: [{name: hcm, typed_config: {'@type': \
        type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: s, route_config: {}, \
        http_filters: [{name: x, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua}}]}}]}]}";
    let e = listener::listener(&Env::default(), parse(lua)).unwrap_err();
    assert_eq!(e.path, "filter_chains[0].filters[0].typed_config.http_filters[0].typed_config");
    assert!(
        e.reason.starts_with(
            "HTTP filter 'x' of type 'envoy.extensions.filters.http.lua.v3.Lua' is not served; accepted: "
        ),
        "{e}"
    );
}

#[test]
fn a_domain_may_stand_once_in_a_route_configuration() {
    assert_eq!(
        route_error("{name: r, virtual_hosts: [{name: a, domains: [X.com]}, {name: b, domains: [x.com]}]}"),
        "route configuration 'r': virtual_hosts[1].domains[0]: duplicate entry of domain x.com; only unique values for domains are permitted"
    );
    assert!(
        route_error("{name: r, virtual_hosts: [{name: a, domains: ['*', '*']}]}")
            .contains("only a single wildcard domain")
    );
    let config = route::route_config(
        &Env::default(),
        parse("{name: r, virtual_hosts: [{name: a, domains: [x.com, '*.y.com', 'z.*', '*']}]}"),
    )
    .unwrap();
    let d = &config.domains;
    assert!(d.exact.contains_key("x.com") && d.any == Some(0));
    assert_eq!((d.suffix[0].0, d.prefix[0].0), (6, 2));
}

#[test]
fn a_bad_regex_tells_why() {
    let e = route_error(
        "{name: r, virtual_hosts: [{name: a, domains: ['*'], routes: [{match: {safe_regex: {regex: '(a'}}, non_forwarding_action: {}}]}]}",
    );
    assert!(
        e.starts_with("route configuration 'r': virtual_hosts[0].routes[0].match.safe_regex.regex: \"(a\": "),
        "{e}"
    );
}

#[test]
fn substitutions_become_the_regex_crates() {
    let m = parse("{pattern: {regex: '^/a/([^/]+)/(.*)$'}, substitution: '\\2/$/\\1'}");
    let env = Env::default();
    let root = Root::new("t", "", &env);
    let r = matcher::rewrite(&root.ctx(), m).unwrap();
    assert_eq!(r.pattern.replace("/a/b/c", &*r.substitution), "c/$/b");
}

#[test]
fn envoys_defaults_are_applied() {
    let (c, _) = cluster::cluster(&Env::default(), parse("{name: a, outlier_detection: {}}")).unwrap();
    assert_eq!(c.connect_timeout.as_secs(), 5);
    assert_eq!(c.per_connection_buffer_limit, 1024 * 1024);
    let o = c.outlier.unwrap();
    assert_eq!(
        (o.consecutive_5xx, o.interval.as_secs(), o.base_ejection.as_secs(), o.max_ejection_percent),
        (5, 10, 30, 10)
    );
    assert_eq!((o.enforcing_gateway, o.enforcing_success_rate), (0, 100));
    let config = route::route_config(
        &Env::default(),
        parse("{virtual_hosts: [{name: a, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: c}}]}]}"),
    )
    .unwrap();
    let crate::config::route::Action::Forward(f) = &config.virtual_hosts[0].routes[0].action else {
        panic!()
    };
    assert_eq!(f.timeout.unwrap().as_secs(), 15);
    assert!(!config.validate_clusters);
}

#[test]
fn formats_are_taken_apart_and_unknown_commands_refused() {
    use crate::config::format::{Command, Part, Simple};
    let f = format::parse_text("a%%b %REQ(X-A?:PATH):10% %PROTOCOL% %START_TIME(%Y/%m)%", false).unwrap();
    assert!(matches!(&f.parts[0], Part::Literal(l) if &**l == "a%b "));
    assert!(
        matches!(&f.parts[1], Part::Command(Command::Req(a, Some(b)), Some(10)) if a.as_str() == "x-a" && b.as_str() == ":path")
    );
    assert!(matches!(&f.parts[3], Part::Command(Command::Simple(Simple::Protocol), None)));
    assert!(matches!(&f.parts[5], Part::Command(Command::Time(_, Some(t)), None) if &**t == "%Y/%m"));
    assert_eq!(format::parse_text("%NOPE%", false).unwrap_err(), "%NOPE% is not a known command");
    assert!(format::parse_text("%REQ(%", false).is_err());
    assert!(format::parse_text("50% of", false).is_err());
}

#[test]
fn a_static_route_to_an_unknown_cluster_is_refused() {
    let yaml = "static_resources: {listeners: [{name: l, address: {socket_address: {address: 127.0.0.1, port_value: 1}}, filter_chains: [{filters: [{name: hcm, \
        typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: s, \
        route_config: {virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: x}}]}]}, \
        http_filters: [{name: r, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]}]}";
    assert_eq!(
        load::bootstrap_from_yaml(yaml).unwrap_err().to_string(),
        "listener 'l': filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0].route.cluster: unknown cluster 'x'"
    );
}

#[test]
fn a_text_is_merged_over_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.yaml");
    std::fs::write(&path, "{node: {id: a, cluster: c}, static_resources: {clusters: [{name: one}]}}")
        .unwrap();
    let source = load::Source {
        path: Some(&path),
        yaml: Some("{node: {id: b}, static_resources: {clusters: [{name: two}]}}"),
        service_zone: "z",
        ..load::Source::default()
    };
    let b = load::bootstrap(&source).unwrap().bootstrap;
    assert_eq!((&*b.node.id, &*b.node.cluster, &*b.node.zone), ("b", "c", "z"));
    assert_eq!(b.clusters.len(), 2);
    let e = load::bootstrap_from_yaml("{static_resources: {clusters: [{nme: x}]}}").unwrap_err().to_string();
    assert!(e.contains("static_resources.clusters[0]") && e.contains("nme"), "{e}");
}
