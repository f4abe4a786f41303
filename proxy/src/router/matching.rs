//! Which route of a virtual host a request takes: the first whose match holds (`config.route.v3.RouteMatch`).

use std::sync::Arc;

use crate::config::matcher::{HeaderMatch, HeaderMatcher, QueryMatcher};
use crate::config::route::{PathMatch, Route, RouteMatch, VirtualHost};
use crate::head::{Head, HeaderId};
use crate::stream_info::ConnInfo;

/// The path of a request split as routes see it.
#[derive(Clone, Copy, Debug)]
pub struct PathParts<'a> {
    /// Without query and fragment.
    pub path: &'a [u8],
    /// Behind the `?`.
    pub query: Option<&'a [u8]>,
}

impl<'a> PathParts<'a> {
    /// Splits `:path`.
    pub fn of(full: &'a [u8]) -> PathParts<'a> {
        // Envoy matches up to the first `?` or `#`.
        let end = full.iter().position(|b| matches!(b, b'?' | b'#')).unwrap_or(full.len());
        let query = (full.get(end) == Some(&b'?')).then(|| {
            let q = &full[end + 1..];
            &q[..q.iter().position(|b| *b == b'#').unwrap_or(q.len())]
        });
        PathParts { path: &full[..end], query }
    }
}

/// Finds the first route that matches. `random` decides runtime fractions.
pub fn find<'a>(
    vhost: &'a VirtualHost,
    head: &Head,
    conn: &ConnInfo,
    ignore_path_parameters: bool,
    random: u64,
) -> Option<&'a Arc<Route>> {
    let mut parts = PathParts::of(head.path());
    if ignore_path_parameters {
        let end = parts.path.iter().position(|b| *b == b';').unwrap_or(parts.path.len());
        parts.path = &parts.path[..end];
    }
    vhost.routes.iter().find(|r| matches(&r.matcher, head, parts, conn, random))
}

fn matches(m: &RouteMatch, head: &Head, parts: PathParts<'_>, conn: &ConnInfo, random: u64) -> bool {
    path_matches(m, head, parts.path)
        && m.fraction.is_none_or(|f| f.hit(random))
        && (!m.grpc || is_grpc(head))
        && m.headers.iter().all(|h| header_matches(h, head))
        && (m.query.is_empty() || query_matches(&m.query, parts.query))
        && m.cookies
            .iter()
            .all(|(name, matcher, invert)| cookie(head, name).is_some_and(|v| matcher.matches(v)) != *invert)
        && m.tls_presented
            .is_none_or(|want| conn.tls.as_ref().is_some_and(|t| !t.peer_chain.is_empty()) == want)
        && m.tls_validated.is_none_or(|want| conn.tls.as_ref().is_some_and(|t| t.peer_validated) == want)
}

fn path_matches(m: &RouteMatch, head: &Head, path: &[u8]) -> bool {
    fn starts(path: &[u8], prefix: &[u8], case_sensitive: bool) -> bool {
        path.get(..prefix.len())
            .is_some_and(|p| if case_sensitive { p == prefix } else { p.eq_ignore_ascii_case(prefix) })
    }
    match &m.path {
        PathMatch::Prefix(p) => starts(path, p.as_bytes(), m.case_sensitive) && !is_connect(head),
        PathMatch::Exact(p) => {
            path.len() == p.len() && starts(path, p.as_bytes(), m.case_sensitive) && !is_connect(head)
        }
        PathMatch::SeparatedPrefix(p) => {
            starts(path, p.as_bytes(), m.case_sensitive) && (path.len() == p.len() || path[p.len()] == b'/')
        }
        PathMatch::Regex(r) => std::str::from_utf8(path).is_ok_and(|p| r.is_match(p)),
        PathMatch::UriTemplate(r) => std::str::from_utf8(path).is_ok_and(|p| r.is_match(p)),
        PathMatch::Connect => is_connect(head) || head.contains(HeaderId::Protocol),
    }
}

/// A classic CONNECT has no path: only `connect_matcher` takes it. Extended CONNECT is a normal request here.
fn is_connect(head: &Head) -> bool {
    head.method() == b"CONNECT" && !head.contains(HeaderId::Protocol) && head.path().is_empty()
}

/// Whether the content type is `application/grpc` or `application/grpc+…`.
pub fn is_grpc(head: &Head) -> bool {
    let Some(ct) = head.get(HeaderId::ContentType) else { return false };
    ct.strip_prefix(b"application/grpc").is_some_and(|rest| rest.is_empty() || rest[0] == b'+')
}

/// `config.route.v3.HeaderMatcher` against a head.
pub fn header_matches(m: &HeaderMatcher, head: &Head) -> bool {
    let value = head.joined(&m.name);
    if value.is_none() && !m.treat_missing_as_empty {
        // A missing header fails the match, inverted or not, but for `present_match`.
        return match m.kind {
            HeaderMatch::Present(want) => want == m.invert,
            HeaderMatch::String(_) | HeaderMatch::Range { .. } => false,
        };
    }
    let hit = match &m.kind {
        HeaderMatch::Present(want) => value.is_some() == *want,
        // A repeated header matches as a whole or by any of its values.
        HeaderMatch::String(s) => {
            s.matches(value.as_deref().unwrap_or_default()) || head.all(&m.name).any(|v| s.matches(v))
        }
        HeaderMatch::Range { start, end } => std::str::from_utf8(value.as_deref().unwrap_or_default())
            .ok()
            .and_then(|v| v.trim_matches(' ').parse::<i64>().ok())
            .is_some_and(|v| (*start..*end).contains(&v)),
    };
    hit != m.invert
}

/// All query matchers hold. Envoy decodes percent escapes of neither names nor values.
fn query_matches(matchers: &[QueryMatcher], query: Option<&[u8]>) -> bool {
    matchers.iter().all(|m| {
        query_value(query, m.name.as_bytes()).is_some_and(|v| m.value.as_ref().is_none_or(|s| s.matches(v)))
    })
}

/// The first value of a query parameter; empty without `=`.
pub fn query_value<'a>(query: Option<&'a [u8]>, name: &[u8]) -> Option<&'a [u8]> {
    query?.split(|b| *b == b'&').find_map(|pair| {
        let mut halves = pair.splitn(2, |b| *b == b'=');
        (halves.next()? == name).then(|| halves.next().unwrap_or_default())
    })
}

/// The first value of a request cookie, quotes stripped.
pub fn cookie<'a>(head: &'a Head, name: &str) -> Option<&'a [u8]> {
    head.all_id(HeaderId::Cookie).find_map(|line| {
        line.split(|b| *b == b';').find_map(|pair| {
            let mut halves = pair.splitn(2, |b| *b == b'=');
            let key = halves.next()?.trim_ascii();
            let value = halves.next()?.trim_ascii();
            let bare = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value);
            (key == name.as_bytes()).then_some(bare)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::matcher::StringMatcher;
    use crate::head::HeaderName;

    fn head(fields: &[(&str, &str)]) -> Head {
        let mut h = Head::new();
        for (n, v) in fields {
            h.append(n.as_bytes(), v.as_bytes());
        }
        h
    }

    #[test]
    fn header_matchers_follow_envoys_rules_for_missing_and_inverted() {
        let exact = HeaderMatch::String(StringMatcher::Exact { value: "v".into(), ignore_case: false });
        let with = head(&[("x-a", "v")]);
        let other = head(&[("x-a", "w")]);
        let without = head(&[]);
        let m = |kind: HeaderMatch, invert, empty| HeaderMatcher {
            name: HeaderName::new("x-a"),
            kind,
            invert,
            treat_missing_as_empty: empty,
        };
        assert!(header_matches(&m(exact.clone(), false, false), &with));
        assert!(!header_matches(&m(exact.clone(), true, false), &with));
        assert!(header_matches(&m(exact.clone(), true, false), &other));
        assert!(!header_matches(&m(exact.clone(), true, false), &without));
        assert!(!header_matches(&m(exact, false, false), &without));
        assert!(header_matches(&m(HeaderMatch::Present(false), false, false), &without));
        assert!(!header_matches(&m(HeaderMatch::Present(true), false, false), &without));
        let range = HeaderMatch::Range { start: -5, end: 10 };
        for (v, hit) in [("-5", true), ("9", true), ("10", false), ("x", false), ("", false)] {
            assert_eq!(header_matches(&m(range.clone(), false, false), &head(&[("x-a", v)])), hit, "{v}");
        }
    }

    #[test]
    fn cookies_and_queries_are_found() {
        let h = head(&[("cookie", "a=1; sid=\"x y\""), ("cookie", "b=2")]);
        assert_eq!(cookie(&h, "sid"), Some(&b"x y"[..]));
        assert_eq!(cookie(&h, "b"), Some(&b"2"[..]));
        assert_eq!(cookie(&h, "c"), None);
        let p = PathParts::of(b"/p?x=1&y&z=a=b#f");
        assert_eq!(p.path, b"/p");
        assert_eq!(query_value(p.query, b"y"), Some(&b""[..]));
        assert_eq!(query_value(p.query, b"z"), Some(&b"a=b"[..]));
        assert_eq!(query_value(p.query, b"f"), None);
    }
}
