//! The bootstrap: `envoy.config.bootstrap.v3.Bootstrap` as the proxy starts from it.

use std::sync::Arc;
use std::time::Duration;

use super::access_log::AccessLog;
use super::address::Address;
use super::cluster::Cluster;
use super::listener::Listener;
use super::tls::Secret;

#[derive(Debug)]
pub struct Bootstrap {
    pub node: Node,
    pub listeners: Vec<Arc<Listener>>,
    pub clusters: Vec<Arc<Cluster>>,
    pub secrets: Vec<(Arc<str>, Secret)>,
    pub admin: Option<Admin>,
    pub lds: Option<ConfigSource>,
    pub cds: Option<ConfigSource>,
    pub ads: Option<Ads>,
    /// `stats_config`: tag regexes and what to keep.
    pub stats: StatsConfig,
    pub stats_flush_interval: Duration,
    /// Layered runtime's static layers, merged: key → value.
    pub runtime: Vec<(Arc<str>, serde_json::Value)>,
    /// `cluster_manager.outlier_detection.event_log_path`.
    pub outlier_event_log: Option<Arc<str>>,
    /// `overload_manager`'s `global_downstream_max_connections`.
    pub max_downstream_connections: Option<u64>,
    pub header_prefix: Arc<str>,
    pub default_dns_resolvers: Vec<std::net::SocketAddr>,
}

#[derive(Clone, Debug, Default)]
pub struct Node {
    pub id: Arc<str>,
    pub cluster: Arc<str>,
    pub region: Arc<str>,
    pub zone: Arc<str>,
    pub sub_zone: Arc<str>,
    /// The `Node` message as received, for xDS and `/server_info`.
    pub raw: Arc<[u8]>,
    pub metadata: super::route::Metadata,
}

#[derive(Debug)]
pub struct Admin {
    pub address: Address,
    pub access_log: Vec<AccessLog>,
}

/// Where a dynamic resource comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigSource {
    Ads,
    /// `path_config_source.path`, and the directory to watch for moves.
    Path {
        path: Arc<str>,
        watched_directory: Option<Arc<str>>,
    },
}

#[derive(Clone, Debug)]
pub struct Ads {
    pub delta: bool,
    /// Cluster of the management server (a static one).
    pub cluster: Arc<str>,
    pub authority: Option<Arc<str>>,
    /// Static request headers.
    pub headers: Vec<(Arc<str>, Arc<str>)>,
}

#[derive(Debug, Default)]
pub struct StatsConfig {
    pub use_default_tags: bool,
    /// Tag name → regex (Envoy's syntax: the first group is removed from the name, the second is the value), or a fixed value.
    pub tags: Vec<(Arc<str>, TagRule)>,
    /// `stats_matcher`.
    pub matcher: StatsMatcher,
    /// `histogram_bucket_settings`: a name matcher and its buckets.
    pub buckets: Vec<(super::matcher::StringMatcher, Vec<f64>)>,
}

#[derive(Clone, Debug)]
pub enum TagRule {
    Regex(regex::Regex),
    /// Has look-around that RE2 lacks, as one of Istio's own does; it is evaluated by `telemetry` as a prefix test.
    Unsupported(Arc<str>),
    Fixed(Arc<str>),
}

#[derive(Clone, Debug, Default)]
pub enum StatsMatcher {
    #[default]
    All,
    RejectAll,
    Exclude(Vec<super::matcher::StringMatcher>),
    Include(Vec<super::matcher::StringMatcher>),
}
