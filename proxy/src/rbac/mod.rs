//! Role-based access control: the engine behind the HTTP and the network RBAC filter.
//!
//! `engine` decides, `http` and `network` ask it, count and answer. Follows Envoy's `config.rbac.v3` and the docs
//! configuration/http/http_filters/rbac_filter; Istio's AuthorizationPolicy becomes it.

pub mod engine;
mod http;
mod network;

pub use http::HttpRbac;
pub use network::NetworkRbac;

crate::stats_struct! {
    /// `<prefix>rbac.`
    pub struct RbacStats {
        counter allowed,
        counter denied,
        counter logged,
        counter not_logged,
    }
}

crate::stats_struct! {
    /// `<prefix>rbac.<shadow prefix>`
    pub struct ShadowStats {
        counter shadow_allowed,
        counter shadow_denied,
    }
}

/// Dynamic metadata of a decision: Envoy's `envoy.filters.http.rbac` keys.
fn record(
    info: &mut crate::stream_info::StreamInfo,
    namespace: &str,
    prefix: &str,
    allowed: bool,
    policy: Option<&str>,
    shadow: bool,
) {
    use serde_json::Value;
    let metadata = info.metadata.get_or_insert_default();
    let entry = metadata.entry(namespace).or_insert_with(|| Value::Object(serde_json::Map::new()));
    let Value::Object(map) = entry else { return };
    let kind = if shadow { "shadow" } else { "enforced" };
    if let Some(p) = policy {
        map.insert(format!("{prefix}{kind}_effective_policy_id"), Value::String(p.into()));
    }
    let result = if allowed { "allowed" } else { "denied" };
    map.insert(format!("{prefix}{kind}_engine_result"), Value::String(result.into()));
}
