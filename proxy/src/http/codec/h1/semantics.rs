//! What a head means: framing, tunnels, keep-alive, the target's parts, and the rules that Envoy's codec holds it to.
//!
//! The order of the checks is Envoy's (`ConnectionImpl::onHeadersComplete`, `ServerConnectionImpl::onHeadersCompleteBase`):
//! a head that breaks two rules is answered for the first.

use super::super::{Http1Error, RequestMeta, ResponseMeta, Tunnel};
use super::Options;
use super::body::Framing;
use super::parse::Version;
use crate::config::hcm::Protocol;
use crate::head::{Head, HeaderId};

/// The comma-separated tokens of a value, trimmed.
pub(super) fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|t| !t.is_empty())
}

fn has_token(head: &Head, id: HeaderId, token: &[u8]) -> bool {
    head.get(id).is_some_and(|v| tokens(v).any(|t| t.eq_ignore_ascii_case(token)))
}

/// Whether the head asks for an upgrade.
pub(in crate::http::codec) fn is_upgrade(head: &Head) -> bool {
    head.contains(HeaderId::Upgrade) && has_token(head, HeaderId::Connection, b"upgrade")
}

/// Whether the sender will close the connection behind this message.
fn keep_alive(head: &Head, version: Version) -> bool {
    if !head.contains(HeaderId::Connection) && !head.contains(HeaderId::ProxyConnection) {
        return version == Version::Http11;
    }
    let says = |token| {
        has_token(head, HeaderId::Connection, token) || has_token(head, HeaderId::ProxyConnection, token)
    };
    !says(b"close") && (version == Version::Http11 || says(b"keep-alive"))
}

/// Decimal digits that fit 64 bits, nothing else.
fn content_length(value: &[u8]) -> Result<u64, Http1Error> {
    if value.is_empty() {
        return Err(Http1Error::Syntax);
    }
    value
        .iter()
        .try_fold(0u64, |n, b| {
            let digit = b.is_ascii_digit().then(|| u64::from(b - b'0'))?;
            n.checked_mul(10)?.checked_add(digit)
        })
        .ok_or(Http1Error::Syntax)
}

/// Content-Length and Transfer-Encoding, agreed on: what both sides of a connection check alike.
fn declared(head: &mut Head, options: &Options, connect: bool) -> Result<Framing, Http1Error> {
    let length = head.get(HeaderId::ContentLength).map(content_length).transpose()?;
    let Some(coding) = head.get(HeaderId::TransferEncoding) else {
        return Ok(length.map_or(Framing::None, Framing::Length));
    };
    let chunked = coding.eq_ignore_ascii_case(b"chunked");
    if length.is_some() {
        if !(chunked && options.http1.allow_chunked_length) {
            return Err(Http1Error::ChunkedWithContentLength);
        }
        head.remove(HeaderId::ContentLength);
    }
    if !chunked || connect {
        return Err(Http1Error::InvalidTransferEncoding);
    }
    Ok(Framing::Chunked)
}

/// Judges a request's head and brings it into Envoy's form: `:authority` and `:path` from an absolute target, h2c offers and
/// headers that `Connection` names taken out.
pub(super) fn request(
    head: &mut Head,
    version: Version,
    options: &Options,
) -> Result<(RequestMeta, Framing), Http1Error> {
    let connect = head.method() == b"CONNECT";
    let mut tunnel = if connect { Tunnel::Connect } else { Tunnel::No };
    if version == Version::Http11 && head.contains(HeaderId::Upgrade) && is_upgrade(head) {
        if head.get(HeaderId::Upgrade).is_some_and(|v| v.eq_ignore_ascii_case(b"h2c")) {
            remove_h2c(head);
        } else if !connect {
            tunnel = Tunnel::Upgrade;
        }
    }
    if connect {
        match head.get(HeaderId::ContentLength) {
            Some(b"0") => drop(head.remove(HeaderId::ContentLength)),
            Some(_) => return Err(Http1Error::BodyDisallowed),
            None => {}
        }
    }
    let declared = declared(head, options, connect)?;
    let keep_alive = keep_alive(head, version);
    if tunnel == Tunnel::No && head.contains(HeaderId::Connection) {
        sanitize_connection(head)?;
    }
    target(head, options, connect)?;
    if let Some(authority) = head.get(HeaderId::Authority)
        && !valid_authority(authority)
    {
        return Err(Http1Error::InvalidAuthority);
    }
    if version == Version::Http10 {
        if !options.http1.accept_http_10 {
            return Err(Http1Error::LowVersion);
        }
        if head.authority().is_empty()
            && let Some(host) = &options.http1.default_host_for_http_10
        {
            head.set(HeaderId::Authority, host.as_bytes());
        }
    }
    let framing = if tunnel == Tunnel::No { declared } else { Framing::UntilClose };
    let meta = RequestMeta {
        protocol: if version == Version::Http11 { Protocol::Http11 } else { Protocol::Http10 },
        end: matches!(framing, Framing::None | Framing::Length(0)),
        tunnel,
        expect_continue: head.get(HeaderId::Expect).is_some_and(|v| v.eq_ignore_ascii_case(b"100-continue")),
        keep_alive: keep_alive && tunnel == Tunnel::No,
    };
    Ok((meta, framing))
}

/// What a client remembers of its request to understand the response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) head: bool,
    pub(super) connect: bool,
    pub(super) upgrade: bool,
}

/// Judges a response's head. The last value says whether the server keeps the connection.
pub(super) fn response(
    head: &mut Head,
    version: Version,
    options: &Options,
    asked: Asked,
) -> Result<(ResponseMeta, Framing, bool), Http1Error> {
    let status = head.status().unwrap_or_default();
    let declared_framing = declared(head, options, false)?;
    let declares = declared_framing != Framing::None;
    if status < 200 || status == 204 {
        no_body_declared(head, declared_framing)?;
    }
    let informational = (100..200).contains(&status) && status != 101;
    let switched = status == 101 && asked.upgrade;
    let framing = if switched || (asked.connect && (200..300).contains(&status)) {
        Framing::UntilClose
    } else if status < 200 || asked.head || status == 204 || status == 304 {
        Framing::None
    } else if declares {
        declared_framing
    } else {
        Framing::UntilClose
    };
    let keep = keep_alive(head, version) && framing != Framing::UntilClose && status != 101;
    let end = matches!(framing, Framing::None | Framing::Length(0)) && !informational;
    Ok((ResponseMeta { status, end, informational }, framing, keep))
}

/// For 1xx and 204, which have no body: a length of zero is removed, anything else is an error.
fn no_body_declared(head: &mut Head, declared: Framing) -> Result<(), Http1Error> {
    match declared {
        Framing::Chunked => Err(Http1Error::TransferEncodingNotAllowed),
        Framing::Length(1..) => Err(Http1Error::ContentLengthNotAllowed),
        Framing::Length(0) | Framing::None | Framing::UntilClose => {
            head.remove(HeaderId::ContentLength);
            Ok(())
        }
    }
}

/// Envoy does not take up h2c; the request goes on as HTTP/1.1 without the offer.
fn remove_h2c(head: &mut Head) {
    head.remove(HeaderId::Upgrade);
    head.remove(HeaderId::Http2Settings);
    rewrite_connection(head, |t| {
        !t.eq_ignore_ascii_case(b"upgrade") && !t.eq_ignore_ascii_case(b"http2-settings")
    });
}

/// Keeps the tokens of `Connection` that `keep` says; removes the header when none is left.
fn rewrite_connection(head: &mut Head, keep: impl Fn(&[u8]) -> bool) {
    let Some(value) = head.get(HeaderId::Connection) else { return };
    let kept: Vec<&[u8]> = tokens(value).filter(|t| keep(t)).collect();
    let joined = kept.join(&b","[..]);
    if joined.is_empty() {
        head.remove(HeaderId::Connection);
    } else {
        head.set(HeaderId::Connection, &joined);
    }
}

/// Most tokens that `Connection` may have, less one.
const MAX_NOMINATED: usize = 10;
/// Largest `TE` that may be nominated, bytes, less one.
const MAX_TE: usize = 256;

/// Removes the headers that `Connection` nominates (`Utility::sanitizeConnectionHeader`): `TE` keeps `trailers`; nominating
/// `X-Forwarded-*` or a pseudo-header is an attack.
fn sanitize_connection(head: &mut Head) -> Result<(), Http1Error> {
    let value = head.get(HeaderId::Connection).unwrap_or_default();
    // The usual values nominate nothing.
    if value.eq_ignore_ascii_case(b"keep-alive") || value.eq_ignore_ascii_case(b"close") {
        return Ok(());
    }
    let value = value.to_vec();
    if tokens(&value).count() >= MAX_NOMINATED {
        return Err(Http1Error::ConnectionHeader);
    }
    let mut removed: Vec<&[u8]> = Vec::new();
    for token in tokens(&value) {
        match HeaderId::lookup(token) {
            HeaderId::KeepAlive | HeaderId::Upgrade | HeaderId::Http2Settings => {}
            _ if token.eq_ignore_ascii_case(b"close") => {}
            HeaderId::Connection => removed.push(token),
            HeaderId::XForwardedFor | HeaderId::XForwardedHost | HeaderId::XForwardedProto => {
                return Err(Http1Error::ConnectionHeader);
            }
            _ if token.starts_with(b":") => return Err(Http1Error::ConnectionHeader),
            HeaderId::Te => {
                let Some(te) = head.get(HeaderId::Te) else { continue };
                if te.len() >= MAX_TE {
                    return Err(Http1Error::ConnectionHeader);
                }
                if tokens(te).any(|t| t.eq_ignore_ascii_case(b"trailers")) {
                    head.set(HeaderId::Te, b"trailers");
                } else {
                    removed.push(token);
                }
            }
            HeaderId::Host => {
                head.remove(HeaderId::Authority);
                removed.push(token);
            }
            _ => {
                let before = head.len();
                head.retain(|_, name, _| !name.eq_ignore_ascii_case(token));
                if head.len() != before {
                    removed.push(token);
                }
            }
        }
    }
    if !removed.is_empty() {
        head.retain(|id, name, _| {
            id == HeaderId::Connection || !removed.iter().any(|t| name.eq_ignore_ascii_case(t))
        });
        rewrite_connection(head, |t| !removed.iter().any(|r| r.eq_ignore_ascii_case(t)));
    }
    Ok(())
}

/// Brings `:path` into form: an absolute target gives `:scheme`, `:authority` and `:path`, a CONNECT's gives `:authority`.
fn target(head: &mut Head, options: &Options, connect: bool) -> Result<(), Http1Error> {
    let path = head.path();
    match path {
        [b'/', ..] if !connect => return Ok(()),
        b"*" if head.method() == b"OPTIONS" => return Ok(()),
        _ if !options.http1.allow_absolute_url && !connect => return Ok(()),
        _ => {}
    }
    let target = path.to_vec();
    if connect {
        if target.starts_with(b"/")
            || target.starts_with(b"*")
            || target.iter().any(|b| matches!(b, b'/' | b'?'))
        {
            return Err(Http1Error::InvalidUrl);
        }
        head.set(HeaderId::Authority, &target);
        head.remove(HeaderId::Path);
        return Ok(());
    }
    let Some(colon) = target.windows(3).position(|w| w == b"://") else { return Err(Http1Error::InvalidUrl) };
    let scheme = target[..colon].to_ascii_lowercase();
    let rest = &target[colon + 3..];
    let (authority, path) =
        rest.split_at(rest.iter().position(|b| matches!(b, b'/' | b'?' | b'#')).unwrap_or(rest.len()));
    let authority = authority.rsplit(|b| *b == b'@').next().unwrap_or_default();
    if authority.is_empty() {
        return Err(Http1Error::InvalidUrl);
    }
    if scheme != b"http" && scheme != b"https" {
        return Err(Http1Error::InvalidScheme);
    }
    head.set(HeaderId::Authority, authority);
    head.set(HeaderId::Scheme, &scheme);
    head.set(HeaderId::Path, if path.is_empty() { b"/" } else { path });
    Ok(())
}

/// The bytes that Envoy lets stand in `:authority`.
pub(in crate::http::codec) fn valid_authority(authority: &[u8]) -> bool {
    authority.iter().all(|b| b.is_ascii_alphanumeric() || b"!$%&'()*+,-.:;=@[]_~".contains(b))
}
