use serde_json::json;

use super::*;
use crate::json::Schema;

/// Reads `value` by the descriptor, decodes the bytes by the Rust type, and prints them by the descriptor again.
fn through_both<M: Message + Default + Name>(value: &Value) -> M {
    let schema = Schema::load();
    let message: M = schema.parse_value(value).unwrap();
    assert_eq!(&schema.message_to_json(&message).unwrap(), value, "{}", M::full_name());
    assert!(schema.unknown_fields(&M::full_name(), &message.encode_to_vec()).unwrap().is_empty());
    message
}

#[test]
fn descriptors_and_types_agree() {
    let alpn: AlpnFilterConfig = through_both(&json!({"alpn_override": [
        {"alpn_override": ["istio-http/1.0", "istio"]},
        {"upstream_protocol": "HTTP2", "alpn_override": ["istio-h2", "istio", "h2"]},
    ]}));
    assert_eq!(alpn.alpn_override[1].upstream_protocol(), AlpnProtocol::Http2);
    assert_eq!(alpn.alpn_override[1].alpn_override, ["istio-h2", "istio", "h2"]);

    let exchange: MetadataExchange = through_both(
        &json!({"protocol": "istio-peer-exchange", "enable_discovery": true, "additional_labels": ["role"]}),
    );
    assert!(exchange.enable_discovery);

    let stats: StatsConfig = through_both(&json!({
        "disable_host_header_fallback": true,
        "tcp_reporting_duration": "15s",
        "metrics": [{"dimensions": {"a": "1", "b": "request.path"}, "name": "requests_total",
                     "tags_to_remove": ["x"], "drop": true}],
        "definitions": [{"name": "n", "value": "1", "type": "HISTOGRAM"}],
        "reporter": "SERVER_GATEWAY",
        "rotation_interval": "3600s",
        "graceful_deletion_interval": "300s",
    }));
    assert_eq!(stats.metrics[0].dimensions["b"], "request.path");
    assert_eq!(stats.definitions[0].r#type(), StatsMetricType::Histogram);
    assert_eq!(stats.rotation_interval.unwrap().seconds, 3600);

    let names: NameTable = through_both(&json!({"table": {"web.demo.svc.cluster.local": {
        "ips": ["10.0.0.1"], "registry": "Kubernetes", "shortname": "web", "namespace": "demo"}}}));
    assert_eq!(names.table["web.demo.svc.cluster.local"].ips, ["10.0.0.1"]);

    let address: Address = through_both(&json!({"workload": {
        "name": "web-1", "namespace": "demo", "addresses": ["CgAAAQ=="], "trust_domain": "cluster.local",
        "service_account": "web", "canonical_name": "web", "canonical_revision": "v1", "workload_type": "POD",
        "workload_name": "web", "cluster_id": "Kubernetes", "uid": "Kubernetes//Pod/demo/web-1"}}));
    let Some(AddressKind::Workload(workload)) = address.r#type else { panic!("a workload") };
    assert_eq!(workload.addresses, [vec![10, 0, 0, 1]]);
    assert_eq!(workload.workload_type(), WorkloadType::Pod);
}

#[test]
fn peer_metadata_reads_alike_from_struct_and_from_protobuf() {
    let value = json!({
        "upstream_discovery": [{"istio_headers": {}}, {"workload_discovery": {}}],
        "upstream_propagation": [{"istio_headers": {"skip_external_clusters": true}}],
        "additional_labels": ["role"],
    });
    let from_protobuf: PeerMetadataConfig = through_both(&value);
    let from_struct: PeerMetadataConfig = from_json(&value).unwrap();
    assert_eq!(from_struct, from_protobuf);
    assert!(from_struct.upstream_propagation[0].istio_headers.as_ref().unwrap().skip_external_clusters);
}

#[test]
fn unknown_field_of_a_struct_is_named() {
    let error = from_json::<MetadataExchange>(&json!({"protocol": "x", "protocl": 1})).unwrap_err();
    assert!(error.contains("MetadataExchange") && error.contains("protocl"), "{error}");
}
