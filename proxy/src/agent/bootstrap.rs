//! The bootstrap that the sidecar runs with: Istio's, less what one process does not need (the sockets between Envoy and its
//! agent). Admin on 15000, metrics on 15090, readiness on 15021, all else by delta ADS.

use serde_json::{Value, json};

use super::environment::Environment;
use super::node::node;

/// What of Envoy's stats Istio shows unless asked for more.
const STATS_PREFIXES: [&str; 8] = [
    "reporter=",
    "cluster_manager",
    "listener_manager",
    "server",
    "cluster.xds-grpc",
    "wasm",
    "component",
    "istio",
];
const STATS_SUFFIXES: [&str; 4] = ["rbac.allowed", "rbac.denied", "shadow_allowed", "shadow_denied"];
/// Tags and the part of a stat's name that each takes out, as Istio's bootstrap has them.
const TAGS: [(&str, &str); 13] = [
    ("cluster_name", r"^cluster(\.(.+);)"),
    ("http_conn_manager_prefix", r"^http\.(((?:[_.[:digit:]\w]*|[_\[\]aAbBcCdDeEfF[:digit:]\w\:]*));\.)"),
    ("tcp_prefix", r"^tcp\.((.*?)\.)\w+?$"),
    ("response_code", r"_rq(_(\d{3}))$"),
    ("response_code_class", r"_rq(_(\dxx))$"),
    (
        "http_conn_manager_listener_prefix",
        r"^listener\..*?\.http\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)",
    ),
    ("listener_address", r"^listener\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)"),
    ("cache", r"(cache\.(.+?)\.)"),
    ("component", r"(component\.(.+?)\.)"),
    ("tag", r"(tag\.(.+?);\.)"),
    ("authz_enforce_result", r"rbac(\.(allowed|denied))"),
    ("authz_dry_run_action", r"(\.istio_dry_run_(allow|deny)_)"),
    ("authz_dry_run_result", r"(\.shadow_(allowed|denied))"),
];

/// `envoy.config.bootstrap.v3.Bootstrap` in protobuf's JSON.
#[must_use]
pub fn bootstrap(environment: &Environment, role: &str) -> Value {
    let config = &environment.proxy_config;
    let ads = json!({"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"});
    json!({
        "node": node(environment, role),
        "stats_config": {
            "use_all_default_tags": false,
            "stats_tags": TAGS.map(|(name, regex)| json!({"tag_name": name, "regex": regex})),
            "stats_matcher": {"inclusion_list": {"patterns": stats_patterns(environment)}},
        },
        "admin": {"address": address("127.0.0.1", config.proxy_admin_port)},
        "dynamic_resources": {
            "lds_config": ads,
            "cds_config": ads,
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "set_node_on_first_message_only": true,
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
            },
        },
        "static_resources": {
            "clusters": [
                local_cluster("prometheus_stats", config.proxy_admin_port),
                local_cluster("agent", config.status_port),
                // Named by ads_config. The stream itself is the agent's: its TLS and token are not of the data path.
                local_cluster("xds-grpc", config.status_port),
            ],
            "listeners": [
                relay("0.0.0.0_15090", 15090, "stats", "/stats/prometheus", "prometheus_stats"),
                relay("0.0.0.0_15021", 15021, "agent", "/healthz/ready", "agent"),
            ],
        },
    })
}

fn stats_patterns(environment: &Environment) -> Vec<Value> {
    let wanted = &environment.proxy_config.proxy_stats_matcher;
    // The annotations are older than ProxyConfig's field and still documented.
    let annotated = |kind: &str| {
        let value = environment.annotations.get(&format!("sidecar.istio.io/statsInclusion{kind}"));
        value.into_iter().flat_map(|list| list.split(',')).map(str::to_owned).collect::<Vec<_>>()
    };
    let owned = |list: &[&str]| list.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
    let mut patterns = Vec::new();
    for prefix in [owned(&STATS_PREFIXES), wanted.inclusion_prefixes.clone(), annotated("Prefixes")].concat()
    {
        patterns.push(json!({"prefix": prefix}));
    }
    for suffix in [owned(&STATS_SUFFIXES), wanted.inclusion_suffixes.clone(), annotated("Suffixes")].concat()
    {
        patterns.push(json!({"suffix": suffix}));
    }
    let routes = vec![r"vhost\..*\.route\..*".to_owned()];
    for regex in [routes, wanted.inclusion_regexps.clone(), annotated("Regexps")].concat() {
        patterns.push(json!({"safe_regex": {"regex": regex}}));
    }
    patterns
}

fn address(host: &str, port: u16) -> Value {
    json!({"socket_address": {"address": host, "port_value": port}})
}

fn local_cluster(name: &str, port: u16) -> Value {
    let endpoint = json!({"endpoint": {"address": address("127.0.0.1", port)}});
    json!({
        "name": name,
        "alt_stat_name": format!("{name};"),
        "type": "STATIC",
        "connect_timeout": "0.250s",
        "lb_policy": "ROUND_ROBIN",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    })
}

/// A listener that hands one path to a local page.
fn relay(name: &str, port: u16, prefix: &str, path: &str, cluster: &str) -> Value {
    let filter = |name: &str, kind: &str| json!({"name": name, "typed_config": {"@type": format!("type.googleapis.com/{kind}")}});
    let mut manager = filter(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    );
    let routes = json!([{"match": {"prefix": path}, "route": {"cluster": cluster}}]);
    let router = filter("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router");
    manager["typed_config"]["codec_type"] = "AUTO".into();
    manager["typed_config"]["stat_prefix"] = prefix.into();
    manager["typed_config"]["route_config"] =
        json!({"virtual_hosts": [{"name": "backend", "domains": ["*"], "routes": routes}]});
    manager["typed_config"]["http_filters"] = json!([router]);
    json!({"name": name, "address": address("0.0.0.0", port), "filter_chains": [{"filters": [manager]}]})
}
