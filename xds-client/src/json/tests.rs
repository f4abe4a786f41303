use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::google::protobuf::Any;
use serde_json::json;

use super::*;

const CLUSTER: &str = r"
name: web
connect_timeout: 1.500s
type: STRICT_DNS
lb_policy: LEAST_REQUEST
per_connection_buffer_limit_bytes: 32768
load_assignment:
  cluster_name: web
  endpoints:
  - lb_endpoints:
    - endpoint:
        address: {socket_address: {address: web.local, port_value: 80}}
      load_balancing_weight: 3
    locality: {zone: a}
metadata:
  filter_metadata:
    istio: {services: [{host: web}], port: 80, ratio: 0.5, none: null}
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: {http2_protocol_options: {max_concurrent_streams: 100}}
";

fn reason<T: std::fmt::Debug>(result: Result<T, JsonError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn yaml_round_trips_through_protobuf() {
    let schema = Schema::load();
    let cluster: Cluster = schema.parse_yaml(CLUSTER).unwrap();
    let timeout = cluster.connect_timeout.as_ref().unwrap();
    assert_eq!((timeout.seconds, timeout.nanos), (1, 500_000_000));
    assert_eq!(schema.message_to_json(&cluster).unwrap(), yaml_to_json(CLUSTER).unwrap());
}

#[test]
fn camel_case_names_and_string_numbers_are_read_too() {
    let schema = Schema::load();
    let text = r#"{"name": "a", "connectTimeout": "0.25s", "lbPolicy": "ROUND_ROBIN", "perConnectionBufferLimitBytes": "7"}"#;
    let cluster: Cluster = schema.parse_json(text).unwrap();
    assert_eq!(cluster.per_connection_buffer_limit_bytes.unwrap().value, 7);
    assert_eq!(cluster.connect_timeout.unwrap().nanos, 250_000_000);
}

#[test]
fn errors_name_the_path() {
    let schema = Schema::load();
    let cases = [
        (
            "static_resources: {clusters: [{name: a}, {name: b, lb_polcy: X}]}",
            "static_resources.clusters[1].lb_polcy: no such field in message envoy.config.cluster.v3.Cluster",
        ),
        (
            "static_resources: {clusters: [{name: 3}]}",
            "static_resources.clusters[0].name: expected a string, found 3",
        ),
        (
            "static_resources: {clusters: [{lb_policy: BEST}]}",
            "static_resources.clusters[0].lb_policy: `BEST` is not a value of envoy.config.cluster.v3.Cluster.LbPolicy: \
             expected one of ROUND_ROBIN, LEAST_REQUEST, RING_HASH, RANDOM, MAGLEV, CLUSTER_PROVIDED, LOAD_BALANCING_POLICY_CONFIG",
        ),
        (
            "static_resources: {clusters: [{connect_timeout: soon}]}",
            "static_resources.clusters[0].connect_timeout: expected a duration such as \"1.5s\", found \"soon\"",
        ),
        (
            "static_resources: {listeners: [{filter_chains: [{filters: [{name: x, typed_config: {'@type': \
             type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefx: y}}]}]}]}",
            "static_resources.listeners[0].filter_chains[0].filters[0].typed_config.stat_prefx: no such field in message \
             envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        ),
        (
            "static_resources: {listeners: [{filter_chains: [{filters: [{typed_config: {'@type': a/b.C}}]}]}]}",
            "static_resources.listeners[0].filter_chains[0].filters[0].typed_config.@type: unknown message type `b.C`",
        ),
        (
            "static_resources: {clusters: [{load_assignment: {endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: \
             {port_value: 70000000000}}}}]}]}}]}",
            "static_resources.clusters[0].load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value: \
             expected an unsigned 32-bit integer, found 70000000000",
        ),
        (
            "static_resources: {clusters: [{type: EDS, cluster_type: {name: x}}]}",
            "static_resources.clusters[0].cluster_type: excludes `type`: only one of cluster_discovery_type may be set",
        ),
        ("static_resources: []", "static_resources: expected an object"),
        ("[]", "(root): expected an object (envoy.config.bootstrap.v3.Bootstrap), found an array"),
    ];
    for (yaml, expected) in cases {
        let text = reason(schema.parse_yaml::<Bootstrap>(yaml));
        assert!(text.starts_with(expected), "{yaml}\n got: {text}\nwant: {expected}");
    }
}

#[test]
fn malformed_text_is_refused_with_its_place() {
    let schema = Schema::load();
    assert!(reason(schema.parse_yaml::<Bootstrap>("a: [")).starts_with("malformed YAML: "));
    assert!(reason(schema.parse_json::<Bootstrap>("{\"node\": }")).contains("line 1 column"));
    let deep = format!("{}1{}", "{\"a\":".repeat(50), "}".repeat(50));
    assert!(schema.parse_json::<Bootstrap>(&deep).is_err());
}

#[test]
fn deep_nesting_is_refused_rather_than_overflowing() {
    let schema = Schema::load();
    let mut value = json!({"any": true});
    for _ in 0..200 {
        value = json!({"and_rules": {"rules": [value]}});
    }
    let error = schema.encode("envoy.config.rbac.v3.Permission", &value).unwrap_err();
    assert!(error.to_string().ends_with("nested too deep"), "{error}");
}

#[test]
fn typed_struct_is_kept_as_it_is() {
    let schema = Schema::load();
    for type_url in TypedStruct::TYPE_URLS {
        let value = json!({
            "@type": type_url,
            "type_url": "type.googleapis.com/io.istio.http.peer_metadata.Config",
            "value": {"upstream_discovery": [{"istio_headers": {}}]},
        });
        let bytes = schema.encode("google.protobuf.Any", &value).unwrap();
        assert_eq!(schema.to_json("google.protobuf.Any", &bytes).unwrap(), value);
        let any = <Any as Message>::decode(bytes.as_slice()).unwrap();
        let typed = TypedStruct::from_any(&any).unwrap().unwrap();
        assert_eq!(typed.message_name(), "io.istio.http.peer_metadata.Config");
        assert_eq!(typed.value, json!({"upstream_discovery": [{"istio_headers": {}}]}));
    }
    assert_eq!(TypedStruct::from_any(&Any::default()).unwrap(), None);
}

#[test]
fn any_of_unknown_type_becomes_base64() {
    let schema = Schema::load();
    let any = schema.any_to_json("type.googleapis.com/not.Known", b"\x0a\x01a");
    assert_eq!(any, json!({"@type": "type.googleapis.com/not.Known", "value": "CgFh"}));
    let broken = schema.any_to_json("type.googleapis.com/envoy.config.cluster.v3.Cluster", b"\xff\xff");
    assert_eq!(broken["value"], "//8=");
}

#[test]
fn well_known_types_inside_any_have_a_value() {
    let schema = Schema::load();
    let value = json!({"@type": "type.googleapis.com/google.protobuf.Duration", "value": "2s"});
    let bytes = schema.encode("google.protobuf.Any", &value).unwrap();
    assert_eq!(schema.to_json("google.protobuf.Any", &bytes).unwrap(), value);
}

#[test]
fn unknown_fields_are_told_with_their_path() {
    let schema = Schema::load();
    let mut cluster: Cluster = schema.parse_yaml(CLUSTER).unwrap();
    let options = cluster.typed_extension_protocol_options.values_mut().next().unwrap();
    // Field 5000, a varint.
    options.value.extend([0xc0, 0xb8, 0x02, 0x01]);
    let bytes = Message::encode_to_vec(&cluster);
    assert_eq!(
        schema.unknown_fields("envoy.config.cluster.v3.Cluster", &bytes).unwrap(),
        ["typed_extension_protocol_options.envoy.extensions.upstreams.http.v3.HttpProtocolOptions.#5000"]
    );
}

#[test]
fn merge_keys_and_scalar_keys_of_yaml_are_applied() {
    let value = yaml_to_json("base: &b {x: 1}\nderived: {<<: *b, y: 2}\n1: one\ntrue: yes\n").unwrap();
    assert_eq!(value["derived"], json!({"x": 1, "y": 2}));
    assert_eq!(value["1"], "one");
    assert_eq!(value["true"], "yes");
}

#[test]
fn any_in_any_without_end_does_not_overflow() {
    let schema = Schema::load();
    let mut any = Any::default();
    for _ in 0..5000 {
        any = Any {
            type_url: "type.googleapis.com/google.protobuf.Any".to_owned(),
            value: any.encode_to_vec(),
        };
    }
    let value = schema.message_to_json(&any).unwrap();
    assert!(value["value"]["value"].is_object());
    assert!(schema.unknown_fields("google.protobuf.Any", &any.encode_to_vec()).unwrap().is_empty());
    assert!(value.to_string().len() > 100_000, "the rest is kept as base64");
}

#[test]
fn arbitrary_bytes_are_an_error_or_a_value() {
    let schema = Schema::load();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for length in 0..400 {
        let bytes: Vec<u8> = (0..length)
            .map(|_| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                seed.to_le_bytes()[3]
            })
            .collect();
        let _ = schema.to_json("envoy.config.listener.v3.Listener", &bytes);
        let _ = schema.any_to_json("type.googleapis.com/envoy.config.cluster.v3.Cluster", &bytes);
        if let Ok(text) = std::str::from_utf8(&bytes) {
            assert!(schema.parse_yaml::<Bootstrap>(text).is_err() || text.trim().is_empty());
        }
    }
}
