//! HTTP and network filters' configurations as IR enums. A filter that is not listed is refused by name at conversion.

use std::sync::Arc;
use std::time::Duration;

use super::access_log::AccessLog;
use super::matcher::{Fraction, HeaderMatcher, StringMatcher};
use super::route::{HeaderAdd, HeaderMutations, Metadata};
use crate::head::HeaderName;

/// One HTTP filter of a connection manager, under the name it has there (overrides are found by it).
#[derive(Clone, Debug)]
pub struct HttpFilter {
    pub name: Arc<str>,
    pub config: HttpFilterConfig,
    /// `disabled`: off unless a route switches it on.
    pub disabled: bool,
}

#[derive(Clone, Debug)]
pub enum HttpFilterConfig {
    Router(Router),
    Cors,
    Fault(Arc<Fault>),
    GrpcStats(GrpcStats),
    /// `istio.metadata_exchange` / `io.istio.http.peer_metadata`.
    PeerMetadata(Arc<PeerMetadata>),
    /// `istio.stats`.
    IstioStats(Arc<IstioStats>),
    /// `istio.alpn`: ALPN override by downstream protocol.
    IstioAlpn(Arc<Vec<AlpnOverride>>),
    Rbac(Arc<Rbac>),
    /// Compression of responses on the agent's metrics listener.
    Compressor(Arc<Compressor>),
    HeaderMutation(Arc<HeaderMutations>),
    /// Marks requests as health checks or answers them.
    HealthCheck(Arc<HealthCheck>),
    LocalRateLimit(Arc<LocalRateLimit>),
    /// `envoy.filters.http.set_filter_state`, `set_metadata`: fixed metadata by namespace.
    SetMetadata(Metadata),
}

#[derive(Clone, Debug)]
pub struct Router {
    pub dynamic_stats: bool,
    pub start_child_span: bool,
    /// `suppress_envoy_headers`.
    pub suppress_envoy_headers: bool,
    /// `respect_expected_rq_timeout`.
    pub respect_expected_rq_timeout: bool,
    /// `suppress_grpc_request_failure_code_stats`.
    pub suppress_grpc_failure_stats: bool,
    /// `upstream_log`.
    pub upstream_log: Vec<AccessLog>,
    /// `strict_check_headers`.
    pub strict_check_headers: Vec<HeaderName>,
}

#[derive(Clone, Debug)]
pub struct GrpcStats {
    pub emit_filter_state: bool,
    pub enable_upstream_stats: bool,
    pub stats_for_all_methods: bool,
}

/// `envoy.extensions.filters.http.fault.v3.HTTPFault`.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Fixed delay and its share; the header-controlled form is `header_delay`.
    pub delay: Option<(Duration, Fraction)>,
    pub header_delay: Option<Fraction>,
    pub abort: Option<(FaultAbort, Fraction)>,
    pub header_abort: Option<Fraction>,
    pub upstream_cluster: Option<Arc<str>>,
    pub headers: Vec<HeaderMatcher>,
    pub downstream_nodes: Vec<Arc<str>>,
    pub max_active: Option<u32>,
    /// Bytes per second of responses, in KiB, and its share.
    pub response_rate: Option<(u64, Fraction)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultAbort {
    Http(u16),
    Grpc(u32),
}

/// `envoy.extensions.filters.http.cors.v3.CorsPolicy`.
#[derive(Clone, Debug)]
pub struct CorsPolicy {
    pub allow_origin: Vec<StringMatcher>,
    pub allow_methods: Arc<str>,
    pub allow_headers: Arc<str>,
    pub expose_headers: Arc<str>,
    pub max_age: Arc<str>,
    pub allow_credentials: bool,
    pub allow_private_network: bool,
    pub enabled: Fraction,
    pub shadow_enabled: Option<Fraction>,
    pub forward_not_matching_preflights: bool,
}

/// Istio's peer metadata filter: which exchanges to use, in order.
#[derive(Clone, Debug, Default)]
pub struct PeerMetadata {
    pub downstream_discovery: Vec<PeerMethod>,
    pub upstream_discovery: Vec<PeerMethod>,
    pub downstream_propagation: bool,
    pub upstream_propagation: bool,
    pub shared_with_upstream: bool,
    pub additional_labels: Vec<Arc<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerMethod {
    Baggage,
    WorkloadDiscovery,
    /// `x-envoy-peer-metadata` headers.
    IstioHeaders {
        skip_external_clusters: bool,
    },
}

/// `stats.PluginConfig` of `istio.stats`.
#[derive(Clone, Debug, Default)]
pub struct IstioStats {
    pub disable_host_header_fallback: bool,
    /// `CLIENT`, `SERVER` or gateway reporter, from the filter's place and `reporter`.
    pub server_gateway_reporter: bool,
    pub tcp_reporting_duration: Option<Duration>,
    pub metrics: Vec<MetricOverride>,
    /// Custom metric definitions.
    pub definitions: Vec<MetricDefinition>,
    pub rotation_interval: Option<Duration>,
    pub graceful_deletion_interval: Option<Duration>,
}

#[derive(Clone, Debug)]
pub struct MetricOverride {
    /// Empty: all metrics.
    pub name: Arc<str>,
    /// Tag → CEL expression.
    pub dimensions: Vec<(Arc<str>, Arc<str>)>,
    pub tags_to_remove: Vec<Arc<str>>,
    pub match_expr: Option<Arc<str>>,
    pub drop: bool,
}

#[derive(Clone, Debug)]
pub struct MetricDefinition {
    pub name: Arc<str>,
    pub value: Arc<str>,
    /// 0 counter, 1 gauge, 2 histogram.
    pub kind: u8,
}

#[derive(Clone, Debug)]
pub struct AlpnOverride {
    /// Downstream protocol: HTTP/1.0, 1.1 or 2.
    pub upstream_protocol: super::hcm::Protocol,
    pub alpn: Vec<Arc<str>>,
}

#[derive(Clone, Debug)]
pub struct Compressor {
    pub library: CompressionLibrary,
    pub content_types: Vec<Arc<str>>,
    pub min_content_length: u32,
    pub disable_on_etag: bool,
    pub remove_accept_encoding: bool,
    pub choose_first: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressionLibrary {
    Gzip { level: u32 },
    Brotli { quality: u32 },
    Zstd { level: i32 },
}

#[derive(Clone, Debug)]
pub struct HealthCheck {
    pub pass_through: bool,
    pub headers: Vec<HeaderMatcher>,
    pub cache_time: Option<Duration>,
}

#[derive(Clone, Debug)]
pub struct LocalRateLimit {
    pub stat_prefix: Arc<str>,
    pub status: u16,
    pub max_tokens: u32,
    pub tokens_per_fill: u32,
    pub fill_interval: Duration,
    pub enabled: Fraction,
    pub enforced: Fraction,
    pub response_headers: Vec<HeaderAdd>,
    pub request_headers: Vec<HeaderAdd>,
    pub per_connection: bool,
    /// 8: resource exhausted instead of unavailable, for gRPC.
    pub grpc_resource_exhausted: bool,
}

/// A route's `typed_per_filter_config` entry.
#[derive(Clone, Debug)]
pub enum FilterOverride {
    Disabled,
    /// `FilterConfig` without a config: switches a `disabled` filter on.
    Enabled,
    Cors(Arc<CorsPolicy>),
    Fault(Arc<Fault>),
    /// `None`: RBAC off for this route.
    Rbac(Option<Arc<Rbac>>),
    HeaderMutation(Arc<HeaderMutations>),
    LocalRateLimit(Arc<LocalRateLimit>),
}

/// `envoy.extensions.filters.http.rbac.v3.RBAC` and the network filter's twin.
#[derive(Clone, Debug)]
pub struct Rbac {
    pub rules: Option<RbacRules>,
    pub shadow: Option<RbacRules>,
    pub stat_prefix: Arc<str>,
    pub rules_stat_prefix: Arc<str>,
    pub shadow_stat_prefix: Arc<str>,
}

#[derive(Clone, Debug)]
pub struct RbacRules {
    pub action: RbacAction,
    /// Sorted by name: the first that matches names itself in the details.
    pub policies: Vec<(Arc<str>, RbacPolicy)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RbacAction {
    Allow,
    Deny,
    Log,
}

#[derive(Clone, Debug)]
pub struct RbacPolicy {
    pub permissions: Vec<Permission>,
    pub principals: Vec<Principal>,
    pub condition: Option<Arc<str>>,
}

#[derive(Clone, Debug)]
pub enum Permission {
    And(Vec<Permission>),
    Or(Vec<Permission>),
    Any(bool),
    Header(HeaderMatcher),
    UrlPath(StringMatcher),
    DestinationIp(super::address::Cidr),
    DestinationPort(u16),
    DestinationPortRange(u32, u32),
    Metadata(MetadataMatcher),
    Not(Box<Permission>),
    ServerName(StringMatcher),
    UriTemplate(Arc<regex::Regex>),
}

#[derive(Clone, Debug)]
pub enum Principal {
    And(Vec<Principal>),
    Or(Vec<Principal>),
    Any(bool),
    /// `None`: any authenticated peer.
    Authenticated(Option<StringMatcher>),
    DirectRemoteIp(super::address::Cidr),
    RemoteIp(super::address::Cidr),
    SourceIp(super::address::Cidr),
    Header(HeaderMatcher),
    UrlPath(StringMatcher),
    Metadata(MetadataMatcher),
    FilterState(Arc<str>, StringMatcher),
    Not(Box<Principal>),
}

/// `envoy.type.matcher.v3.MetadataMatcher` over dynamic metadata.
#[derive(Clone, Debug)]
pub struct MetadataMatcher {
    pub filter: Arc<str>,
    pub path: Vec<Arc<str>>,
    pub value: ValueMatcher,
    pub invert: bool,
}

#[derive(Clone, Debug)]
pub enum ValueMatcher {
    Null,
    Double(f64),
    DoubleRange(f64, f64),
    String(StringMatcher),
    Bool(bool),
    Present(bool),
    ListOneOf(Box<ValueMatcher>),
    Or(Vec<ValueMatcher>),
}

/// A network filter of a filter chain, in order; the last one is terminal.
#[derive(Clone, Debug)]
pub enum NetworkFilter {
    Hcm(Arc<super::hcm::Hcm>),
    TcpProxy(Arc<TcpProxy>),
    Rbac(Arc<Rbac>),
    IstioStats(Arc<IstioStats>),
    /// `istio.metadata_exchange` (`envoy.tcp.metadataexchange`): ALPN protocol and discovery.
    MetadataExchange {
        protocol: Arc<str>,
        enable_discovery: bool,
    },
    /// `envoy.filters.network.echo`.
    Echo,
    /// `envoy.filters.network.direct_response`.
    DirectResponse(Arc<[u8]>),
    /// `envoy.filters.network.connection_limit`.
    ConnectionLimit {
        stat_prefix: Arc<str>,
        max: u64,
        delay: Option<Duration>,
    },
}

/// `envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy`.
#[derive(Clone, Debug)]
pub struct TcpProxy {
    pub stat_prefix: Arc<str>,
    /// Name, weight, metadata match (its `envoy.lb` object).
    pub clusters: Vec<(Arc<str>, u32, Metadata)>,
    pub metadata_match: Metadata,
    /// `None`: off. Default one hour.
    pub idle_timeout: Option<Duration>,
    pub max_connect_attempts: u32,
    pub hash_source_ip: bool,
    pub max_duration: Option<Duration>,
    pub access_log: Vec<AccessLog>,
    pub access_log_flush_interval: Option<Duration>,
    pub flush_on_connected: bool,
}
