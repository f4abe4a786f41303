//! Rewrites of path and host that a route asks for (`prefix_rewrite`, `regex_rewrite`, `path_rewrite_policy`, host rewrites).

use std::sync::Arc;

use crate::config::route::{Forward, HostRewrite, PathMatch, PathRewrite, RegexRewrite, Route, TemplatePart};
use crate::head::{Head, HeaderId};
use crate::router::matching::PathParts;

/// Applies the route's path rewrite; the former path goes to `x-envoy-original-path` unless it is there or suppressed.
pub fn path(forward: &Forward, route: &Route, head: &mut Head, suppress_envoy_headers: bool) {
    let full = head.path();
    let parts = PathParts::of(full);
    let new_path = match &forward.path_rewrite {
        PathRewrite::None => None,
        PathRewrite::Prefix(p) => prefix(&route.matcher.path, p, parts.path),
        PathRewrite::Regex(r) => regex(r, parts.path),
        PathRewrite::Template(t) => template(&route.matcher.path, t, parts.path),
    };
    let Some(mut new_path) = new_path else { return };
    new_path.extend_from_slice(&full[parts.path.len()..]);
    let old = full.to_vec();
    if !suppress_envoy_headers && !head.contains(HeaderId::XEnvoyOriginalPath) {
        head.set(HeaderId::XEnvoyOriginalPath, &old);
    }
    head.set(HeaderId::Path, &new_path);
}

/// Replaces the part of `path` that the route's matcher matched.
pub fn prefix(matcher: &PathMatch, new: &str, path: &[u8]) -> Option<Vec<u8>> {
    let matched = match matcher {
        PathMatch::Exact(p) | PathMatch::Prefix(p) | PathMatch::SeparatedPrefix(p) => p.len(),
        PathMatch::Regex(_) | PathMatch::UriTemplate(_) => path.len(),
        PathMatch::Connect => return None,
    };
    Some([new.as_bytes(), path.get(matched..).unwrap_or_default()].concat())
}

/// Substitutes every match of the pattern.
pub fn regex(r: &RegexRewrite, path: &[u8]) -> Option<Vec<u8>> {
    let path = std::str::from_utf8(path).ok()?;
    Some(r.pattern.replace_all(path, &*r.substitution).into_owned().into_bytes())
}

fn template(matcher: &PathMatch, parts: &[TemplatePart], path: &[u8]) -> Option<Vec<u8>> {
    let PathMatch::UriTemplate(r) = matcher else { return None };
    let captures = r.captures(std::str::from_utf8(path).ok()?)?;
    let mut out = Vec::with_capacity(path.len());
    for part in parts {
        match part {
            TemplatePart::Literal(s) => out.extend_from_slice(s.as_bytes()),
            TemplatePart::Variable(v) => out.extend_from_slice(captures.name(v)?.as_str().as_bytes()),
        }
    }
    Some(out)
}

/// Applies the route's host rewrite. `Auto` is applied when the endpoint is known, by `set_host`.
pub fn host(forward: &Forward, weighted: Option<&Arc<str>>, head: &mut Head) {
    if let Some(h) = weighted {
        // Unlike a route's own rewrite, this one leaves no trace of the former host.
        head.set(HeaderId::Authority, h.as_bytes());
        return;
    }
    let new = match &forward.host_rewrite {
        HostRewrite::None | HostRewrite::Auto => return,
        HostRewrite::Literal(h) => h.as_bytes().to_vec(),
        HostRewrite::Header(name) => match head.get_name(name) {
            Some(v) if !v.is_empty() => v.to_vec(),
            _ => return,
        },
        HostRewrite::PathRegex(r) => {
            let p = PathParts::of(head.path()).path.to_vec();
            match regex(r, &p) {
                Some(h) => h,
                None => return,
            }
        }
    };
    set_host(head, &new, forward.append_x_forwarded_host);
}

/// Sets `:authority`, keeping the former in `x-forwarded-host` where asked.
pub fn set_host(head: &mut Head, new: &[u8], append_x_forwarded_host: bool) {
    let old = head.authority().to_vec();
    if !head.contains(HeaderId::XEnvoyOriginalHost) && !old.is_empty() && old != new {
        head.set(HeaderId::XEnvoyOriginalHost, &old);
    }
    if append_x_forwarded_host && !old.is_empty() && old != new {
        match head.get(HeaderId::XForwardedHost) {
            // Repeated rewrites of retries and redirects add the same host once.
            Some(v) if v.rsplit(|b| *b == b',').next() == Some(&old[..]) => {}
            Some(v) => {
                let joined = [v, b",", &old].concat();
                head.set(HeaderId::XForwardedHost, &joined);
            }
            None => head.set(HeaderId::XForwardedHost, &old),
        }
    }
    head.set(HeaderId::Authority, new);
}
