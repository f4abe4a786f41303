//! The node: who this proxy is to istiod, which decides from it what to send. Istio's `model.NodeMetadata`.

use serde_json::{Map, Value, json};

use super::environment::Environment;

/// The release of Istio whose proxy this one takes the place of: istiod sends what that one understands.
pub const ISTIO_VERSION: &str = "1.31.0";
/// What the injected pods of Istio serve on.
const PROMETHEUS_PORT: u16 = 15090;
const READINESS_PORT: u16 = 15021;

/// `Node` of the bootstrap, in protobuf's JSON. `role` is `sidecar` or `router`.
#[must_use]
pub fn node(environment: &Environment, role: &str) -> Value {
    json!({
        "id": format!("{role}~{}~{}.{}~{}", environment.ip, environment.pod, environment.namespace, environment.domain),
        "cluster": cluster(environment),
        "metadata": metadata(environment),
    })
}

/// The service that the pod seems to be part of: its label `app`, else its workload.
fn cluster(environment: &Environment) -> String {
    let service = ["service.istio.io/canonical-name", "app"]
        .iter()
        .rev()
        .find_map(|label| environment.labels.get(*label));
    let workload = environment.metadata.get("WORKLOAD_NAME").and_then(Value::as_str);
    match service.map(String::as_str).or(workload) {
        Some(service) => format!("{service}.{}", environment.namespace),
        None => environment.proxy_config.service_cluster.clone(),
    }
}

fn metadata(environment: &Environment) -> Map<String, Value> {
    let mut metadata = environment.metadata.clone();
    let discovery = &environment.proxy_config.discovery_address;
    let pilot = discovery.rsplit_once(':').map_or(discovery.as_str(), |(host, _)| host);
    let own = json!({
        "NAME": environment.pod,
        "NAMESPACE": environment.namespace,
        "SERVICE_ACCOUNT": environment.service_account,
        "INSTANCE_IPS": environment.ip.to_string(),
        "CLUSTER_ID": environment.cluster_id,
        "ISTIO_VERSION": ISTIO_VERSION,
        "LABELS": environment.labels,
        "ANNOTATIONS": environment.annotations,
        "PROXY_CONFIG": environment.proxy_config.to_json(environment.concurrency()),
        "PILOT_SAN": [pilot],
        "ENVOY_STATUS_PORT": READINESS_PORT,
        "ENVOY_PROMETHEUS_PORT": PROMETHEUS_PORT,
        "METADATA_DISCOVERY": "false",
    });
    if let Value::Object(own) = own {
        metadata.extend(own);
    }
    metadata
}
