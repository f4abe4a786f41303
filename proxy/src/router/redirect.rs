//! Redirect responses: the `location` of `config.route.v3.RedirectAction`.

use crate::config::route::{PathMatch, Redirect, RedirectPath, Route};
use crate::head::{Head, HeaderId};
use crate::router::host::port_start;
use crate::router::matching::PathParts;
use crate::router::rewrite;

/// The redirect's target.
pub fn location(redirect: &Redirect, route: &Route, head: &Head) -> Vec<u8> {
    let original_scheme = head.get(HeaderId::Scheme).unwrap_or(b"http");
    let scheme: &[u8] = if redirect.https {
        b"https"
    } else {
        redirect.scheme.as_ref().map_or(original_scheme, |s| s.as_bytes())
    };
    let authority = head.authority();
    let mut host = authority.to_vec();
    let mut port = Vec::new();
    if let Some(i) = port_start(authority) {
        // The scheme's change makes its default port meaningless.
        let default_before: &[u8] = if original_scheme == b"https" { b":443" } else { b":80" };
        if !(scheme != original_scheme && &authority[i..] == default_before) {
            port = authority[i..].to_vec();
        }
        host.truncate(i);
    }
    if let Some(h) = &redirect.host {
        host = h.as_bytes().to_vec();
        port.clear();
    }
    if let Some(p) = redirect.port {
        port = format!(":{p}").into_bytes();
    }
    let mut out = [scheme, b"://", &host, &port].concat();
    let full = head.path();
    let parts = PathParts::of(full);
    let replaced: Option<Vec<u8>> = match &redirect.path {
        RedirectPath::Keep => None,
        RedirectPath::Replace(p) => {
            out.extend_from_slice(p.as_bytes());
            // A path redirect with a query of its own takes no other.
            if !redirect.strip_query && !p.contains('?') {
                push_query(&mut out, parts.query);
            }
            return out;
        }
        RedirectPath::Prefix(p) => rewrite::prefix(&route.matcher.path, p, parts.path),
        RedirectPath::Regex(r) => rewrite::regex(r, parts.path),
    };
    out.extend_from_slice(replaced.as_deref().unwrap_or(parts.path));
    if !redirect.strip_query {
        push_query(&mut out, parts.query);
    }
    out
}

fn push_query(out: &mut Vec<u8>, query: Option<&[u8]>) {
    if let Some(q) = query {
        out.push(b'?');
        out.extend_from_slice(q);
    }
}

/// Whether a path matcher has a fixed prefix that can be replaced.
pub fn has_prefix(m: &PathMatch) -> bool {
    matches!(m, PathMatch::Exact(_) | PathMatch::Prefix(_) | PathMatch::SeparatedPrefix(_))
}
