//! Responses that the proxy makes itself: shape, gRPC form and `local_reply_config`.
//! (Envoy docs: configuration/http/http_conn_man/local_reply.)

use std::borrow::Cow;

use crate::config::access_log::LogFormat;
use crate::config::hcm::{LocalReply as Config, ReplyFormat};
use crate::head::{Head, HeaderId};
use crate::router::matching::is_grpc;
use crate::router::mutate::{self, Levels};
use crate::stream_info::{ResponseFlags, StreamInfo};
use crate::telemetry::access_log;
use crate::telemetry::format::{self, FormatContext};

/// A response to be made.
#[derive(Clone, Debug)]
pub struct LocalReply {
    pub status: u16,
    pub body: Cow<'static, [u8]>,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: Cow<'static, str>,
    pub flags: ResponseFlags,
    /// Fields beside the usual ones.
    pub headers: Vec<(HeaderId, Vec<u8>)>,
    /// For gRPC requests, instead of the one derived from the status.
    pub grpc_status: Option<u32>,
    /// `content-type`, where it is not `text/plain`.
    pub content_type: Option<Cow<'static, str>>,
}

impl LocalReply {
    /// A reply with a text body.
    pub fn new(
        status: u16,
        body: impl Into<Cow<'static, str>>,
        details: impl Into<Cow<'static, str>>,
    ) -> LocalReply {
        let body = match body.into() {
            Cow::Borrowed(b) => Cow::Borrowed(b.as_bytes()),
            Cow::Owned(b) => Cow::Owned(b.into_bytes()),
        };
        LocalReply {
            status,
            body,
            details: details.into(),
            flags: ResponseFlags::NONE,
            headers: Vec::new(),
            grpc_status: None,
            content_type: None,
        }
    }

    /// With response flags.
    pub fn flags(mut self, flags: ResponseFlags) -> LocalReply {
        self.flags = flags;
        self
    }

    /// With a field more.
    pub fn header(mut self, id: HeaderId, value: impl Into<Vec<u8>>) -> LocalReply {
        self.headers.push((id, value.into()));
        self
    }
}

/// Makes head and body of a reply. `info` has the reply's flags and details already.
pub fn render(
    reply: LocalReply,
    levels: Option<Levels<'_>>,
    config: &Config,
    request: &Head,
    info: &mut StreamInfo,
    response: &mut Head,
) -> Vec<u8> {
    response.clear();
    response.set_status(reply.status);
    info.response_code = Some(reply.status);
    for (id, value) in &reply.headers {
        response.append_id(*id, value);
    }
    // A route's own mutations come before the body's headers, and may set them.
    if let Some(levels) = levels {
        levels.response(request, response, info);
    }
    let mut body = reply.body.into_owned();
    let mut mapped: Option<&ReplyFormat> = None;
    for m in &config.mappers {
        let hit = access_log::matches(&m.filter, &FormatContext::response(request, response, info));
        if hit {
            if let Some(b) = &m.body {
                body = b.to_vec();
            }
            mutate::add(response, &m.headers, |call, head| {
                format::write(call.format, &FormatContext::response(request, head, info), call.out);
            });
            if let Some(code) = m.status {
                response.set_status(code);
                info.response_code = Some(code);
            }
            mapped = m.body_format.as_ref();
            break;
        }
    }
    let mut content_type: Cow<'static, str> = reply.content_type.unwrap_or("text/plain".into());
    if let Some(f) = mapped.or(config.body_format.as_ref()) {
        info.local_reply_body = Some(body.as_slice().into());
        let ctx = FormatContext::response(request, response, info);
        let mut out = Vec::with_capacity(body.len() + 128);
        match &f.format {
            LogFormat::Text(t) => {
                format::write(t, &ctx, &mut out);
                content_type = "text/plain".into();
            }
            LogFormat::Json(j) => {
                format::write_json(j, &ctx, &mut out);
                out.push(b'\n');
                content_type = "application/json".into();
            }
        }
        if let Some(ct) = &f.content_type {
            content_type = ct.to_string().into();
        }
        info.local_reply_body = None;
        body = out;
    }
    if is_grpc(request) {
        let code = reply.grpc_status.unwrap_or_else(|| grpc_from_http(response.status().unwrap_or(500)));
        response.set_status(200);
        response.set(HeaderId::ContentType, b"application/grpc");
        response.set(HeaderId::GrpcStatus, itoa::Buffer::new().format(code).as_bytes());
        if !body.is_empty() && request.method() != b"HEAD" {
            let message = percent_encode(&body);
            response.set(HeaderId::GrpcMessage, &message);
        }
        info.response_code = Some(200);
        return Vec::new();
    }
    if !body.is_empty() {
        response.set(HeaderId::ContentLength, itoa::Buffer::new().format(body.len()).as_bytes());
        if !response.contains(HeaderId::ContentType) {
            response.set(HeaderId::ContentType, content_type.as_bytes());
        }
    }
    if request.method() == b"HEAD" {
        body.clear();
    }
    body
}

/// gRPC's mapping of HTTP statuses (gRPC doc "http-grpc-status-mapping").
pub fn grpc_from_http(status: u16) -> u32 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// `grpc-message`: all but printable ASCII, and `%`, percent-encoded.
fn percent_encode(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len());
    for b in message {
        if (b' '..=b'~').contains(b) && *b != b'%' {
            out.push(*b);
        } else {
            out.extend_from_slice(format!("%{b:02X}").as_bytes());
        }
    }
    out
}
