//! Istio's own messages, which Envoy's API does not have: hand-written, with the field numbers of istio/api (alpn, metadata_exchange,
//! stats), istio/proxy (peer_metadata, authn) and istio/istio (nds.proto, workload.proto). [`descriptors`] describes the same
//! messages for JSON; a test holds the two together.

pub mod descriptors;
mod workload;

use std::collections::HashMap;

use prost::{Message, Name};
use serde::Deserialize;
use serde_json::Value;

pub use self::workload::{Address, AddressKind, Service, Workload, WorkloadType};
use crate::json::TypedStruct;

/// Gives a message its package and name.
macro_rules! named {
    ($($message:ident = $package:literal, $name:literal;)*) => {
        $(impl Name for $message {
            const NAME: &'static str = $name;
            const PACKAGE: &'static str = $package;
            fn full_name() -> String {
                format!("{}.{}", $package, $name)
            }
            fn type_url() -> String {
                format!("type.googleapis.com/{}.{}", $package, $name)
            }
        })*
    };
}
pub(crate) use named;

/// `istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig`: the HTTP filter `istio.alpn`, which puts Istio's protocols
/// into the ALPN of the upstream connection.
#[derive(Clone, PartialEq, Message)]
pub struct AlpnFilterConfig {
    /// One entry for each upstream protocol.
    #[prost(message, repeated, tag = "1")]
    pub alpn_override: Vec<AlpnOverride>,
}

/// The ALPN list for one upstream protocol.
#[derive(Clone, PartialEq, Message)]
pub struct AlpnOverride {
    /// The protocol that the cluster speaks.
    #[prost(enumeration = "AlpnProtocol", tag = "1")]
    pub upstream_protocol: i32,
    /// The protocols to offer instead.
    #[prost(string, repeated, tag = "2")]
    pub alpn_override: Vec<String>,
}

/// `FilterConfig.Protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum AlpnProtocol {
    /// `HTTP10`.
    Http10 = 0,
    /// `HTTP11`.
    Http11 = 1,
    /// `HTTP2`.
    Http2 = 2,
}

/// `envoy.tcp.metadataexchange.config.MetadataExchange`: the network filter that sends the workload's metadata in front of the bytes of
/// a connection with the agreed ALPN.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetadataExchange {
    /// The ALPN protocol under which both ends exchange metadata (`istio-peer-exchange`).
    #[prost(string, tag = "1")]
    pub protocol: String,
    /// Whether an unknown peer is looked up in workload discovery.
    #[prost(bool, tag = "2")]
    #[serde(alias = "enableDiscovery")]
    pub enable_discovery: bool,
    /// Labels put into the metadata beside the standard ones.
    #[prost(string, repeated, tag = "3")]
    #[serde(alias = "additionalLabels")]
    pub additional_labels: Vec<String>,
}

/// `io.istio.http.peer_metadata.Config`: the HTTP filter `istio.peer_metadata`.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PeerMetadataConfig {
    /// How the client's metadata is found; the first success wins.
    #[prost(message, repeated, tag = "1")]
    #[serde(alias = "downstreamDiscovery")]
    pub downstream_discovery: Vec<DiscoveryMethod>,
    /// How the server's metadata is found; the first success wins.
    #[prost(message, repeated, tag = "2")]
    #[serde(alias = "upstreamDiscovery")]
    pub upstream_discovery: Vec<DiscoveryMethod>,
    /// What a response carries to the client.
    #[prost(message, repeated, tag = "3")]
    #[serde(alias = "downstreamPropagation")]
    pub downstream_propagation: Vec<PropagationMethod>,
    /// What a request carries to the server.
    #[prost(message, repeated, tag = "4")]
    #[serde(alias = "upstreamPropagation")]
    pub upstream_propagation: Vec<PropagationMethod>,
    /// Whether the metadata is shared with the internal upstream connection.
    #[prost(bool, tag = "5")]
    #[serde(alias = "sharedWithUpstream")]
    pub shared_with_upstream: bool,
    /// Labels put into the metadata beside the standard ones.
    #[prost(string, repeated, tag = "6")]
    #[serde(alias = "additionalLabels")]
    pub additional_labels: Vec<String>,
}

/// `Config.DiscoveryMethod`: a oneof; at most one field is set.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiscoveryMethod {
    /// The `baggage` header.
    #[prost(message, optional, tag = "1")]
    pub baggage: Option<Baggage>,
    /// Workload discovery by address.
    #[prost(message, optional, tag = "2")]
    #[serde(alias = "workloadDiscovery")]
    pub workload_discovery: Option<WorkloadDiscovery>,
    /// The headers `x-envoy-peer-metadata` and `x-envoy-peer-metadata-id`, which are removed.
    #[prost(message, optional, tag = "3")]
    #[serde(alias = "istioHeaders")]
    pub istio_headers: Option<IstioHeaders>,
}

/// `Config.PropagationMethod`: a oneof; at most one field is set.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PropagationMethod {
    /// The headers `x-envoy-peer-metadata` and `x-envoy-peer-metadata-id`.
    #[prost(message, optional, tag = "1")]
    #[serde(alias = "istioHeaders")]
    pub istio_headers: Option<IstioHeaders>,
    /// The `baggage` header.
    #[prost(message, optional, tag = "2")]
    pub baggage: Option<Baggage>,
}

/// `Config.Baggage`.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Baggage {}

/// `Config.WorkloadDiscovery`.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkloadDiscovery {}

/// `Config.IstioHeaders`.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IstioHeaders {
    /// Whether requests to clusters marked external in the `istio` metadata go without the headers.
    #[prost(bool, tag = "1")]
    #[serde(alias = "skipExternalClusters")]
    pub skip_external_clusters: bool,
}

/// `stats.PluginConfig`: the filter `istio.stats`.
#[derive(Clone, PartialEq, Message)]
pub struct StatsConfig {
    /// Deprecated, without effect.
    #[prost(bool, tag = "1")]
    pub debug: bool,
    /// Deprecated, without effect.
    #[prost(int32, tag = "2")]
    pub max_peer_cache_size: i32,
    /// Deprecated, without effect: names start with `istio_`.
    #[prost(string, tag = "3")]
    pub stat_prefix: String,
    /// Deprecated, without effect.
    #[prost(string, tag = "4")]
    pub field_separator: String,
    /// Deprecated, without effect.
    #[prost(string, tag = "5")]
    pub value_separator: String,
    /// Whether `destination_service` stays unknown rather than taken from the host header.
    #[prost(bool, tag = "6")]
    pub disable_host_header_fallback: bool,
    /// The time between reports of a TCP connection; 15 s if unset.
    #[prost(message, optional, tag = "7")]
    pub tcp_reporting_duration: Option<envoy_types::pb::google::protobuf::Duration>,
    /// Changes to the standard metrics.
    #[prost(message, repeated, tag = "8")]
    pub metrics: Vec<StatsMetric>,
    /// Metrics of the user's own.
    #[prost(message, repeated, tag = "9")]
    pub definitions: Vec<StatsMetricDefinition>,
    /// Sidecar or shared gateway.
    #[prost(enumeration = "StatsReporter", tag = "10")]
    pub reporter: i32,
    /// The time after which unused series are dropped; 0 or unset: never.
    #[prost(message, optional, tag = "11")]
    pub rotation_interval: Option<envoy_types::pb::google::protobuf::Duration>,
    /// How long dropped series are still reported.
    #[prost(message, optional, tag = "12")]
    pub graceful_deletion_interval: Option<envoy_types::pb::google::protobuf::Duration>,
}

/// `stats.MetricConfig`.
#[derive(Clone, PartialEq, Message)]
pub struct StatsMetric {
    /// Tag name to CEL expression.
    #[prost(map = "string, string", tag = "1")]
    pub dimensions: HashMap<String, String>,
    /// The metric that this changes (`requests_total`); empty: all.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Tags to leave out.
    #[prost(string, repeated, tag = "3")]
    pub tags_to_remove: Vec<String>,
    /// Not implemented in istio-proxy.
    #[prost(string, tag = "4")]
    pub r#match: String,
    /// Whether the metric is not reported at all.
    #[prost(bool, tag = "5")]
    pub drop: bool,
}

/// `stats.MetricDefinition`.
#[derive(Clone, PartialEq, Message)]
pub struct StatsMetricDefinition {
    /// The metric's name, without prefix.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The CEL expression of its value.
    #[prost(string, tag = "2")]
    pub value: String,
    /// Counter, gauge or histogram.
    #[prost(enumeration = "StatsMetricType", tag = "3")]
    pub r#type: i32,
}

/// `stats.MetricType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum StatsMetricType {
    /// `COUNTER`.
    Counter = 0,
    /// `GAUGE`.
    Gauge = 1,
    /// `HISTOGRAM`.
    Histogram = 2,
}

/// `stats.Reporter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum StatsReporter {
    /// `UNSPECIFIED`: from the direction of the listener.
    Unspecified = 0,
    /// `SERVER_GATEWAY`: a waypoint.
    ServerGateway = 1,
}

/// `io.istio.network.authn.Config`: the network filter `istio_authn`, which records the peers' principals.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthnConfig {}

/// `istio.networking.nds.v1.NameTable`: what the DNS proxy answers.
#[derive(Clone, PartialEq, Message)]
pub struct NameTable {
    /// Host name to addresses.
    #[prost(map = "string, message", tag = "1")]
    pub table: HashMap<String, NameInfo>,
}

/// `NameTable.NameInfo`.
#[derive(Clone, PartialEq, Message)]
pub struct NameInfo {
    /// Addresses, IPv4 and IPv6.
    #[prost(string, repeated, tag = "1")]
    pub ips: Vec<String>,
    /// `Kubernetes` or `External`: short names exist for the former alone.
    #[prost(string, tag = "2")]
    pub registry: String,
    /// The service's name.
    #[prost(string, tag = "3")]
    pub shortname: String,
    /// The service's namespace.
    #[prost(string, tag = "4")]
    pub namespace: String,
    /// Deprecated.
    #[prost(string, repeated, tag = "5")]
    pub alt_hosts: Vec<String>,
}

named! {
    AlpnFilterConfig = "istio.envoy.config.filter.http.alpn.v2alpha1", "FilterConfig";
    AlpnOverride = "istio.envoy.config.filter.http.alpn.v2alpha1", "FilterConfig.AlpnOverride";
    MetadataExchange = "envoy.tcp.metadataexchange.config", "MetadataExchange";
    PeerMetadataConfig = "io.istio.http.peer_metadata", "Config";
    DiscoveryMethod = "io.istio.http.peer_metadata", "Config.DiscoveryMethod";
    PropagationMethod = "io.istio.http.peer_metadata", "Config.PropagationMethod";
    Baggage = "io.istio.http.peer_metadata", "Config.Baggage";
    WorkloadDiscovery = "io.istio.http.peer_metadata", "Config.WorkloadDiscovery";
    IstioHeaders = "io.istio.http.peer_metadata", "Config.IstioHeaders";
    StatsConfig = "stats", "PluginConfig";
    StatsMetric = "stats", "MetricConfig";
    StatsMetricDefinition = "stats", "MetricDefinition";
    AuthnConfig = "io.istio.network.authn", "Config";
    NameTable = "istio.networking.nds.v1", "NameTable";
    NameInfo = "istio.networking.nds.v1", "NameTable.NameInfo";
}

/// A message of Istio's that istiod sends as a `TypedStruct`, read without descriptors.
///
/// # Errors
/// A field that the message does not have, or a value of the wrong kind; the text names it.
pub fn from_typed_struct<M: for<'de> Deserialize<'de> + Name>(typed: &TypedStruct) -> Result<M, String> {
    from_json(&typed.value)
}

/// [`from_typed_struct`] for the value alone.
///
/// # Errors
/// A field that the message does not have, or a value of the wrong kind; the text names it.
pub fn from_json<M: for<'de> Deserialize<'de> + Name>(value: &Value) -> Result<M, String> {
    M::deserialize(value).map_err(|error| format!("{}: {error}", M::full_name()))
}

#[cfg(test)]
mod tests;
