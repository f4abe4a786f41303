//! A complete head, bytes to `Head`: start line and fields. What they mean is `semantics`' question.
//!
//! Not httparse: Envoy's parser takes bare LFs, folded lines, tabs between the parts of a request line and more, which
//! httparse refuses, and refuses methods and targets that httparse takes; two parsers would be two opinions.

use super::super::Http1Error;
use super::lines::{self, is_token};
use crate::config::hcm::Http1Options;
use crate::head::{Head, HeaderId};

/// The protocol version in a start line, as far as Envoy tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http11,
    /// 1.0, and whatever else is not 1.1.
    Http10,
}

/// What a head says beside its fields.
#[derive(Clone, Copy, Debug)]
pub struct Parsed {
    pub version: Version,
    /// Sum that Envoy's bytes meter counts for the fields.
    pub header_bytes: u64,
}

const METHODS: &[&[u8]] = &[
    b"ACL",
    b"BIND",
    b"CHECKOUT",
    b"CONNECT",
    b"COPY",
    b"DELETE",
    b"GET",
    b"HEAD",
    b"LINK",
    b"LOCK",
    b"MERGE",
    b"MKACTIVITY",
    b"MKCALENDAR",
    b"MKCOL",
    b"MOVE",
    b"MSEARCH",
    b"NOTIFY",
    b"OPTIONS",
    b"PATCH",
    b"POST",
    b"PROPFIND",
    b"PROPPATCH",
    b"PURGE",
    b"PUT",
    b"REBIND",
    b"REPORT",
    b"SEARCH",
    b"SOURCE",
    b"SUBSCRIBE",
    b"TRACE",
    b"UNBIND",
    b"UNLINK",
    b"UNLOCK",
    b"UNSUBSCRIBE",
];

/// Whether a request can begin with this byte; Balsa refuses others before the head is complete.
pub(super) fn may_begin_request(b: u8, options: &Http1Options) -> bool {
    if options.allow_custom_methods {
        return is_token(&[b]) || matches!(b, b'\r' | b'\n');
    }
    matches!(b, b'A'..=b'D' | b'G' | b'H' | b'L'..=b'P' | b'R'..=b'U' | b'\r' | b'\n')
}

fn valid_method(method: &[u8], options: &Http1Options) -> bool {
    match method {
        b"GET" | b"POST" => true,
        _ if options.allow_custom_methods => is_token(method),
        _ => METHODS.contains(&method),
    }
}

/// Splits at runs of spaces and tabs.
fn word(line: &[u8]) -> (&[u8], &[u8]) {
    let end = line.iter().position(|b| matches!(b, b' ' | b'\t')).unwrap_or(line.len());
    let (word, mut rest) = line.split_at(end);
    while let [b' ' | b'\t', r @ ..] = rest {
        rest = r;
    }
    (word, rest)
}

fn trim_end(mut line: &[u8]) -> &[u8] {
    while let [rest @ .., b' ' | b'\t' | b'\r'] = line {
        line = rest;
    }
    line
}

fn version(text: &[u8]) -> Result<Version, Http1Error> {
    match text {
        b"HTTP/1.1" => Ok(Version::Http11),
        // HTTP/0.9 has none; Envoy answers it as it answers 1.0.
        b"" => Ok(Version::Http10),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Ok(Version::Http10)
        }
        _ => Err(Http1Error::Syntax),
    }
}

/// Whether a request target has a form that Envoy's parser lets through: a path, `*`, `scheme://…`, or for CONNECT an authority.
fn valid_target(target: &[u8], connect: bool) -> bool {
    let path = |p: &[u8]| p.iter().all(|b| matches!(b, b'\t' | 0x0c | b'!'..=b'~'));
    let rest = match target {
        [] => return false,
        [b'/' | b'*', rest @ ..] => return path(rest),
        _ if connect => target,
        _ => {
            let scheme = target.iter().take_while(|b| b.is_ascii_alphabetic()).count();
            match target[scheme..].strip_prefix(b"://") {
                Some(rest) if scheme > 0 => rest,
                _ => return false,
            }
        }
    };
    let split = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
    let (host, tail) = rest.split_at(split);
    host.iter().all(|b| b.is_ascii_alphanumeric() || b"!$%&'()*+,-.:;=@[]_~".contains(b))
        && !host.windows(2).any(|w| w == b"@@")
        && path(tail)
}

/// Fields that Envoy keeps once, joining later values with a comma (its inline headers), as bits of `HeaderId`.
const JOINED: u128 = {
    const IDS: &[HeaderId] = &[
        HeaderId::Connection,
        HeaderId::ContentLength,
        HeaderId::ContentType,
        HeaderId::Expect,
        HeaderId::KeepAlive,
        HeaderId::ProxyConnection,
        HeaderId::Te,
        HeaderId::TransferEncoding,
        HeaderId::Upgrade,
        HeaderId::Via,
        HeaderId::UserAgent,
        HeaderId::XForwardedFor,
        HeaderId::XForwardedProto,
        HeaderId::XForwardedHost,
        HeaderId::XForwardedClientCert,
        HeaderId::XRequestId,
        HeaderId::GrpcTimeout,
        HeaderId::Server,
        HeaderId::Date,
        HeaderId::Location,
        HeaderId::GrpcStatus,
        HeaderId::GrpcMessage,
    ];
    let mut bits = 0;
    let mut i = 0;
    while i < IDS.len() {
        bits |= 1u128 << (IDS[i] as u8);
        i += 1;
    }
    bits
};

/// Where a block of fields stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    Request,
    Response,
    Trailers,
}

/// Appends the fields of a block to `head`; a request's `Host` becomes `:authority`.
pub(super) fn append_fields(
    block: &[u8],
    head: &mut Head,
    max_count: u32,
    kind: Block,
) -> Result<u64, Http1Error> {
    let mut scratch = Vec::new();
    let (mut count, mut bytes, mut seen) = (0u32, 0u64, 0u128);
    lines::fields(block, &mut scratch, |name, value| {
        count += 1;
        // What Envoy's meter adds for a field: its bytes, a colon and a line end.
        bytes += (name.len() + value.len() + 3) as u64;
        if count > max_count {
            return Err(if kind == Block::Trailers {
                Http1Error::TooManyTrailers
            } else {
                Http1Error::TooManyHeaders
            });
        }
        let id = HeaderId::lookup(name);
        let id = if id == HeaderId::Host && kind == Block::Request { HeaderId::Authority } else { id };
        if id == HeaderId::Other {
            head.append(name, value);
            return Ok(());
        }
        let bit = 1u128 << (id as u8);
        if id == HeaderId::Authority || (JOINED & seen & bit != 0) {
            match head.get(id) {
                Some(first) => {
                    let both = [first, b",", value].concat();
                    head.set(id, &both);
                }
                None => head.set(id, value),
            }
        } else {
            head.append_id(id, value);
        }
        seen |= bit;
        Ok(())
    })?;
    // Envoy's meter counts the end of an empty block as one field.
    Ok(bytes.max(3))
}

/// Parses a request's head, `bytes` being all of it up to and with its empty line.
///
/// # Errors
/// As Envoy's parser judges; on an error `head` is in no defined state.
pub fn request(
    bytes: &[u8],
    options: &Http1Options,
    max_count: u32,
    head: &mut Head,
) -> Result<Parsed, Http1Error> {
    lines::check_characters(bytes)?;
    let (line, block) = lines::first_line(bytes);
    let (method, rest) = word(line);
    let (target, rest) = word(rest);
    if !valid_method(method, options) {
        return Err(Http1Error::Syntax);
    }
    let version = version(trim_end(rest))?;
    if !valid_target(target, method == b"CONNECT") {
        return Err(Http1Error::Syntax);
    }
    head.append_id(HeaderId::Method, method);
    head.append_id(HeaderId::Path, target);
    let header_bytes = append_fields(block, head, max_count, Block::Request)?;
    Ok(Parsed { version, header_bytes })
}

/// Parses a response's head likewise.
///
/// # Errors
/// As for `request`.
pub fn response(bytes: &[u8], max_count: u32, head: &mut Head) -> Result<Parsed, Http1Error> {
    lines::check_characters(bytes)?;
    let (line, block) = lines::first_line(bytes);
    let (version_text, rest) = word(line);
    let (status, _reason) = word(rest);
    let version = version(version_text)?;
    if version_text.is_empty()
        || status.len() != 3
        || !status.iter().all(u8::is_ascii_digit)
        || status[0] == b'0'
    {
        return Err(Http1Error::Syntax);
    }
    head.append_id(HeaderId::Status, status);
    let header_bytes = append_fields(block, head, max_count, Block::Response)?;
    Ok(Parsed { version, header_bytes })
}
