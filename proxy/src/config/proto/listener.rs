//! Listeners, listener filters and filter chains. Source: envoy/config/listener/v3.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core_pb;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3 as http_inspector;
use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3 as original_dst;
use envoy_types::pb::envoy::extensions::filters::listener::proxy_protocol::v3 as proxy_protocol;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3 as tls_inspector;
use envoy_types::pb::envoy::r#type::v3 as ty;

use super::any::Extension;
use super::{Ctx, Env, Need, Result, Root, access_log, core, flag, network_filter, take, text, tls, uint};
use crate::config::listener::{
    ChainMatch, Direction, DisabledWhen, FilterChain, Listener, ListenerFilter, ListenerFilterKind,
    ServerName, SocketOption, SourceType,
};

/// A listener of the bootstrap or from LDS.
///
/// # Errors
/// What is not served or not valid.
pub fn listener(env: &Env, m: pb::Listener) -> Result<(Listener, Vec<Need>)> {
    let root = Root::new("listener", &m.name, env);
    let ctx = root.ctx();
    take!(ctx, m, pb::Listener {
        name, address, additional_addresses, stat_prefix, filter_chains, use_original_dst, default_filter_chain,
        per_connection_buffer_limit_bytes, metadata, deprecated_v1, listener_filters, listener_filters_timeout,
        continue_on_listener_filters_timeout, transparent, freebind, socket_options, traffic_direction,
        reuse_port, enable_reuse_port, access_log, tcp_backlog_size, bind_to_port, ignore_global_conn_limit;
        refuse tcp_keepalive = "socket_options is accepted", listener_specifier = "a listener with an address is accepted", stats_matcher = "the bootstrap's stats_config is used",
            fcds_config = "filter_chains is accepted",
            filter_chain_matcher = "filter_chain_match of each chain is accepted",
            per_connection_buffer_high_watermark_timeout = "unset is accepted",
            udp_listener_config = "UDP and QUIC are not served",
            api_listener = "TCP listeners are accepted",
            enable_mptcp = "TCP is used",
            tcp_fast_open_queue_length = "unset is accepted";
        harmless connection_balance_config = "the kernel spreads connections over the workers' sockets",
            max_connections_to_accept_per_socket_event = "other work of a worker comes in between accepts anyway",
            drain_type = "connections of a changed listener are not drained; a removed one drains",
            bypass_overload_manager = "overload actions are not taken, so there is nothing to bypass"
    });
    let direction = match ctx.enumeration("traffic_direction", traffic_direction)? {
        core_pb::TrafficDirection::Unspecified => Direction::Unspecified,
        core_pb::TrafficDirection::Inbound => Direction::Inbound,
        core_pb::TrafficDirection::Outbound => Direction::Outbound,
    };
    root.direction.set(direction);
    let address = ctx.required("address", address)?;
    let ipv4_compat = core::listens_ipv4_compat(&address);
    let mut addresses = vec![core::address(&ctx.field("address"), address)?];
    addresses.extend(ctx.each("additional_addresses", additional_addresses, |c, a| {
        take!(c, a, pb::AdditionalAddress { address; refuse socket_options = "the listener's own are used", tcp_keepalive = "none is accepted" });
        core::address(&c.field("address"), c.required("address", address)?)
    })?);
    for (i, a) in addresses.iter().enumerate() {
        if matches!(
            a,
            crate::config::address::Address::Name(..) | crate::config::address::Address::Internal(_)
        ) {
            let field = if i == 0 { "address" } else { "additional_addresses" };
            return ctx
                .bad(field, format!("{a} cannot be bound; an IP address and port, or a pipe, is accepted"));
        }
    }
    let filter_chains = ctx.each("filter_chains", filter_chains, |c, f| filter_chain(c, f).map(Arc::new))?;
    if filter_chains.is_empty() && default_filter_chain.is_none() {
        return ctx.bad("filter_chains", "no filter chain is given");
    }
    unique(&ctx, &filter_chains)?;
    let deprecated_bind = deprecated_v1.and_then(|d| d.bind_to_port);
    let mut listener_filters = ctx.each("listener_filters", listener_filters, listener_filter)?;
    // As Envoy: the old flag stands for the filter of that name, too. istiod's virtualOutbound relies on it.
    let restores = |f: &ListenerFilter| matches!(f.kind, ListenerFilterKind::OriginalDst);
    if flag(use_original_dst, false) && !listener_filters.iter().any(restores) {
        listener_filters.push(ListenerFilter { kind: ListenerFilterKind::OriginalDst, disabled: None });
    }
    let listener = Listener {
        addresses,
        stat_prefix: text(stat_prefix),
        bind_to_port: flag(bind_to_port, flag(deprecated_bind, true)),
        use_original_dst: flag(use_original_dst, false),
        transparent: flag(transparent, false),
        freebind: flag(freebind, false),
        reuse_port: flag(enable_reuse_port, true) || reuse_port,
        ipv4_compat,
        backlog: uint(tcp_backlog_size).unwrap_or(128),
        direction,
        listener_filters,
        listener_filters_timeout: ctx.timeout(
            "listener_filters_timeout",
            listener_filters_timeout,
            Some(Duration::from_secs(15)),
        )?,
        continue_on_timeout: continue_on_listener_filters_timeout,
        filter_chains,
        default_chain: default_filter_chain
            .map(|f| filter_chain(&ctx.field("default_filter_chain"), f).map(Arc::new))
            .transpose()?,
        access_log: access_log::access_logs(&ctx, "access_log", access_log)?,
        per_connection_buffer_limit: uint(per_connection_buffer_limit_bytes).unwrap_or(1024 * 1024),
        // `envoy.resource_limits.listener.<name>.connection_limit` of the runtime.
        max_connections: env
            .runtime(&format!("envoy.resource_limits.listener.{name}.connection_limit"))
            .and_then(serde_json::Value::as_u64),
        ignore_global_conn_limit,
        metadata: core::metadata(&ctx.field("metadata"), metadata)?,
        socket_options: ctx.each("socket_options", socket_options, socket_option)?,
        is_static: env.is_static,
        name: name.into(),
    };
    Ok((listener, root.needs()))
}

fn socket_option(ctx: &Ctx<'_>, m: core_pb::SocketOption) -> Result<SocketOption> {
    use core_pb::socket_option::Value as V;
    take!(ctx, m, core_pb::SocketOption {
        level, name, value;
        refuse r#type = "options for every socket are accepted", ip_version = "options for either family are accepted";
        harmless description = "a comment", state = "options are set before the socket is bound, where all of them may be set"
    });
    let value = match ctx.required("value", value)? {
        V::IntValue(v) => v,
        V::BufValue(_) => return ctx.bad("buf_value", "is not served; int_value is accepted"),
    };
    let number =
        u32::try_from(value).map_err(|_| ctx.field("int_value").err(format!("{value} is out of range")))?;
    let seconds = Duration::from_secs(number.into());
    Ok(match (i32::try_from(level), i32::try_from(name)) {
        (Ok(libc::SOL_SOCKET), Ok(libc::SO_KEEPALIVE)) => SocketOption::KeepAlive(number != 0),
        (Ok(libc::IPPROTO_TCP), Ok(libc::TCP_KEEPIDLE)) => SocketOption::KeepAliveIdle(seconds),
        (Ok(libc::IPPROTO_TCP), Ok(libc::TCP_KEEPINTVL)) => SocketOption::KeepAliveInterval(seconds),
        (Ok(libc::IPPROTO_TCP), Ok(libc::TCP_KEEPCNT)) => SocketOption::KeepAliveProbes(number),
        _ => {
            let instead = "SO_KEEPALIVE, TCP_KEEPIDLE, TCP_KEEPINTVL and TCP_KEEPCNT are accepted";
            return Err(ctx.err(format!("level {level}, name {name} is not served; {instead}")));
        }
    })
}

fn listener_filter(ctx: &Ctx<'_>, m: pb::ListenerFilter) -> Result<ListenerFilter> {
    use pb::listener_filter::ConfigType as C;
    take!(ctx, m, pb::ListenerFilter { name, filter_disabled, config_type });
    let disabled = filter_disabled.map(|d| predicate(&ctx.field("filter_disabled"), d)).transpose()?;
    let any = match config_type {
        Some(C::TypedConfig(any)) => any,
        None => return ctx.bad("typed_config", format!("is required (listener filter '{name}')")),
        Some(C::ConfigDiscovery(_)) => {
            return ctx.bad(
                "config_discovery",
                format!("extension discovery of filter '{name}' is not served; typed_config is accepted"),
            );
        }
    };
    let ctx = ctx.field("typed_config");
    let e = Extension::open(&ctx, any)?;
    let kind = match e.message.as_str() {
        "envoy.extensions.filters.listener.original_dst.v3.OriginalDst" => {
            let original_dst::OriginalDst {} = e.decode(&ctx)?;
            ListenerFilterKind::OriginalDst
        }
        "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" => {
            take!(ctx, e.decode(&ctx)?, tls_inspector::TlsInspector {
                enable_ja3_fingerprinting, enable_ja4_fingerprinting, initial_read_buffer_size, max_client_hello_size;
                refuse close_connection_on_client_hello_parsing_errors = "false is accepted"
            });
            if flag(enable_ja4_fingerprinting, false) {
                return ctx.bad(
                    "enable_ja4_fingerprinting",
                    "true is not served; enable_ja3_fingerprinting is accepted",
                );
            }
            let max_read = uint(max_client_hello_size).unwrap_or(16 * 1024) as usize;
            ListenerFilterKind::TlsInspector {
                initial_read: (uint(initial_read_buffer_size).unwrap_or(16 * 1024) as usize)
                    .clamp(256, max_read.max(256)),
                max_read,
                ja3: flag(enable_ja3_fingerprinting, false),
            }
        }
        "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector" => {
            let http_inspector::HttpInspector {} = e.decode(&ctx)?;
            ListenerFilterKind::HttpInspector
        }
        "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol" => {
            take!(ctx, e.decode(&ctx)?, proxy_protocol::ProxyProtocol {
                allow_requests_without_proxy_protocol;
                refuse rules = "TLVs are not kept", pass_through_tlvs = "TLVs are not kept", disallowed_versions = "versions 1 and 2 are both read";
                harmless stat_prefix = "names a group of stats", tlv_location = "TLVs are not kept"
            });
            ListenerFilterKind::ProxyProtocol { allow_without: allow_requests_without_proxy_protocol }
        }
        _ => {
            return e.unknown(
                &ctx,
                &format!("listener filter '{name}' of type"),
                "envoy.filters.listener.{original_dst, tls_inspector, http_inspector, proxy_protocol}",
            );
        }
    };
    Ok(ListenerFilter { kind, disabled })
}

fn predicate(ctx: &Ctx<'_>, m: pb::ListenerFilterChainMatchPredicate) -> Result<DisabledWhen> {
    use pb::listener_filter_chain_match_predicate::{MatchSet, Rule as R};
    take!(ctx, m, pb::ListenerFilterChainMatchPredicate { rule });
    Ok(match ctx.required("rule", rule)? {
        R::AnyMatch(b) => DisabledWhen::Any(b),
        R::NotMatch(p) => DisabledWhen::Not(Box::new(predicate(&ctx.field("not_match"), *p)?)),
        R::OrMatch(MatchSet { rules }) => {
            DisabledWhen::Or(ctx.field("or_match").each("rules", rules, predicate)?)
        }
        R::AndMatch(MatchSet { rules }) => {
            DisabledWhen::And(ctx.field("and_match").each("rules", rules, predicate)?)
        }
        R::DestinationPortRange(ty::Int32Range { start, end }) => {
            match (u32::try_from(start), u32::try_from(end)) {
                (Ok(s), Ok(e)) if s < e => DisabledWhen::DestinationPort(s, e),
                _ => {
                    return ctx
                        .bad("destination_port_range", format!("[{start}, {end}) is not a range of ports"));
                }
            }
        }
    })
}

fn filter_chain(ctx: &Ctx<'_>, m: pb::FilterChain) -> Result<FilterChain> {
    take!(ctx, m, pb::FilterChain {
        filter_chain_match, filters, metadata, transport_socket, transport_socket_connect_timeout, name;
        refuse use_proxy_proto = "the proxy_protocol listener filter is accepted"
    });
    let filters = ctx.each("filters", filters, network_filter::network_filter)?;
    if let Some(i) = filters.iter().position(network_filter::is_terminal) {
        if i + 1 != filters.len() {
            return ctx.bad("filters", "a terminal filter must be the last one");
        }
    } else if !filters.is_empty() {
        return ctx.bad(
            "filters",
            "the last filter must be terminal: http_connection_manager, tcp_proxy, echo or direct_response",
        );
    }
    Ok(FilterChain {
        name: name.into(),
        matcher: chain_match(&ctx.field("filter_chain_match"), filter_chain_match.unwrap_or_default())?,
        transport: tls::downstream_socket(&ctx.field("transport_socket"), transport_socket)?,
        transport_connect_timeout: ctx.timeout(
            "transport_socket_connect_timeout",
            transport_socket_connect_timeout,
            None,
        )?,
        filters,
        metadata: core::metadata(&ctx.field("metadata"), metadata)?,
    })
}

fn chain_match(ctx: &Ctx<'_>, m: pb::FilterChainMatch) -> Result<ChainMatch> {
    use pb::filter_chain_match::ConnectionSourceType as S;
    take!(ctx, m, pb::FilterChainMatch {
        destination_port, prefix_ranges, direct_source_prefix_ranges, source_type, source_prefix_ranges, source_ports, server_names,
        transport_protocol, application_protocols;
        refuse address_suffix = "prefix_ranges is accepted", suffix_len = "prefix_ranges is accepted"
    });
    let server_names = ctx.each("server_names", server_names, |c, name| {
        let lower = name.to_ascii_lowercase();
        match lower.strip_prefix('*') {
            Some(rest) if rest.starts_with('.') && !rest.contains('*') => Ok(ServerName::Suffix(rest.into())),
            None if !lower.contains('*') && !lower.is_empty() => Ok(ServerName::Exact(lower.into())),
            _ => Err(c.err(format!("{name:?} is not accepted; a name or *.name is (no partial wildcards)"))),
        }
    })?;
    Ok(ChainMatch {
        destination_port: uint(destination_port).map(|p| ctx.port("destination_port", p)).transpose()?,
        prefix_ranges: ctx.each("prefix_ranges", prefix_ranges, core::cidr)?,
        server_names,
        transport_protocol: text(transport_protocol),
        application_protocols: application_protocols.into_iter().map(Arc::from).collect(),
        direct_source_ranges: ctx.each(
            "direct_source_prefix_ranges",
            direct_source_prefix_ranges,
            core::cidr,
        )?,
        source_type: match ctx.enumeration("source_type", source_type)? {
            S::Any => SourceType::Any,
            S::SameIpOrLoopback => SourceType::SameIpOrLoopback,
            S::External => SourceType::External,
        },
        source_ranges: ctx.each("source_prefix_ranges", source_prefix_ranges, core::cidr)?,
        source_ports: ctx.each("source_ports", source_ports, |c, p| c.port("", p))?,
    })
}

/// Two chains with the same match, and two with the same name, are refused, as in Envoy.
fn unique(ctx: &Ctx<'_>, chains: &[Arc<FilterChain>]) -> Result<()> {
    let mut seen = HashSet::new();
    let mut names = HashSet::new();
    for (i, chain) in chains.iter().enumerate() {
        if !seen.insert(format!("{:?}", chain.matcher)) {
            return ctx.bad(
                &format!("filter_chains[{i}].filter_chain_match"),
                "multiple filter chains with the same matching rules are defined",
            );
        }
        if !chain.name.is_empty() && !names.insert(&*chain.name) {
            return ctx.bad(
                &format!("filter_chains[{i}].name"),
                format!("filter chain name {} is used twice", chain.name),
            );
        }
    }
    Ok(())
}
