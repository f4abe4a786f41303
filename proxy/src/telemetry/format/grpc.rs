//! gRPC status of a response: trailers, then headers, then the HTTP status (gRPC docs: http-grpc-status-mapping).

use super::command::{number, text};
use super::{FormatContext, Wrote};
use crate::config::format::GrpcStatusFormat;
use crate::head::{Head, HeaderId};

const NAMES: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

/// The status of a response, from the last place that has one; `None` for a response without any.
pub fn grpc_status(ctx: &FormatContext<'_>) -> Option<u32> {
    let of = |h: Option<&Head>| h.and_then(|h| h.get_str(HeaderId::GrpcStatus)).and_then(|s| s.parse().ok());
    of(ctx.trailers).or_else(|| of(ctx.response)).or_else(|| ctx.info.response_code.map(status_of_http))
}

/// The gRPC status that stands for an HTTP status.
pub fn status_of_http(code: u16) -> u32 {
    match code {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// Whether the request is gRPC by its content type.
pub(crate) fn is_grpc(request: Option<&Head>) -> bool {
    let Some(ct) = request.and_then(|h| h.get(HeaderId::ContentType)) else { return false };
    ct.strip_prefix(b"application/grpc").is_some_and(|rest| rest.is_empty() || rest[0] == b'+')
}

pub(super) fn write_status(form: GrpcStatusFormat, ctx: &FormatContext<'_>, out: &mut Vec<u8>) -> Wrote {
    if !is_grpc(ctx.request) {
        return Wrote::Absent;
    }
    let Some(status) = grpc_status(ctx) else { return Wrote::Absent };
    match (form, NAMES.get(status as usize)) {
        (GrpcStatusFormat::Camel, Some((camel, _))) => text(camel.as_bytes(), out),
        (GrpcStatusFormat::Snake, Some((_, snake))) => text(snake.as_bytes(), out),
        (GrpcStatusFormat::Number, _) => number(u64::from(status), out),
        (_, None) => {
            number(u64::from(status), out);
            Wrote::Text
        }
    }
}
