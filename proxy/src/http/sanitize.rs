//! What a connection manager changes in a request's head before anything routes it: hop-by-hop headers, addresses
//! (`x-forwarded-for`, internal or external), `x-envoy-*` sanitising, request id, `via`, client certificate.
//! Follows Envoy's docs configuration/http/http_conn_man/header_sanitizing and headers.

use std::net::{IpAddr, SocketAddr};

use rand::rngs::SmallRng;

use crate::config::hcm::{Hcm, StripPort};
use crate::config::route::RouteConfig;
use crate::head::{Head, HeaderId};
use crate::http::{request_id, xfcc};
use crate::router::host::port_start;
use crate::stream_info::{ConnInfo, StreamInfo};

/// Headers that only internal requests may bring.
const INTERNAL_ONLY: &[HeaderId] = &[
    HeaderId::XEnvoyRetriableStatusCodes,
    HeaderId::XEnvoyRetriableHeaderNames,
    HeaderId::XEnvoyRetryOn,
    HeaderId::XEnvoyRetryGrpcOn,
    HeaderId::XEnvoyMaxRetries,
    HeaderId::XEnvoyUpstreamAltStatName,
    HeaderId::XEnvoyUpstreamRqTimeoutMs,
    HeaderId::XEnvoyUpstreamRqPerTryTimeoutMs,
    HeaderId::XEnvoyUpstreamRqTimeoutAltResponse,
    HeaderId::XEnvoyExpectedRqTimeoutMs,
    HeaderId::XEnvoyForceTrace,
    HeaderId::XEnvoyIpTags,
    HeaderId::XEnvoyOriginalUrl,
    HeaderId::XEnvoyHedgeOnPerTryTimeout,
];

/// Applies it all. `local_ip` is the node's own address, which stands in for a loopback peer in `x-forwarded-for`.
pub fn request(
    hcm: &Hcm,
    routes: Option<&RouteConfig>,
    head: &mut Head,
    info: &mut StreamInfo,
    upgrade: bool,
    local_ip: IpAddr,
    rng: &mut SmallRng,
) {
    hop_by_hop(head, upgrade);
    let conn = info.conn.clone();
    let (remote, trusted_single) = remote_address(hcm, head, &conn, local_ip);
    info.remote = remote;
    scheme_and_proto(hcm, head, &conn);

    let internal = trusted_single && is_internal(hcm, remote.ip());
    let edge = !internal && hcm.use_remote_address;
    info.is_internal = internal;
    if internal {
        head.set(HeaderId::XEnvoyInternal, b"true");
    } else {
        head.remove(HeaderId::XEnvoyInternal);
        if edge {
            head.remove(HeaderId::XEnvoyDecoratorOperation);
            head.remove(HeaderId::XEnvoyDownstreamServiceCluster);
            head.remove(HeaderId::XEnvoyDownstreamServiceNode);
            head.remove(HeaderId::XEnvoyOriginalPath);
        }
        head.retain(|id, _, _| !INTERNAL_ONLY.contains(&id));
        for name in routes.iter().flat_map(|r| &r.internal_only_headers) {
            head.remove_name(name);
        }
    }
    if edge {
        let text = remote.ip().to_canonical().to_string();
        head.set(HeaderId::XEnvoyExternalAddress, text.as_bytes());
    }
    if let Some(via) = &hcm.via {
        let joined = match head.get(HeaderId::Via) {
            Some(v) => [v, b", ", via.as_bytes()].concat(),
            None => via.as_bytes().to_vec(),
        };
        head.set(HeaderId::Via, &joined);
    }
    request_id::set(hcm, head, edge, rng);
    xfcc::apply(hcm, head, &conn);
}

/// Removes what belongs to one hop. `te: trailers` may pass.
pub fn hop_by_hop(head: &mut Head, upgrade: bool) {
    if !upgrade {
        head.remove(HeaderId::Connection);
        head.remove(HeaderId::Upgrade);
    }
    head.remove(HeaderId::KeepAlive);
    head.remove(HeaderId::ProxyConnection);
    head.remove(HeaderId::TransferEncoding);
    if head.get(HeaderId::Te).is_some_and(|te| {
        !te.split(|b| *b == b',').any(|t| {
            t.split(|b| *b == b';').next().unwrap_or_default().trim_ascii().eq_ignore_ascii_case(b"trailers")
        })
    }) {
        head.remove(HeaderId::Te);
    } else if head.contains(HeaderId::Te) {
        head.set(HeaderId::Te, b"trailers");
    }
}

/// The downstream address, and whether it may be judged internal (it is the only one in the chain).
fn remote_address(hcm: &Hcm, head: &mut Head, conn: &ConnInfo, local_ip: IpAddr) -> (SocketAddr, bool) {
    if !hcm.use_remote_address {
        return match last_address(head, hcm.xff_num_trusted_hops) {
            Some((ip, single)) => (SocketAddr::new(ip, 0), single),
            None => (conn.remote, false),
        };
    }
    let single = !head.contains(HeaderId::XForwardedFor);
    let mut remote = conn.remote;
    if hcm.xff_num_trusted_hops > 0
        && let Some((ip, _)) = last_address(head, hcm.xff_num_trusted_hops - 1)
    {
        remote = SocketAddr::new(ip, 0);
    }
    if !hcm.skip_xff_append && !conn.is_unix {
        let mut ip = conn.remote.ip();
        if ip.is_loopback() {
            ip = local_ip;
        }
        if hcm.represent_ipv4_as_mapped
            && let IpAddr::V4(v4) = ip
        {
            ip = IpAddr::V6(v4.to_ipv6_mapped());
        }
        append_xff(head, ip);
    }
    if hcm.append_x_forwarded_port && !head.contains(HeaderId::XForwardedPort) {
        let port = conn.local.port().to_string();
        head.set(HeaderId::XForwardedPort, port.as_bytes());
    }
    (remote, single)
}

fn append_xff(head: &mut Head, ip: IpAddr) {
    let text = ip.to_string();
    let joined = match head.joined(&crate::head::HeaderName::new("x-forwarded-for")) {
        Some(v) if !v.is_empty() => [&v[..], b",", text.as_bytes()].concat(),
        _ => text.into_bytes(),
    };
    head.set(HeaderId::XForwardedFor, &joined);
}

/// The address `skip` places from the end of `x-forwarded-for`, and whether it is the only one.
fn last_address(head: &Head, skip: u32) -> Option<(IpAddr, bool)> {
    let value = head.get_str(HeaderId::XForwardedFor)?;
    let mut parts = value.rsplit(',');
    let wanted = parts.nth(skip as usize)?.trim();
    let ip: IpAddr = wanted.trim_start_matches('[').trim_end_matches(']').parse().ok()?;
    Some((ip, !value.contains(',')))
}

fn is_internal(hcm: &Hcm, ip: IpAddr) -> bool {
    hcm.internal_ranges.iter().any(|r| r.contains(ip))
}

fn scheme_and_proto(hcm: &Hcm, head: &mut Head, conn: &ConnInfo) {
    let transport: &[u8] = if conn.tls.is_some() { b"https" } else { b"http" };
    let trusted = hcm.xff_num_trusted_hops > 0;
    if hcm.use_remote_address && !trusted {
        head.set(HeaderId::XForwardedProto, transport);
    }
    if !head.get(HeaderId::XForwardedProto).is_some_and(|p| matches!(p, b"http" | b"https")) {
        head.set(HeaderId::XForwardedProto, transport);
    }
    if let Some(s) = &hcm.scheme_overwrite {
        head.set(HeaderId::Scheme, s.as_bytes());
    }
    let proto: &'static [u8] =
        if head.get(HeaderId::XForwardedProto) == Some(b"https") { b"https" } else { b"http" };
    if !head.get(HeaderId::Scheme).is_some_and(|s| matches!(s, b"http" | b"https")) {
        head.set(HeaderId::Scheme, proto);
    }
}

/// `strip_any_host_port`, `strip_matching_host_port`, `strip_trailing_host_dot`.
pub fn host(hcm: &Hcm, head: &mut Head, local_port: u16) {
    if hcm.strip_port == StripPort::None && !hcm.strip_trailing_host_dot {
        return;
    }
    let mut authority = head.authority().to_vec();
    let before = authority.len();
    if hcm.strip_trailing_host_dot {
        match port_start(&authority) {
            Some(i) if i > 0 && authority[i - 1] == b'.' => {
                authority.remove(i - 1);
            }
            None if authority.last() == Some(&b'.') => {
                authority.pop();
            }
            _ => {}
        }
    }
    if let Some(i) = port_start(&authority) {
        let matching =
            std::str::from_utf8(&authority[i + 1..]).ok().and_then(|p| p.parse().ok()) == Some(local_port);
        match hcm.strip_port {
            StripPort::Any => authority.truncate(i),
            StripPort::Matching if matching => authority.truncate(i),
            StripPort::Matching | StripPort::None => {}
        }
    }
    if authority.len() != before {
        head.set(HeaderId::Authority, &authority);
    }
}
