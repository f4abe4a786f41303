//! Heads between our list and the `http` crate's types, at the h2 crate's edge and nowhere else.

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};

use super::super::Http2Error;
use super::super::h1;
use crate::head::{Head, HeaderId};

/// Fields that HTTP/2 does not know (RFC 9113, 8.2.2), and `host`, which is `:authority` there.
fn stays_behind(id: HeaderId, value: &[u8]) -> bool {
    match id {
        HeaderId::Connection
        | HeaderId::KeepAlive
        | HeaderId::ProxyConnection
        | HeaderId::TransferEncoding
        | HeaderId::Upgrade
        | HeaderId::Http2Settings
        | HeaderId::Host => true,
        HeaderId::Te => !value.eq_ignore_ascii_case(b"trailers"),
        _ => id.is_pseudo(),
    }
}

fn invalid<E>(_: E) -> Http2Error {
    Http2Error::InvalidHeaderField
}

/// The fields as a `HeaderMap`, pseudo-headers and connection-specific ones left out.
pub(super) fn to_map(head: &Head) -> Result<HeaderMap, Http2Error> {
    let mut map = HeaderMap::with_capacity(head.len());
    for (id, name, value) in head.iter() {
        if stays_behind(id, value) {
            continue;
        }
        let name = match id.as_str() {
            Some(known) => HeaderName::from_static(known),
            None => HeaderName::from_bytes(name).map_err(invalid)?,
        };
        map.append(name, HeaderValue::from_bytes(value).map_err(invalid)?);
    }
    Ok(map)
}

/// Appends a `HeaderMap`'s fields; cookie crumbs become one (RFC 9113, 8.2.3).
pub(super) fn append_map(map: &HeaderMap, head: &mut Head) {
    for (name, value) in map {
        let id = HeaderId::lookup(name.as_str().as_bytes());
        match id {
            HeaderId::Host => {
                if !head.contains(HeaderId::Authority) {
                    head.set(HeaderId::Authority, value.as_bytes());
                }
            }
            HeaderId::Cookie if head.contains(HeaderId::Cookie) => {
                let joined =
                    [head.get(HeaderId::Cookie).unwrap_or_default(), b"; ", value.as_bytes()].concat();
                head.set(HeaderId::Cookie, &joined);
            }
            HeaderId::Other => head.append(name.as_str().as_bytes(), value.as_bytes()),
            _ => head.append_id(id, value.as_bytes()),
        }
    }
}

/// A received request. Extended CONNECT becomes the HTTP/1 upgrade that the filters know
/// (`Utility::transformUpgradeRequestFromH2toH1`).
pub(super) fn from_request<B>(request: &Request<B>, head: &mut Head) {
    let protocol = request.extensions().get::<h2::ext::Protocol>();
    let method = if protocol.is_some() { "GET" } else { request.method().as_str() };
    head.append_id(HeaderId::Method, method.as_bytes());
    let uri = request.uri();
    if let Some(path) = uri.path_and_query()
        && (protocol.is_some() || request.method() != Method::CONNECT)
    {
        head.append_id(HeaderId::Path, path.as_str().as_bytes());
    }
    if let Some(authority) = uri.authority() {
        head.append_id(HeaderId::Authority, authority.as_str().as_bytes());
    }
    if let Some(scheme) = uri.scheme_str() {
        head.append_id(HeaderId::Scheme, scheme.as_bytes());
    }
    if let Some(protocol) = protocol {
        head.append_id(HeaderId::Upgrade, protocol.as_str().as_bytes());
        head.append_id(HeaderId::Connection, b"upgrade");
    }
    append_map(request.headers(), head);
}

/// A request to send. An HTTP/1 upgrade becomes extended CONNECT; then the second value has its protocol.
pub(super) fn to_request(head: &Head) -> Result<(Request<()>, Option<Vec<u8>>), Http2Error> {
    let mut request = Request::new(());
    *request.version_mut() = http::Version::HTTP_2;
    *request.headers_mut() = to_map(head)?;
    let upgrade = head.get(HeaderId::Upgrade).filter(|_| h1::is_upgrade(head)).map(<[u8]>::to_vec);
    let method = if upgrade.is_some() {
        Method::CONNECT
    } else {
        Method::from_bytes(head.method()).map_err(invalid)?
    };
    let mut parts = http::uri::Parts::default();
    let authority = head.authority();
    if !authority.is_empty() {
        parts.authority = Some(Authority::try_from(authority).map_err(invalid)?);
    }
    if method != Method::CONNECT || upgrade.is_some() {
        parts.scheme = Some(match head.get(HeaderId::Scheme) {
            Some(b"https") => Scheme::HTTPS,
            Some(b"http") | None => Scheme::HTTP,
            Some(other) => Scheme::try_from(other).map_err(invalid)?,
        });
        let path = head.path();
        let path = Bytes::copy_from_slice(if path.is_empty() { b"/" } else { path });
        parts.path_and_query = Some(PathAndQuery::from_maybe_shared(path).map_err(invalid)?);
    }
    *request.method_mut() = method;
    *request.uri_mut() = Uri::from_parts(parts).map_err(invalid)?;
    if let Some(protocol) = &upgrade {
        let text = std::str::from_utf8(protocol).map_err(invalid)?;
        request.extensions_mut().insert(h2::ext::Protocol::from(text));
        request.headers_mut().remove(http::header::CONTENT_LENGTH);
    }
    Ok((request, upgrade))
}

/// A received response. To a request that was an upgrade, 200 is 101.
pub(super) fn from_response<B>(response: &Response<B>, upgrade: Option<&[u8]>, head: &mut Head) {
    match upgrade {
        Some(protocol) if response.status() == StatusCode::OK => {
            head.set_status(101);
            head.append_id(HeaderId::Upgrade, protocol);
            head.append_id(HeaderId::Connection, b"upgrade");
        }
        _ => head.set_status(response.status().as_u16()),
    }
    append_map(response.headers(), head);
}

/// A response to send. To an extended CONNECT, 101 is 200.
pub(super) fn to_response(head: &Head, upgrade: bool) -> Result<Response<()>, Http2Error> {
    let status = match head.status().unwrap_or(500) {
        101 if upgrade => 200,
        status => status,
    };
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(status).map_err(invalid)?;
    *response.version_mut() = http::Version::HTTP_2;
    *response.headers_mut() = to_map(head)?;
    Ok(response)
}
