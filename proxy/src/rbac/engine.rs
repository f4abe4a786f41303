//! The decision: which policy of a rule set a request or connection matches.

use std::net::IpAddr;

use crate::config::filter::{
    MetadataMatcher, Permission, Principal, RbacAction, RbacPolicy, RbacRules, ValueMatcher,
};
use crate::config::matcher::StringMatcher;
use crate::head::Head;
use crate::router::matching::{PathParts, header_matches};
use crate::stream_info::StreamInfo;

/// What a rule set says.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Decision<'a> {
    pub allowed: bool,
    /// The policy that matched.
    pub policy: Option<&'a str>,
}

/// Decides. `head` is `None` for a connection without HTTP.
pub fn decide<'a>(rules: &'a RbacRules, head: Option<&Head>, info: &StreamInfo) -> Decision<'a> {
    let matched = rules.policies.iter().find(|(_, p)| policy_matches(p, head, info)).map(|(n, _)| &**n);
    let allowed = match rules.action {
        RbacAction::Allow => matched.is_some(),
        RbacAction::Deny => matched.is_none(),
        RbacAction::Log => true,
    };
    Decision { allowed, policy: matched }
}

fn policy_matches(p: &RbacPolicy, head: Option<&Head>, info: &StreamInfo) -> bool {
    p.permissions.iter().any(|x| permission(x, head, info))
        && p.principals.iter().any(|x| principal(x, head, info))
}

fn permission(p: &Permission, head: Option<&Head>, info: &StreamInfo) -> bool {
    match p {
        Permission::And(all) => all.iter().all(|x| permission(x, head, info)),
        Permission::Or(any) => any.iter().any(|x| permission(x, head, info)),
        Permission::Any(b) => *b,
        Permission::Not(x) => !permission(x, head, info),
        Permission::Header(m) => header_matches(m, head.unwrap_or(&EMPTY)),
        Permission::UrlPath(m) => url_path(m, head),
        Permission::UriTemplate(r) => head
            .and_then(|h| std::str::from_utf8(PathParts::of(h.path()).path).ok())
            .is_some_and(|path| r.is_match(path)),
        Permission::DestinationIp(c) => c.contains(info.conn.local.ip()),
        Permission::DestinationPort(port) => info.conn.local.port() == *port,
        Permission::DestinationPortRange(start, end) => {
            (*start..*end).contains(&u32::from(info.conn.local.port()))
        }
        Permission::ServerName(m) => m.matches(info.conn.sni.as_deref().unwrap_or_default().as_bytes()),
        Permission::Metadata(m) => metadata(m, info),
    }
}

static EMPTY: std::sync::LazyLock<Head> = std::sync::LazyLock::new(Head::new);

fn principal(p: &Principal, head: Option<&Head>, info: &StreamInfo) -> bool {
    let within = |c: &crate::config::address::Cidr, ip: IpAddr| c.contains(ip);
    match p {
        Principal::And(all) => all.iter().all(|x| principal(x, head, info)),
        Principal::Or(any) => any.iter().any(|x| principal(x, head, info)),
        Principal::Any(b) => *b,
        Principal::Not(x) => !principal(x, head, info),
        Principal::Authenticated(m) => authenticated(m.as_ref(), info),
        Principal::DirectRemoteIp(c) => within(c, info.conn.direct_remote.ip()),
        Principal::SourceIp(c) => within(c, info.conn.remote.ip()),
        Principal::RemoteIp(c) => within(c, info.remote.ip()),
        Principal::Header(m) => header_matches(m, head.unwrap_or(&EMPTY)),
        Principal::UrlPath(m) => url_path(m, head),
        Principal::Metadata(m) => metadata(m, info),
        Principal::FilterState(key, m) => {
            info.filter_state.iter().any(|(k, v)| k == key && m.matches(v.as_bytes()))
        }
    }
}

/// The peer's identity: URI SANs, else DNS SANs, else the subject. Without TLS nobody is authenticated.
fn authenticated(m: Option<&StringMatcher>, info: &StreamInfo) -> bool {
    let Some(tls) = info.conn.tls.as_deref() else { return false };
    let Some(m) = m else { return !tls.peer_chain.is_empty() };
    if !tls.peer_uri_sans.is_empty() && tls.peer_uri_sans.iter().any(|s| m.matches(s.as_bytes())) {
        return true;
    }
    if !tls.peer_dns_sans.is_empty() && tls.peer_dns_sans.iter().any(|s| m.matches(s.as_bytes())) {
        return true;
    }
    m.matches(tls.peer_subject.as_bytes())
}

fn url_path(m: &StringMatcher, head: Option<&Head>) -> bool {
    head.is_some_and(|h| m.matches(PathParts::of(h.path()).path))
}

fn metadata(m: &MetadataMatcher, info: &StreamInfo) -> bool {
    let mut value = info.metadata.as_ref().and_then(|all| all.get(&*m.filter));
    for key in &m.path {
        value = value.and_then(|v| v.get(&**key));
    }
    value_matches(&m.value, value) != m.invert
}

fn value_matches(m: &ValueMatcher, value: Option<&serde_json::Value>) -> bool {
    use serde_json::Value;
    match (m, value) {
        (ValueMatcher::Present(want), v) => v.is_some() == *want,
        (ValueMatcher::Null, Some(Value::Null)) => true,
        (ValueMatcher::Double(d), Some(v)) => v.as_f64() == Some(*d),
        (ValueMatcher::DoubleRange(a, b), Some(v)) => v.as_f64().is_some_and(|v| (*a..*b).contains(&v)),
        (ValueMatcher::String(s), Some(Value::String(v))) => s.matches(v.as_bytes()),
        (ValueMatcher::Bool(b), Some(v)) => v.as_bool() == Some(*b),
        (ValueMatcher::ListOneOf(inner), Some(Value::Array(list))) => {
            list.iter().any(|v| value_matches(inner, Some(v)))
        }
        (ValueMatcher::Or(any), v) => any.iter().any(|m| value_matches(m, v)),
        _ => false,
    }
}
