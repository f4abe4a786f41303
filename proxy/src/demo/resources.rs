//! The configuration of the demo's mesh, in the shape that istiod gives it: names, mutual TLS, subsets, policies.

use std::net::SocketAddr;

/// Where the demo's parts listen.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// The client sidecar's outbound listener.
    pub(super) entry: SocketAddr,
    /// For each workload: the server sidecar's listener, and the workload behind it. Stable ones first; the last is the
    /// canary.
    pub(super) inbound: Vec<(SocketAddr, SocketAddr)>,
}

/// Type, name and YAML of a resource.
pub(super) type Resource = (&'static str, String, String);

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const LISTENER: &str = "envoy.config.listener.v3.Listener";
const ROUTES: &str = "envoy.config.route.v3.RouteConfiguration";
const ENDPOINTS: &str = "envoy.config.endpoint.v3.ClusterLoadAssignment";

const SECRETS: &str = r#"
      tls_certificate_sds_secret_configs:
      - name: default
        sds_config: {api_config_source: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: sds-grpc}}]}, initial_fetch_timeout: 0s, resource_api_version: V3}
      combined_validation_context:
        default_validation_context: {match_subject_alt_names: [MATCH]}
        validation_context_sds_secret_config:
          name: ROOTCA
          sds_config: {api_config_source: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: sds-grpc}}]}, initial_fetch_timeout: 0s, resource_api_version: V3}"#;

/// What the client's sidecar gets.
pub(super) fn client(p: &Places) -> Vec<Resource> {
    let mut all = vec![
        (LISTENER, "outbound".to_owned(), outbound_listener(p.entry)),
        (ROUTES, "9898".to_owned(), ROUTE.to_owned()),
    ];
    let (stable, canary) = p.inbound.split_at(p.inbound.len().saturating_sub(1));
    for (subset, hosts) in [("stable", stable), ("canary", canary)] {
        let name = format!("outbound|9898|{subset}|podinfo.demo.svc.cluster.local");
        all.push((CLUSTER, name.clone(), outbound_cluster(&name, subset)));
        all.push((ENDPOINTS, name.clone(), endpoints(&name, hosts.iter().map(|(sidecar, _)| *sidecar))));
    }
    all
}

/// What the server's sidecar gets.
pub(super) fn server(p: &Places) -> Vec<Resource> {
    let mut all = Vec::new();
    for (i, (sidecar, workload)) in p.inbound.iter().enumerate() {
        let cluster = format!("inbound|{i}||");
        all.push((LISTENER, format!("inbound-{i}"), inbound_listener(i, *sidecar, &cluster)));
        all.push((
            CLUSTER,
            cluster.clone(),
            format!(
                "{{name: \"{cluster}\", type: STATIC, connect_timeout: 1s, load_assignment: {}}}",
                endpoints(&cluster, std::iter::once(*workload))
            ),
        ));
    }
    all
}

fn address(a: SocketAddr) -> String {
    format!("{{socket_address: {{address: \"{}\", port_value: {}}}}}", a.ip(), a.port())
}

fn endpoints(name: &str, hosts: impl Iterator<Item = SocketAddr>) -> String {
    let list: Vec<String> = hosts.map(|h| format!("{{endpoint: {{address: {}}}}}", address(h))).collect();
    format!("{{cluster_name: \"{name}\", endpoints: [{{lb_endpoints: [{}]}}]}}", list.join(", "))
}

const HTTP_FILTERS: &str = r#"
        http_filters:
        - name: envoy.filters.http.router
          typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}"#;

fn outbound_listener(at: SocketAddr) -> String {
    format!(
        r#"
name: outbound
address: {}
traffic_direction: OUTBOUND
filter_chains:
- filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: outbound_9898
        rds: {{route_config_name: "9898", config_source: {{ads: {{}}, initial_fetch_timeout: 0s, resource_api_version: V3}}}}
        use_remote_address: false{HTTP_FILTERS}
"#,
        address(at)
    )
}

const ROUTE: &str = r#"
name: "9898"
validate_clusters: false
virtual_hosts:
- name: podinfo.demo.svc.cluster.local:9898
  domains: ["*"]
  include_request_attempt_count: true
  routes:
  - name: canary-by-header
    match: {prefix: /, headers: [{name: x-canary, string_match: {exact: "true"}}]}
    route: {cluster: "outbound|9898|canary|podinfo.demo.svc.cluster.local"}
  - name: split
    match: {prefix: /}
    route:
      weighted_clusters:
        clusters:
        - {name: "outbound|9898|stable|podinfo.demo.svc.cluster.local", weight: 90}
        - {name: "outbound|9898|canary|podinfo.demo.svc.cluster.local", weight: 10}
      timeout: 10s
      retry_policy:
        retry_on: 5xx,connect-failure,reset
        num_retries: 3
        per_try_timeout: 2s
        host_selection_retry_max_attempts: 5
        retry_host_predicate:
        - name: envoy.retry_host_predicates.previous_hosts
          typed_config: {"@type": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}
"#;

fn outbound_cluster(name: &str, subset: &str) -> String {
    let secrets = SECRETS.replace("MATCH", "{exact: \"spiffe://cluster.local/ns/demo/sa/podinfo\"}");
    format!(
        r#"
name: "{name}"
type: EDS
eds_cluster_config: {{eds_config: {{ads: {{}}, initial_fetch_timeout: 0s, resource_api_version: V3}}, service_name: "{name}"}}
connect_timeout: 1s
lb_policy: ROUND_ROBIN
circuit_breakers: {{thresholds: [{{max_connections: 100, max_pending_requests: 50, max_requests: 100, max_retries: 30}}]}}
outlier_detection: {{consecutive_5xx: 5, interval: 1s, base_ejection_time: 30s, max_ejection_percent: 50, enforcing_success_rate: 0}}
transport_socket:
  name: envoy.transport_sockets.tls
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
    sni: outbound_.9898_.{subset}_.podinfo.demo.svc.cluster.local
    common_tls_context:
      tls_params: {{tls_minimum_protocol_version: TLSv1_2, tls_maximum_protocol_version: TLSv1_3}}
      alpn_protocols: [istio]{secrets}
"#
    )
}

fn inbound_listener(i: usize, at: SocketAddr, cluster: &str) -> String {
    let secrets = SECRETS.replace("MATCH", "{prefix: \"spiffe://cluster.local/\"}");
    format!(
        r#"
name: inbound-{i}
address: {}
traffic_direction: INBOUND
filter_chains:
- filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: inbound_{i}
        forward_client_cert_details: APPEND_FORWARD
        set_current_client_cert_details: {{subject: true, dns: true, uri: true}}
        route_config:
          name: "{cluster}"
          virtual_hosts:
          - name: "inbound|http|9898"
            domains: ["*"]
            routes: [{{name: default, match: {{prefix: /}}, route: {{cluster: "{cluster}", timeout: 0s}}}}]{HTTP_FILTERS}
  transport_socket:
    name: envoy.transport_sockets.tls
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
      require_client_certificate: true
      common_tls_context:
        tls_params: {{tls_minimum_protocol_version: TLSv1_2, tls_maximum_protocol_version: TLSv1_3}}
        alpn_protocols: [istio, http/1.1]{}
"#,
        address(at),
        secrets.replace("\n      ", "\n        ")
    )
}

/// The bootstrap of a sidecar: all but the control plane's address comes from the control plane.
pub(super) fn bootstrap(id: &str, admin: SocketAddr) -> String {
    format!(
        r#"
node: {{id: {id}, cluster: demo}}
admin: {{address: {}}}
dynamic_resources:
  ads_config: {{api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: xds-grpc}}}}]}}
  cds_config: {{ads: {{}}, initial_fetch_timeout: 0s, resource_api_version: V3}}
  lds_config: {{ads: {{}}, initial_fetch_timeout: 0s, resource_api_version: V3}}
static_resources:
  clusters:
  - name: xds-grpc
    type: STATIC
    connect_timeout: 1s
  - name: sds-grpc
    type: STATIC
    connect_timeout: 1s
"#,
        address(admin)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_resource_is_what_its_type_says() {
        let a: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let places = Places { entry: a, inbound: vec![(a, a), (a, a)] };
        let schema = outrigger_xds::json::Schema::load();
        for (kind, name, yaml) in client(&places).into_iter().chain(server(&places)) {
            let value = outrigger_xds::json::yaml_to_json(&yaml).unwrap_or_else(|e| panic!("{name}: {e}"));
            schema.encode(kind, &value).unwrap_or_else(|e| panic!("{kind} {name}: {e}"));
        }
    }
}
