//! Route configuration: `envoy.config.route.v3.RouteConfiguration` with every default applied.

use std::sync::Arc;
use std::time::Duration;

use regex::Regex;

use super::filter::FilterOverride;
use super::format::Format;
use super::matcher::{Fraction, HeaderMatcher, QueryMatcher, StringMatcher};
use crate::head::HeaderName;

#[derive(Debug, Default)]
pub struct RouteConfig {
    pub name: Arc<str>,
    pub virtual_hosts: Vec<Arc<VirtualHost>>,
    /// Domain lookup made once: index into `virtual_hosts`.
    pub domains: DomainTable,
    pub mutations: HeaderMutations,
    /// `most_specific_header_mutations_wins`.
    pub most_specific_wins: bool,
    /// `internal_only_headers`: removed from external requests.
    pub internal_only_headers: Vec<HeaderName>,
    /// `ignore_port_in_host_matching`.
    pub ignore_port: bool,
    /// `ignore_path_parameters_in_path_matching`.
    pub ignore_path_parameters: bool,
    /// `validate_clusters`: an unknown cluster makes the configuration invalid.
    pub validate_clusters: bool,
    pub mirrors: Vec<Mirror>,
    pub overrides: Overrides,
}

/// Virtual hosts by domain, in Envoy's order: exact, longest suffix wildcard, longest prefix wildcard, `*`.
/// Domains are lower case.
#[derive(Debug, Default)]
pub struct DomainTable {
    pub exact: std::collections::HashMap<Box<str>, usize>,
    /// `*.example.com` and `*-bar.example.com`, without the star, by length, longest first.
    pub suffix: Vec<(usize, std::collections::HashMap<Box<str>, usize>)>,
    /// `foo.*` and `foo-*`, without the star, by length, longest first.
    pub prefix: Vec<(usize, std::collections::HashMap<Box<str>, usize>)>,
    /// `*`.
    pub any: Option<usize>,
}

#[derive(Debug)]
pub struct VirtualHost {
    pub name: Arc<str>,
    pub routes: Vec<Arc<Route>>,
    pub require_tls: RequireTls,
    pub mutations: HeaderMutations,
    /// `include_request_attempt_count` and its response twin: `x-envoy-attempt-count`.
    pub attempt_count_in_request: bool,
    pub attempt_count_in_response: bool,
    /// `include_is_timeout_retry_header`.
    pub is_timeout_retry_header: bool,
    pub retry: Option<Arc<RetryPolicy>>,
    pub mirrors: Vec<Mirror>,
    pub overrides: Overrides,
    /// `per_request_buffer_limit_bytes` / `request_body_buffer_limit`.
    pub retry_buffer_limit: Option<u64>,
    pub metadata: Metadata,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequireTls {
    None,
    ExternalOnly,
    All,
}

/// `filter_metadata` of a route, cluster, host or listener, as JSON by namespace.
pub type Metadata = Option<Arc<serde_json::Map<String, serde_json::Value>>>;

/// Per-filter overrides by the filter's name (`typed_per_filter_config`), resolved when a filter chain is built.
pub type Overrides = Vec<(Arc<str>, FilterOverride)>;

#[derive(Debug)]
pub struct Route {
    /// Empty when it has none.
    pub name: Arc<str>,
    pub matcher: RouteMatch,
    pub action: Action,
    pub mutations: HeaderMutations,
    /// `decorator`.
    pub decorator: Option<Decorator>,
    pub metadata: Metadata,
    pub overrides: Overrides,
    /// `tracing` of the route: client, random, overall sampling.
    pub tracing: Option<[Fraction; 3]>,
    pub retry_buffer_limit: Option<u64>,
    /// `stat_prefix`: `vhost.<vhost>.route.<prefix>` stats.
    pub stat_prefix: Option<Arc<str>>,
}

#[derive(Clone, Debug)]
pub struct Decorator {
    pub operation: Arc<str>,
    pub propagate: bool,
}

#[derive(Debug)]
pub struct RouteMatch {
    pub path: PathMatch,
    pub case_sensitive: bool,
    pub headers: Vec<HeaderMatcher>,
    pub query: Vec<QueryMatcher>,
    pub cookies: Vec<(Arc<str>, StringMatcher, /* invert */ bool)>,
    /// `grpc`: only requests with a gRPC content type.
    pub grpc: bool,
    /// `tls_context.presented` / `validated`.
    pub tls_presented: Option<bool>,
    pub tls_validated: Option<bool>,
    pub fraction: Option<Fraction>,
}

#[derive(Debug)]
pub enum PathMatch {
    /// Without `case_sensitive` the value is lower case.
    Exact(Arc<str>),
    Prefix(Arc<str>),
    /// `path_separated_prefix`: `/a` matches `/a` and `/a/b`, not `/ab`.
    SeparatedPrefix(Arc<str>),
    /// Over the path without its query.
    Regex(Regex),
    /// `connect_matcher`.
    Connect,
    /// `path_match_policy` with a URI template, compiled to a regex with one named group a variable.
    UriTemplate(Arc<Regex>),
}

#[derive(Debug)]
pub enum Action {
    Forward(Box<Forward>),
    Redirect(Box<Redirect>),
    Direct(Box<DirectResponse>),
    /// `non_forwarding_action`.
    NonForwarding,
}

#[derive(Debug)]
pub struct DirectResponse {
    pub status: u16,
    pub body: Option<Arc<[u8]>>,
    pub body_format: Option<Format>,
}

#[derive(Debug)]
pub struct Redirect {
    pub scheme: Option<Arc<str>>,
    /// `https_redirect`.
    pub https: bool,
    pub host: Option<Arc<str>>,
    pub port: Option<u16>,
    pub path: RedirectPath,
    /// 301, 302, 303, 307, 308.
    pub code: u16,
    pub strip_query: bool,
}

#[derive(Debug)]
pub enum RedirectPath {
    Keep,
    /// May carry its own query.
    Replace(Arc<str>),
    /// The matched prefix is replaced.
    Prefix(Arc<str>),
    Regex(RegexRewrite),
}

/// `RegexMatchAndSubstitute`; the substitution is in the regex crate's `${1}` form.
#[derive(Clone, Debug)]
pub struct RegexRewrite {
    pub pattern: Regex,
    pub substitution: Arc<str>,
}

#[derive(Debug)]
pub struct Forward {
    pub cluster: ClusterChoice,
    /// 503, 404 or 500.
    pub cluster_not_found_code: u16,
    /// `metadata_match`, for subsets.
    pub metadata_match: Metadata,
    pub path_rewrite: PathRewrite,
    pub host_rewrite: HostRewrite,
    /// `append_x_forwarded_host`.
    pub append_x_forwarded_host: bool,
    /// `None`: no timeout (`0s`). Default 15 s.
    pub timeout: Option<Duration>,
    /// `None`: the connection manager's.
    pub idle_timeout: Option<Duration>,
    /// Set to zero: switched off for this route.
    pub idle_timeout_off: bool,
    pub flush_timeout: Option<Duration>,
    pub retry: Option<Arc<RetryPolicy>>,
    pub mirrors: Vec<Mirror>,
    pub high_priority: bool,
    pub hash: Vec<HashPolicy>,
    pub max_stream_duration: Option<MaxStreamDuration>,
    /// `max_grpc_timeout` (deprecated form): bounds `grpc-timeout`; zero: no bound.
    pub max_grpc_timeout: Option<Duration>,
    pub grpc_timeout_offset: Option<Duration>,
    /// Route overrides of `upgrade_configs`: type in lower case, enabled.
    pub upgrades: Vec<(Arc<str>, bool)>,
    /// `connect_config` for a terminated CONNECT.
    pub connect_config: Option<ConnectConfig>,
    pub internal_redirect: Option<InternalRedirect>,
    pub hedge_on_per_try_timeout: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectConfig {
    pub allow_post: bool,
    /// Send PROXY protocol: refused at conversion until the TCP side has it.
    pub proxy_protocol: bool,
}

#[derive(Clone, Debug)]
pub struct InternalRedirect {
    pub max_internal_redirects: u32,
    pub codes: Vec<u16>,
    pub allow_cross_scheme: bool,
    pub response_headers_to_copy: Vec<HeaderName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxStreamDuration {
    /// Zero: switched off.
    pub max: Option<Duration>,
    pub grpc_timeout_header_max: Option<Duration>,
    pub grpc_timeout_header_offset: Option<Duration>,
}

#[derive(Debug)]
pub enum ClusterChoice {
    Cluster(Arc<str>),
    /// `cluster_header`.
    Header(HeaderName),
    Weighted(WeightedClusters),
}

#[derive(Debug)]
pub struct WeightedClusters {
    pub clusters: Vec<WeightedCluster>,
    pub total_weight: u32,
    /// `header_name`: its value, a number, takes the random value's place.
    pub random_value_header: Option<HeaderName>,
}

#[derive(Debug)]
pub struct WeightedCluster {
    /// Empty with `cluster_header`.
    pub name: Arc<str>,
    pub cluster_header: Option<HeaderName>,
    pub weight: u32,
    pub metadata_match: Metadata,
    pub mutations: HeaderMutations,
    pub overrides: Overrides,
    pub host_rewrite: Option<Arc<str>>,
}

#[derive(Debug)]
pub enum PathRewrite {
    None,
    Prefix(Arc<str>),
    Regex(RegexRewrite),
    /// `path_rewrite_policy` with a URI template: literal and variable parts.
    Template(Vec<TemplatePart>),
}

#[derive(Clone, Debug)]
pub enum TemplatePart {
    Literal(Arc<str>),
    Variable(Arc<str>),
}

#[derive(Debug)]
pub enum HostRewrite {
    None,
    Literal(Arc<str>),
    /// `auto_host_rewrite`: the endpoint's host name.
    Auto,
    Header(HeaderName),
    PathRegex(RegexRewrite),
}

#[derive(Clone, Debug)]
pub struct Mirror {
    pub cluster: ClusterOrHeader,
    pub fraction: Fraction,
    /// `None`: as the parent's.
    pub trace_sampled: Option<bool>,
    pub no_host_suffix: bool,
    pub mutations: HeaderMutations,
    pub host_rewrite: Option<Arc<str>>,
}

#[derive(Clone, Debug)]
pub enum ClusterOrHeader {
    Cluster(Arc<str>),
    Header(HeaderName),
}

#[derive(Clone, Debug)]
pub struct HashPolicy {
    pub source: HashSource,
    /// A hash from this entry ends the evaluation.
    pub terminal: bool,
}

#[derive(Clone, Debug)]
pub enum HashSource {
    Header {
        name: HeaderName,
        rewrite: Option<RegexRewrite>,
    },
    /// With a TTL a missing cookie is made up and set in the response; zero: a session cookie.
    Cookie {
        name: Arc<str>,
        ttl: Option<Duration>,
        path: Arc<str>,
        attributes: Vec<(Arc<str>, Arc<str>)>,
    },
    SourceIp,
    Query(Arc<str>),
    FilterState(Arc<str>),
}

#[derive(Debug)]
pub struct RetryPolicy {
    pub retry_on: RetryOn,
    /// Retries after the first try.
    pub num_retries: u32,
    pub per_try_timeout: Option<Duration>,
    pub per_try_idle_timeout: Option<Duration>,
    pub retriable_status_codes: Vec<u16>,
    /// Response headers that make a response retriable.
    pub retriable_headers: Vec<HeaderMatcher>,
    /// The request must match one of these, if any.
    pub retriable_request_headers: Vec<HeaderMatcher>,
    /// Fully jittered exponential back-off; 25 ms and ten times the base by default.
    pub base_interval: Duration,
    pub max_interval: Duration,
    pub rate_limited: Option<RateLimitedBackOff>,
    /// `envoy.retry_host_predicates.previous_hosts`.
    pub avoid_previous_hosts: bool,
    /// `envoy.retry_host_predicates.omit_canary_hosts`.
    pub omit_canary_hosts: bool,
    /// `envoy.retry_host_predicates.omit_host_metadata`.
    pub omit_host_metadata: Metadata,
    pub host_selection_attempts: u32,
    /// `envoy.retry_priorities.previous_priorities`: its `update_frequency`.
    pub previous_priorities: Option<u32>,
}

#[derive(Clone, Debug)]
pub struct RateLimitedBackOff {
    /// Headers to read, and whether the value is a Unix timestamp instead of seconds.
    pub headers: Vec<(HeaderName, bool)>,
    pub max_interval: Duration,
}

/// The `retry_on` conditions, HTTP and gRPC, as a bit set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryOn(pub u32);

impl RetryOn {
    pub const FIVE_XX: RetryOn = RetryOn(1);
    pub const GATEWAY_ERROR: RetryOn = RetryOn(1 << 1);
    pub const CONNECT_FAILURE: RetryOn = RetryOn(1 << 2);
    pub const RETRIABLE_4XX: RetryOn = RetryOn(1 << 3);
    pub const REFUSED_STREAM: RetryOn = RetryOn(1 << 4);
    pub const RETRIABLE_STATUS_CODES: RetryOn = RetryOn(1 << 5);
    pub const RETRIABLE_HEADERS: RetryOn = RetryOn(1 << 6);
    pub const RESET: RetryOn = RetryOn(1 << 7);
    pub const RESET_BEFORE_REQUEST: RetryOn = RetryOn(1 << 8);
    pub const ENVOY_RATE_LIMITED: RetryOn = RetryOn(1 << 9);
    pub const HTTP3_POST_CONNECT_FAILURE: RetryOn = RetryOn(1 << 10);
    pub const GRPC_CANCELLED: RetryOn = RetryOn(1 << 16);
    pub const GRPC_DEADLINE_EXCEEDED: RetryOn = RetryOn(1 << 17);
    pub const GRPC_RESOURCE_EXHAUSTED: RetryOn = RetryOn(1 << 18);
    pub const GRPC_UNAVAILABLE: RetryOn = RetryOn(1 << 19);
    pub const GRPC_INTERNAL: RetryOn = RetryOn(1 << 20);

    /// Whether any bit of `other` is set.
    pub fn has(self, other: RetryOn) -> bool {
        self.0 & other.0 != 0
    }

    /// Reads a comma-separated `retry_on` (also `x-envoy-retry-on`, `x-envoy-retry-grpc-on`). The second value is false where
    /// a word is unknown; Envoy ignores such words.
    pub fn parse(text: &str) -> (RetryOn, bool) {
        let mut on = RetryOn::default();
        let mut known = true;
        for word in text.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            let bit = match word {
                "5xx" => Self::FIVE_XX,
                "gateway-error" => Self::GATEWAY_ERROR,
                "connect-failure" => Self::CONNECT_FAILURE,
                "retriable-4xx" => Self::RETRIABLE_4XX,
                "refused-stream" => Self::REFUSED_STREAM,
                "retriable-status-codes" => Self::RETRIABLE_STATUS_CODES,
                "retriable-headers" => Self::RETRIABLE_HEADERS,
                "reset" => Self::RESET,
                "reset-before-request" => Self::RESET_BEFORE_REQUEST,
                "envoy-ratelimited" => Self::ENVOY_RATE_LIMITED,
                "http3-post-connect-failure" => Self::HTTP3_POST_CONNECT_FAILURE,
                "cancelled" => Self::GRPC_CANCELLED,
                "deadline-exceeded" => Self::GRPC_DEADLINE_EXCEEDED,
                "resource-exhausted" => Self::GRPC_RESOURCE_EXHAUSTED,
                "unavailable" => Self::GRPC_UNAVAILABLE,
                "internal" => Self::GRPC_INTERNAL,
                _ => {
                    known = false;
                    continue;
                }
            };
            on.0 |= bit.0;
        }
        (on, known)
    }
}

/// `request_headers_to_add`/`_remove` and the response's, of one level.
#[derive(Clone, Debug, Default)]
pub struct HeaderMutations {
    pub request_add: Vec<HeaderAdd>,
    pub request_remove: Vec<HeaderName>,
    pub response_add: Vec<HeaderAdd>,
    pub response_remove: Vec<HeaderName>,
}

impl HeaderMutations {
    /// Nothing to do in either direction.
    pub fn is_empty(&self) -> bool {
        self.request_add.is_empty()
            && self.request_remove.is_empty()
            && self.response_add.is_empty()
            && self.response_remove.is_empty()
    }
}

#[derive(Clone, Debug)]
pub struct HeaderAdd {
    pub name: HeaderName,
    pub value: Format,
    pub action: AppendAction,
    pub keep_empty: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendAction {
    AppendIfExistsOrAdd,
    AddIfAbsent,
    OverwriteIfExistsOrAdd,
    OverwriteIfExists,
}
