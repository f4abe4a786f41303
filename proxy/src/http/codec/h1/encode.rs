//! A `Head` to HTTP/1 bytes, with the framing header that it needs. Follows Envoy's `StreamEncoderImpl::encodeHeadersBase`.

use super::super::Counts;
use super::Options;
use super::body::Framing;
use crate::config::hcm::HeaderCase;
use crate::head::{Head, HeaderId};

/// What decides the framing beside the head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message {
    /// No body follows.
    pub(super) end: bool,
    /// A response to HEAD: no body, whatever the head says.
    pub(super) to_head: bool,
    /// A response to CONNECT with 2xx, or either side of an upgrade: bytes without framing.
    pub(super) tunnel: bool,
    /// The peer speaks HTTP/1.0: no chunks.
    pub(super) http10: bool,
}

/// Canonical reason phrase, as Envoy's `CodeUtility` has it; "Unknown" otherwise.
pub fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        102 => "Processing",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        208 => "Already Reported",
        226 => "IM Used",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        305 => "Use Proxy",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Payload Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Entity",
        423 => "Locked",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        499 => "Client Closed Request",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        506 => "Variant Also Negotiates",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        510 => "Not Extended",
        511 => "Network Authentication Required",
        599 => "Last Unassigned Server Error Code",
        _ => "Unknown",
    }
}

/// Encodes a response's head; returns how its body is to be framed.
pub(super) fn response(
    out: &mut Vec<u8>,
    head: &Head,
    message: Message,
    options: &Options,
    counts: &mut Counts,
) -> Framing {
    let status = head.status().unwrap_or(500);
    // Envoy's server writes HTTP/1.1 to HTTP/1.0 clients too, but for `accept_http_10` connections.
    out.extend_from_slice(if message.http10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
    out.push(b' ');
    out.extend_from_slice(reason(status).as_bytes());
    out.extend_from_slice(b"\r\n");
    let start = out.len();
    let until_close = message.http10 && !message.end && !head.contains(HeaderId::ContentLength);
    let length = fields(out, head, options, until_close);
    if until_close {
        out.extend_from_slice(field_line(options, b"connection: close\r\n", b"Connection: close\r\n"));
    }
    let bodiless = (100..200).contains(&status) || status == 204 || status == 304;
    let framing = if message.tunnel {
        Framing::UntilClose
    } else if message.to_head || bodiless {
        // Without a length, a response to HEAD says what the one to GET would.
        if message.to_head && length.is_none() && !message.http10 && !bodiless {
            out.extend_from_slice(field_line(
                options,
                b"transfer-encoding: chunked\r\n",
                b"Transfer-Encoding: chunked\r\n",
            ));
        }
        Framing::None
    } else {
        declare(out, length, message, options, true)
    };
    finish(out, start, counts);
    framing
}

/// Encodes a request's head; returns how its body is to be framed.
pub(super) fn request(
    out: &mut Vec<u8>,
    head: &Head,
    message: Message,
    options: &Options,
    counts: &mut Counts,
) -> Framing {
    let method = head.method();
    out.extend_from_slice(method);
    out.push(b' ');
    if method == b"CONNECT" {
        out.extend_from_slice(head.authority());
    } else {
        if options.http1.send_fully_qualified_url {
            out.extend_from_slice(head.get(HeaderId::Scheme).unwrap_or(b"http"));
            out.extend_from_slice(b"://");
            out.extend_from_slice(head.authority());
        }
        out.extend_from_slice(head.path());
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let start = out.len();
    let length = fields(out, head, options, false);
    let framing = if message.tunnel {
        Framing::UntilClose
    } else {
        // `HeaderUtility::requestShouldHaveNoBody`: for these a missing body needs no saying.
        let bodiless = matches!(method, b"GET" | b"HEAD" | b"DELETE" | b"TRACE" | b"CONNECT");
        declare(out, length, message, options, !bodiless)
    };
    finish(out, start, counts);
    framing
}

/// Encodes trailers behind the last chunk's size line.
pub(super) fn trailers(out: &mut Vec<u8>, head: &Head, options: &Options, counts: &mut Counts) {
    let start = out.len();
    fields(out, head, options, false);
    finish(out, start, counts);
}

fn finish(out: &mut Vec<u8>, start: usize, counts: &mut Counts) {
    counts.header_sent += (out.len() - start) as u64;
    out.extend_from_slice(b"\r\n");
}

fn field_line(options: &Options, lower: &'static [u8], proper: &'static [u8]) -> &'static [u8] {
    if options.http1.header_case == HeaderCase::ProperCase { proper } else { lower }
}

/// Adds the framing header where the head has no length.
fn declare(
    out: &mut Vec<u8>,
    length: Option<u64>,
    message: Message,
    options: &Options,
    say_empty: bool,
) -> Framing {
    match length {
        Some(length) => Framing::Length(length),
        None if message.end => {
            if say_empty {
                out.extend_from_slice(field_line(
                    options,
                    b"content-length: 0\r\n",
                    b"Content-Length: 0\r\n",
                ));
            }
            Framing::None
        }
        None if message.http10 => Framing::UntilClose,
        None => {
            out.extend_from_slice(field_line(
                options,
                b"transfer-encoding: chunked\r\n",
                b"Transfer-Encoding: chunked\r\n",
            ));
            Framing::Chunked
        }
    }
}

/// Writes the fields, `:authority` as `host`, without other pseudo-headers and without transfer-encoding, which is ours to
/// say, as `connection` is where we have to close. Returns the content length among them.
fn fields(out: &mut Vec<u8>, head: &Head, options: &Options, drop_connection: bool) -> Option<u64> {
    let mut length = None;
    let case = options.http1.header_case;
    for (id, name, value) in head.iter() {
        let name = match id {
            HeaderId::Authority => b"host",
            HeaderId::TransferEncoding => continue,
            HeaderId::Connection if drop_connection => continue,
            _ if id.is_pseudo() => continue,
            HeaderId::ContentLength => {
                length = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
                name
            }
            _ => name,
        };
        let at = out.len();
        out.extend_from_slice(name);
        if case == HeaderCase::ProperCase {
            proper_case(&mut out[at..]);
        }
        out.extend_from_slice(b": ");
        push_value(out, value);
        out.extend_from_slice(b"\r\n");
    }
    length
}

/// No value may break its line, wherever it came from.
fn push_value(out: &mut Vec<u8>, value: &[u8]) {
    if memchr::memchr3(b'\r', b'\n', 0, value).is_none() {
        out.extend_from_slice(value);
    } else {
        out.extend(value.iter().copied().filter(|b| !matches!(b, b'\r' | b'\n' | 0)));
    }
}

/// Envoy's proper-case words: a letter at the start, or behind anything that is neither letter nor digit, in upper case.
fn proper_case(name: &mut [u8]) {
    let mut upper = true;
    for b in name {
        if upper {
            b.make_ascii_uppercase();
        }
        upper = !b.is_ascii_alphanumeric();
    }
}
