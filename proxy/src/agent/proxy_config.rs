//! PROXY_CONFIG: `istio.mesh.v1alpha1.ProxyConfig`, the mesh's default merged with the pod's annotation by istiod.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::environment::{EnvironmentError, go_duration, proto_duration};

/// What the agent acts on. The message as it came is kept for the node's metadata, which istiod reads.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyConfig {
    pub discovery_address: String,
    pub concurrency: Option<usize>,
    #[serde(deserialize_with = "proto_duration")]
    pub drain_duration: Option<Duration>,
    #[serde(deserialize_with = "proto_duration")]
    pub termination_drain_duration: Option<Duration>,
    pub status_port: u16,
    pub proxy_admin_port: u16,
    pub proxy_metadata: BTreeMap<String, String>,
    pub proxy_stats_matcher: StatsMatcher,
    pub extra_stat_tags: Vec<String>,
    pub service_cluster: String,
    /// Everything else.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// Stats beside the ones Istio shows anyway.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatsMatcher {
    pub inclusion_prefixes: Vec<String>,
    pub inclusion_suffixes: Vec<String>,
    pub inclusion_regexps: Vec<String>,
}

/// Fields that ask for nothing here: paths of programs that do not exist, or what istiod itself acts on.
const HARMLESS: [&str; 13] = [
    "binaryPath",
    "configPath",
    "controlPlaneAuthPolicy",
    "statNameLength",
    "proxyBootstrapTemplatePath",
    "interceptionMode",
    "holdApplicationUntilProxyStarts",
    "image",
    "tracing",
    "tracingServiceName",
    "availabilityZone",
    "proxyHeaders",
    "meshId",
];

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            discovery_address: "istiod.istio-system.svc:15012".to_owned(),
            concurrency: None,
            drain_duration: None,
            termination_drain_duration: None,
            status_port: 15020,
            proxy_admin_port: 15000,
            proxy_metadata: BTreeMap::new(),
            proxy_stats_matcher: StatsMatcher::default(),
            extra_stat_tags: Vec::new(),
            service_cluster: "istio-proxy".to_owned(),
            others: Map::new(),
        }
    }
}

impl ProxyConfig {
    /// YAML or JSON.
    ///
    /// # Errors
    /// When it is not the message.
    pub fn parse(text: &str) -> Result<Self, EnvironmentError> {
        let config: Self = serde_yaml_ng::from_str(text)
            .map_err(|error| EnvironmentError::ProxyConfig(error.to_string()))?;
        Ok(config)
    }

    /// Fields that are set and that nothing here acts on: to be named in the log.
    pub fn without_effect(&self) -> impl Iterator<Item = &str> {
        self.others.keys().map(String::as_str).filter(|name| !HARMLESS.contains(name))
    }

    /// Istio's default.
    #[must_use]
    pub fn drain_duration(&self) -> Duration {
        self.drain_duration.unwrap_or(Duration::from_secs(45))
    }

    /// The annotation's, else TERMINATION_DRAIN_DURATION_SECONDS of proxyMetadata, else Istio's default.
    #[must_use]
    pub fn termination_drain(&self) -> Duration {
        let seconds = self.proxy_metadata.get("TERMINATION_DRAIN_DURATION_SECONDS");
        let told = seconds.and_then(|seconds| go_duration(&format!("{seconds}s")));
        self.termination_drain_duration.or(told).unwrap_or(Duration::from_secs(5))
    }

    /// The effective configuration for the node's metadata, with the defaults that istiod looks at.
    #[must_use]
    pub fn to_json(&self, concurrency: usize) -> Value {
        let mut json = self.others.clone();
        let seconds = |duration: Duration| Value::String(format!("{}s", duration.as_secs_f64()));
        json.insert("discoveryAddress".into(), self.discovery_address.clone().into());
        json.insert("concurrency".into(), concurrency.into());
        json.insert("drainDuration".into(), seconds(self.drain_duration()));
        json.insert("terminationDrainDuration".into(), seconds(self.termination_drain()));
        json.insert("statusPort".into(), self.status_port.into());
        json.insert("proxyAdminPort".into(), self.proxy_admin_port.into());
        json.insert("serviceCluster".into(), self.service_cluster.clone().into());
        if !self.proxy_metadata.is_empty() {
            json.insert("proxyMetadata".into(), serde_json::json!(self.proxy_metadata));
        }
        let matcher = &self.proxy_stats_matcher;
        let mut wanted = Map::new();
        for (name, list) in [
            ("inclusionPrefixes", &matcher.inclusion_prefixes),
            ("inclusionSuffixes", &matcher.inclusion_suffixes),
            ("inclusionRegexps", &matcher.inclusion_regexps),
        ] {
            if !list.is_empty() {
                wanted.insert(name.into(), serde_json::json!(list));
            }
        }
        if !wanted.is_empty() {
            json.insert("proxyStatsMatcher".into(), Value::Object(wanted));
        }
        Value::Object(json)
    }
}
