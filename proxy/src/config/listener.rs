//! Listeners and filter chains: `envoy.config.listener.v3.Listener`.

use std::sync::Arc;
use std::time::Duration;

use super::access_log::AccessLog;
use super::address::{Address, Cidr};
use super::filter::NetworkFilter;
use super::route::Metadata;
use super::tls::{DownstreamTls, TransportSocket};

#[derive(Debug)]
pub struct Listener {
    pub name: Arc<str>,
    /// The first is the listener's own; the rest are `additional_addresses`.
    pub addresses: Vec<Address>,
    /// `stat_prefix`, else derived from the address.
    pub stat_prefix: Option<Arc<str>>,
    pub bind_to_port: bool,
    /// `use_original_dst`: hand an accepted connection to the listener of its original destination.
    pub use_original_dst: bool,
    pub transparent: bool,
    pub freebind: bool,
    pub reuse_port: bool,
    pub ipv4_compat: bool,
    pub backlog: u32,
    pub direction: Direction,
    pub listener_filters: Vec<ListenerFilter>,
    /// `None`: no timeout (`0s`). Default 15 s.
    pub listener_filters_timeout: Option<Duration>,
    pub continue_on_timeout: bool,
    pub filter_chains: Vec<Arc<FilterChain>>,
    pub default_chain: Option<Arc<FilterChain>>,
    /// Log of connections that matched no chain, and of listener-level events.
    pub access_log: Vec<AccessLog>,
    pub per_connection_buffer_limit: u32,
    pub max_connections: Option<u64>,
    pub ignore_global_conn_limit: bool,
    pub metadata: Metadata,
    pub socket_options: Vec<SocketOption>,
    /// From the bootstrap, not from LDS.
    pub is_static: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Unspecified,
    Inbound,
    Outbound,
}

/// An entry of `socket_options`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketOption {
    KeepAlive(bool),
    KeepAliveIdle(Duration),
    KeepAliveInterval(Duration),
    KeepAliveProbes(u32),
}

#[derive(Clone, Debug)]
pub struct ListenerFilter {
    pub kind: ListenerFilterKind,
    /// `filter_disabled`.
    pub disabled: Option<DisabledWhen>,
}

#[derive(Clone, Debug)]
pub enum ListenerFilterKind {
    OriginalDst,
    TlsInspector {
        initial_read: usize,
        max_read: usize,
        ja3: bool,
    },
    HttpInspector,
    /// `envoy.filters.listener.proxy_protocol`: plain connections allowed without a header.
    ProxyProtocol {
        allow_without: bool,
    },
}

/// `ListenerFilterChainMatchPredicate`.
#[derive(Clone, Debug)]
pub enum DisabledWhen {
    Any(bool),
    /// `start..end`.
    DestinationPort(u32, u32),
    Not(Box<DisabledWhen>),
    Or(Vec<DisabledWhen>),
    And(Vec<DisabledWhen>),
}

#[derive(Debug)]
pub struct FilterChain {
    pub name: Arc<str>,
    pub matcher: ChainMatch,
    pub transport: TransportSocket<DownstreamTls>,
    pub transport_connect_timeout: Option<Duration>,
    /// In order; the last is terminal (HCM, tcp_proxy, echo …).
    pub filters: Vec<NetworkFilter>,
    pub metadata: Metadata,
}

/// `FilterChainMatch`; empty lists match everything. Criteria apply in the order of Envoy's documentation.
#[derive(Clone, Debug, Default)]
pub struct ChainMatch {
    pub destination_port: Option<u16>,
    pub prefix_ranges: Vec<Cidr>,
    /// Lower case; `*.example.com` as `.example.com` in `suffix`.
    pub server_names: Vec<ServerName>,
    pub transport_protocol: Option<Arc<str>>,
    pub application_protocols: Vec<Arc<str>>,
    pub direct_source_ranges: Vec<Cidr>,
    pub source_type: SourceType,
    pub source_ranges: Vec<Cidr>,
    pub source_ports: Vec<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerName {
    Exact(Arc<str>),
    /// With its leading dot.
    Suffix(Arc<str>),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceType {
    #[default]
    Any,
    SameIpOrLoopback,
    External,
}
