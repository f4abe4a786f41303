//! Clusters and endpoints: `envoy.config.cluster.v3.Cluster`, `envoy.config.endpoint.v3.ClusterLoadAssignment`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::address::Address;
use super::hcm::{Http1Options, Http2Options};
use super::matcher::StringMatcher;
use super::route::Metadata;
use super::tls::{TransportSocket, UpstreamTls};
use crate::head::HeaderName;

#[derive(Debug)]
pub struct Cluster {
    pub name: Arc<str>,
    /// `alt_stat_name`, else the name.
    pub stat_name: Arc<str>,
    pub discovery: Discovery,
    pub connect_timeout: Duration,
    pub lb: LbPolicy,
    pub lb_common: LbCommon,
    pub outlier: Option<OutlierDetection>,
    pub health_checks: Vec<HealthCheck>,
    /// DEFAULT, HIGH.
    pub breakers: [Breaker; 2],
    pub transport: TransportSocket<UpstreamTls>,
    /// First match on the endpoint's `envoy.transport_socket_match` metadata wins.
    pub transport_matches: Vec<TransportMatch>,
    pub protocol: UpstreamProtocol,
    pub http: UpstreamHttp,
    pub per_connection_buffer_limit: u32,
    pub max_requests_per_connection: Option<u32>,
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// `set_local_interface_name_on_upstream_connections` is listed as harmless.
    pub bind: Option<Address>,
    pub metadata: Metadata,
    pub respect_dns_ttl: bool,
    pub dns_refresh: Duration,
    pub dns_failure_refresh: (Duration, Duration),
    pub dns_jitter: Duration,
    pub dns_family: DnsFamily,
    /// Explicit resolvers; empty: the system's.
    pub dns_resolvers: Vec<SocketAddr>,
    pub wait_for_warm_on_init: bool,
    /// `ignore_health_on_host_removal`, `close_connections_on_host_health_failure`.
    pub ignore_health_on_host_removal: bool,
    pub close_on_health_failure: bool,
    /// `preconnect_policy.per_upstream_preconnect_ratio`.
    pub preconnect_ratio: f64,
    pub predictive_preconnect_ratio: f64,
    /// `track_timeout_budgets`, `track_cluster_stats.timeout_budgets`.
    pub timeout_budget_stats: bool,
    pub request_response_size_stats: bool,
    pub per_endpoint_stats: bool,
    /// Istio's `istio.metadata_exchange` upstream filter: ALPN and discovery.
    pub metadata_exchange: Option<(Arc<str>, bool)>,
    pub is_static: bool,
}

#[derive(Debug)]
pub enum Discovery {
    Static(Arc<Endpoints>),
    StrictDns(Arc<Endpoints>),
    LogicalDns(Arc<Endpoints>),
    /// `service_name`, else the cluster's.
    Eds {
        service_name: Arc<str>,
    },
    OriginalDst {
        use_header: Option<HeaderName>,
        cleanup: Duration,
        port_override: Option<u16>,
    },
    /// `envoy.clusters.aggregate`.
    Aggregate(Vec<Arc<str>>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsFamily {
    Auto,
    V4Only,
    V6Only,
    V4Preferred,
    All,
}

#[derive(Debug, Default)]
pub struct Endpoints {
    pub cluster_name: Arc<str>,
    pub localities: Vec<LocalityEndpoints>,
    /// Percent, 140 by default.
    pub overprovisioning: u32,
    /// Drop overloads: category and share in millionths.
    pub drops: Vec<(Arc<str>, u32)>,
    pub weighted_priority_health: bool,
    pub endpoint_stale_after: Option<Duration>,
}

#[derive(Debug, Clone)]
pub struct LocalityEndpoints {
    pub region: Arc<str>,
    pub zone: Arc<str>,
    pub sub_zone: Arc<str>,
    pub priority: u32,
    pub weight: Option<u32>,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Debug, Clone)]
pub struct Endpoint {
    pub address: Address,
    pub additional: Vec<Address>,
    /// `hostname`: for auto host rewrite and health checks.
    pub hostname: Option<Arc<str>>,
    pub weight: u32,
    pub health: EdsHealth,
    pub metadata: Metadata,
    pub health_check_port: Option<u16>,
    pub health_check_hostname: Option<Arc<str>>,
    pub health_check_address: Option<Address>,
    pub disable_active_health_check: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EdsHealth {
    Unknown,
    Healthy,
    Unhealthy,
    Draining,
    Timeout,
    Degraded,
}

#[derive(Clone, Debug)]
pub enum LbPolicy {
    RoundRobin { slow_start: Option<SlowStart> },
    LeastRequest { choices: u32, bias: f64, slow_start: Option<SlowStart>, full_scan: bool },
    Random,
    RingHash { min: u64, max: u64, murmur: bool },
    Maglev { table_size: u64 },
    ClusterProvided,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SlowStart {
    pub window: Duration,
    pub aggression: f64,
    /// Percent.
    pub min_weight: f64,
}

#[derive(Clone, Debug)]
pub struct LbCommon {
    /// Percent; zero: never panic. Default 50.
    pub panic_threshold: f64,
    pub fail_traffic_on_panic: bool,
    pub locality_weighted: bool,
    pub zone_aware: Option<ZoneAware>,
    pub update_merge_window: Duration,
    pub ignore_new_hosts_until_first_hc: bool,
    pub close_on_host_set_change: bool,
    /// Consistent hashing: `use_hostname_for_hashing`, `hash_balance_factor` (percent, 0: none).
    pub hash_by_hostname: bool,
    pub hash_balance_factor: u32,
    pub override_host_statuses: Vec<EdsHealth>,
    pub subset: Option<Subset>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ZoneAware {
    /// Percent.
    pub routing_enabled: f64,
    pub min_cluster_size: u64,
    pub fail_traffic_on_panic: bool,
}

/// `lb_subset_config`.
#[derive(Clone, Debug)]
pub struct Subset {
    pub fallback: SubsetFallback,
    pub default_subset: Metadata,
    /// Keys, each selector's own fallback, and its keys subset for KEYS_SUBSET.
    pub selectors: Vec<SubsetSelector>,
    pub locality_weight_aware: bool,
    pub scale_locality_weight: bool,
    pub panic_mode_any: bool,
    pub list_as_any: bool,
}

#[derive(Clone, Debug)]
pub struct SubsetSelector {
    pub keys: Vec<Arc<str>>,
    pub fallback: Option<SubsetFallback>,
    pub fallback_keys: Vec<Arc<str>>,
    pub single_host: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubsetFallback {
    None,
    AnyEndpoint,
    DefaultSubset,
    KeysSubset,
}

/// `OutlierDetection` with defaults; percentages 0 to 100.
#[derive(Clone, Debug, PartialEq)]
pub struct OutlierDetection {
    pub consecutive_5xx: u32,
    pub consecutive_gateway: u32,
    pub consecutive_local_origin: u32,
    pub interval: Duration,
    pub base_ejection: Duration,
    pub max_ejection_time: Duration,
    pub max_ejection_jitter: Duration,
    pub max_ejection_percent: u32,
    pub always_eject_one: bool,
    pub enforcing_5xx: u32,
    pub enforcing_gateway: u32,
    pub enforcing_local_origin: u32,
    pub enforcing_success_rate: u32,
    pub enforcing_local_success_rate: u32,
    pub success_rate_minimum_hosts: u32,
    pub success_rate_request_volume: u32,
    /// Thousandths of a standard deviation.
    pub success_rate_stdev_factor: u32,
    pub split_external_local: bool,
    pub failure_percentage_threshold: u32,
    pub enforcing_failure_percentage: u32,
    pub enforcing_failure_percentage_local: u32,
    pub failure_percentage_minimum_hosts: u32,
    pub failure_percentage_request_volume: u32,
    pub successful_active_hc_uneject: bool,
}

#[derive(Clone, Debug)]
pub struct HealthCheck {
    pub timeout: Duration,
    pub interval: Duration,
    pub initial_jitter: Duration,
    pub interval_jitter: Duration,
    pub interval_jitter_percent: u32,
    pub unhealthy_threshold: u32,
    pub healthy_threshold: u32,
    pub no_traffic_interval: Duration,
    pub no_traffic_healthy_interval: Duration,
    pub unhealthy_interval: Duration,
    pub unhealthy_edge_interval: Duration,
    pub healthy_edge_interval: Duration,
    pub reuse_connection: bool,
    pub always_log_failures: bool,
    pub kind: HealthCheckKind,
    pub alpn: Vec<Arc<str>>,
}

#[derive(Clone, Debug)]
pub enum HealthCheckKind {
    Http {
        host: Option<Arc<str>>,
        path: Arc<str>,
        method: Arc<str>,
        headers: Vec<super::route::HeaderAdd>,
        remove: Vec<HeaderName>,
        /// Half-open ranges; 200..201 by default.
        expected: Vec<(u16, u16)>,
        retriable: Vec<(u16, u16)>,
        service_name: Option<StringMatcher>,
        http2: bool,
    },
    Tcp {
        send: Option<Arc<[u8]>>,
        receive: Vec<Arc<[u8]>>,
    },
    Grpc {
        service: Arc<str>,
        authority: Option<Arc<str>>,
    },
}

/// Circuit breaker of one priority.
#[derive(Clone, Debug, PartialEq)]
pub struct Breaker {
    pub max_connections: u32,
    pub max_pending: u32,
    pub max_requests: u32,
    pub max_retries: u32,
    pub max_connection_pools: u32,
    pub track_remaining: bool,
    /// `retry_budget`: percent of active requests, minimum concurrency; takes the place of `max_retries`.
    pub retry_budget: Option<(f64, u32)>,
    /// `per_host_thresholds.max_connections`.
    pub per_host_max_connections: Option<u32>,
}

impl Default for Breaker {
    /// Envoy's defaults: 1024, 1024, 1024, 3, no limit of pools.
    fn default() -> Self {
        Breaker {
            max_connections: 1024,
            max_pending: 1024,
            max_requests: 1024,
            max_retries: 3,
            max_connection_pools: u32::MAX,
            track_remaining: false,
            retry_budget: None,
            per_host_max_connections: None,
        }
    }
}

#[derive(Clone, Debug)]
pub struct TransportMatch {
    pub name: Arc<str>,
    /// Every entry must stand in the endpoint's metadata; empty matches always.
    pub criteria: Metadata,
    pub transport: TransportSocket<UpstreamTls>,
}

#[derive(Clone, Debug)]
pub enum UpstreamProtocol {
    Http1,
    Http2,
    /// `auto_config`: by ALPN, HTTP/1.1 without.
    Auto,
    /// `use_downstream_protocol_config`.
    Downstream,
}

/// `HttpProtocolOptions` of the cluster.
#[derive(Clone, Debug)]
pub struct UpstreamHttp {
    pub http1: Http1Options,
    pub http2: Http2Options,
    /// Default one hour.
    pub idle_timeout: Option<Duration>,
    pub max_connection_duration: Option<Duration>,
    pub max_stream_duration: Option<Duration>,
    pub max_response_headers_kb: Option<u32>,
    pub max_headers_count: u32,
    /// `upstream_http_protocol_options`.
    pub auto_sni: bool,
    pub auto_san_validation: bool,
    pub override_auto_sni_header: Option<HeaderName>,
    pub reject_underscores: Option<super::hcm::Underscores>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpKeepalive {
    pub probes: Option<u32>,
    /// Seconds.
    pub time: Option<u32>,
    pub interval: Option<u32>,
}
