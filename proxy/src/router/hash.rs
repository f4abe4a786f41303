//! The hash of a request for consistent-hash balancers (`config.route.v3.RouteAction.HashPolicy`), as Envoy computes it:
//! xxHash64 of each source, combined by rotate-and-xor.

use std::net::IpAddr;

use xxhash_rust::xxh64::xxh64;

use crate::config::route::{HashPolicy, HashSource};
use crate::head::Head;
use crate::router::matching::{PathParts, cookie, query_value};
use crate::stream_info::StreamInfo;

/// A request's hash, and the cookie to set where one was made up.
#[derive(Debug, Default)]
pub struct Hashed {
    pub hash: Option<u64>,
    /// A whole `set-cookie` value.
    pub set_cookie: Option<String>,
}

/// Evaluates the policies in order.
pub fn hash(policies: &[HashPolicy], head: &Head, info: &StreamInfo) -> Hashed {
    let mut out = Hashed::default();
    for p in policies {
        let new = match &p.source {
            HashSource::Header { name, rewrite } => header(head, name, rewrite.as_ref()),
            HashSource::Cookie { name, ttl, path, attributes } => match cookie(head, name) {
                Some(v) if !v.is_empty() => Some(xxh64(v, 0)),
                _ => ttl.map(|ttl| {
                    // Envoy makes the value of the connection's addresses, so that one client's requests agree.
                    let seed = format!("{}{}", info.conn.direct_remote, info.conn.direct_local);
                    let value = format!("{:016x}", xxh64(seed.as_bytes(), 0));
                    let mut c = format!("{name}=\"{value}\"");
                    if !ttl.is_zero() {
                        c.push_str(&format!("; Max-Age={}", ttl.as_secs()));
                    }
                    if !path.is_empty() {
                        c.push_str(&format!("; Path={path}"));
                    }
                    for (k, v) in attributes {
                        c.push_str(&if v.is_empty() { format!("; {k}") } else { format!("; {k}={v}") });
                    }
                    c.push_str("; HttpOnly");
                    let h = xxh64(value.as_bytes(), 0);
                    out.set_cookie = Some(c);
                    h
                }),
            },
            HashSource::SourceIp => {
                let ip: IpAddr = info.remote.ip();
                Some(xxh64(ip.to_string().as_bytes(), 0))
            }
            HashSource::Query(name) => {
                query_value(PathParts::of(head.path()).query, name.as_bytes()).map(|v| xxh64(v, 0))
            }
            HashSource::FilterState(key) => {
                info.filter_state.iter().find(|(k, _)| k == key).map(|(_, v)| xxh64(v.as_bytes(), 0))
            }
        };
        if let Some(h) = new {
            out.hash = Some(out.hash.map_or(0, |old| old.rotate_left(1)) ^ h);
            if p.terminal {
                break;
            }
        }
    }
    out
}

fn header(
    head: &Head,
    name: &crate::head::HeaderName,
    rewrite: Option<&crate::config::route::RegexRewrite>,
) -> Option<u64> {
    let mut values: Vec<&[u8]> = head.all(name).collect();
    if values.is_empty() {
        return None;
    }
    if let ([one], Some(r)) = (&values[..], rewrite) {
        let text = std::str::from_utf8(one).ok()?;
        return Some(xxh64(r.pattern.replace_all(text, &*r.substitution).as_bytes(), 0));
    }
    // Several values hash alike whatever their order.
    values.sort_unstable();
    let mut it = values.iter();
    let first = xxh64(it.next()?, 0);
    Some(it.fold(first, |h, v| xxh64(v, h)))
}
