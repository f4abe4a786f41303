//! The HTTP connection manager: `envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager`.

use std::sync::Arc;
use std::time::Duration;

use super::access_log::AccessLog;
use super::address::Cidr;
use super::filter::HttpFilter;
use super::route::{HeaderAdd, RouteConfig};
use super::trace::Tracing;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    Http10,
    Http11,
    Http2,
}

impl Protocol {
    /// As `%PROTOCOL%` writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Http10 => "HTTP/1.0",
            Protocol::Http11 => "HTTP/1.1",
            Protocol::Http2 => "HTTP/2",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodecType {
    /// By ALPN, else by the connection's first bytes.
    Auto,
    Http1,
    Http2,
}

#[derive(Debug)]
pub struct Hcm {
    pub codec: CodecType,
    pub stat_prefix: Arc<str>,
    pub routes: RouteSource,
    pub filters: Vec<HttpFilter>,
    pub access_log: Vec<AccessLog>,
    pub access_log_flush_interval: Option<Duration>,
    pub access_log_on_new_request: bool,
    pub tracing: Option<Tracing>,

    /// `server_name`, "envoy" by default.
    pub server_name: Arc<str>,
    pub server_header: ServerHeader,
    pub via: Option<Arc<str>>,

    pub use_remote_address: bool,
    pub xff_num_trusted_hops: u32,
    pub skip_xff_append: bool,
    pub internal_ranges: Vec<Cidr>,
    /// `internal_address_config.unix_sockets`.
    pub unix_sockets_internal: bool,
    pub append_x_forwarded_port: bool,
    pub represent_ipv4_as_mapped: bool,
    pub forward_client_cert: ForwardClientCert,
    pub client_cert_details: ClientCertDetails,
    /// `add_proxy_protocol_connection_state`, `scheme_header_transformation`.
    pub scheme_overwrite: Option<Arc<str>>,
    pub scheme_match_upstream: bool,

    pub generate_request_id: bool,
    pub preserve_external_request_id: bool,
    pub always_set_request_id_in_response: bool,
    /// uuid extension: `pack_trace_reason`, `use_request_id_for_trace_sampling`.
    pub request_id_pack_trace_reason: bool,
    pub request_id_trace_sampling: bool,

    pub normalize_path: bool,
    pub merge_slashes: bool,
    pub escaped_slashes: EscapedSlashes,
    pub strip_port: StripPort,
    pub strip_trailing_host_dot: bool,
    pub underscores: Underscores,

    pub http1: Http1Options,
    pub http2: Http2Options,
    pub max_request_headers_kb: u32,
    pub max_headers_count: u32,
    pub max_requests_per_connection: Option<u32>,

    /// Zero or absent: none. Default one hour for a connection without requests.
    pub idle_timeout: Option<Duration>,
    pub max_connection_duration: Option<Duration>,
    pub max_stream_duration: Option<Duration>,
    /// Default five minutes.
    pub stream_idle_timeout: Option<Duration>,
    pub request_timeout: Option<Duration>,
    pub request_headers_timeout: Option<Duration>,
    /// Default five seconds.
    pub drain_timeout: Duration,
    /// Default one second.
    pub delayed_close_timeout: Option<Duration>,
    /// `common_http_protocol_options.max_response_headers_kb` is the upstream's; here for 1xx.
    pub proxy_100_continue: bool,
    pub stream_error_on_invalid_http: bool,

    /// Upgrade type in lower case, enabled by default.
    pub upgrades: Vec<(Arc<str>, bool)>,
    pub local_reply: LocalReply,
}

#[derive(Clone, Debug)]
pub enum RouteSource {
    Static(Arc<RouteConfig>),
    /// By RDS: the route configuration's name.
    Rds(Arc<str>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerHeader {
    Overwrite,
    AppendIfAbsent,
    PassThrough,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardClientCert {
    Sanitize,
    ForwardOnly,
    AppendForward,
    SanitizeSet,
    AlwaysForwardOnly,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientCertDetails {
    pub subject: bool,
    pub cert: bool,
    pub chain: bool,
    pub dns: bool,
    pub uri: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EscapedSlashes {
    Keep,
    Reject,
    UnescapeAndRedirect,
    UnescapeAndForward,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StripPort {
    None,
    Any,
    /// Only where it is the listener's own port.
    Matching,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Underscores {
    Allow,
    Reject,
    Drop,
}

/// `Http1ProtocolOptions`, for either side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http1Options {
    pub accept_http_10: bool,
    pub default_host_for_http_10: Option<Arc<str>>,
    /// Absolute-form targets; on by default.
    pub allow_absolute_url: bool,
    pub header_case: HeaderCase,
    pub enable_trailers: bool,
    /// Transfer-Encoding wins over Content-Length instead of an error.
    pub allow_chunked_length: bool,
    pub send_fully_qualified_url: bool,
    /// `override_stream_error_on_invalid_http_message`.
    pub keep_open_on_error: Option<bool>,
    pub allow_custom_methods: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderCase {
    Lower,
    ProperCase,
}

impl Default for Http1Options {
    fn default() -> Self {
        Http1Options {
            accept_http_10: false,
            default_host_for_http_10: None,
            allow_absolute_url: true,
            header_case: HeaderCase::Lower,
            enable_trailers: false,
            allow_chunked_length: false,
            send_fully_qualified_url: false,
            keep_open_on_error: None,
            allow_custom_methods: false,
        }
    }
}

/// `Http2ProtocolOptions`, for either side, with Envoy 1.40's defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http2Options {
    pub max_concurrent_streams: u32,
    pub initial_stream_window: u32,
    pub initial_connection_window: u32,
    pub hpack_table_size: u32,
    /// Extended CONNECT.
    pub allow_connect: bool,
    pub max_frame_size: Option<u32>,
    pub keep_stream_on_invalid: bool,
}

impl Default for Http2Options {
    fn default() -> Self {
        Http2Options {
            max_concurrent_streams: 1024,
            initial_stream_window: 16 * 1024 * 1024,
            initial_connection_window: 24 * 1024 * 1024,
            hpack_table_size: 4096,
            allow_connect: false,
            max_frame_size: None,
            keep_stream_on_invalid: false,
        }
    }
}

/// `local_reply_config`.
#[derive(Debug, Default)]
pub struct LocalReply {
    pub mappers: Vec<LocalReplyMapper>,
    pub body_format: Option<ReplyFormat>,
}

#[derive(Debug)]
pub struct LocalReplyMapper {
    pub filter: super::access_log::Filter,
    pub status: Option<u16>,
    pub body: Option<Arc<[u8]>>,
    pub body_format: Option<ReplyFormat>,
    pub headers: Vec<HeaderAdd>,
}

#[derive(Clone, Debug)]
pub struct ReplyFormat {
    pub format: super::access_log::LogFormat,
    pub content_type: Option<Arc<str>>,
}
