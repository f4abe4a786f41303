//! Access log filters: `envoy.config.accesslog.v3.AccessLogFilter`; local reply mappers use the same.

use crate::config::access_log::{Comparison, Filter, Op};
use crate::config::matcher::{HeaderMatch, HeaderMatcher};
use crate::head::{Head, HeaderId};
use crate::telemetry::cel;
use crate::telemetry::format::{FormatContext, grpc_status};

/// Whether a line passes.
pub fn matches(filter: &Filter, ctx: &FormatContext<'_>) -> bool {
    let info = ctx.info;
    match filter {
        Filter::StatusCode(c) => compare(*c, u64::from(info.response_code.unwrap_or(0))),
        Filter::Duration(c) => {
            let duration = info.times.complete.unwrap_or_else(|| info.elapsed(tokio::time::Instant::now()));
            compare(*c, u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
        }
        Filter::NotHealthCheck => !info.health_check,
        Filter::Traceable => info.traced,
        Filter::Runtime { share, independent } => {
            let by_request = if *independent { None } else { request_id_number(ctx.request) };
            share.hit(by_request.unwrap_or_else(rand::random))
        }
        Filter::And(all) => all.iter().all(|f| matches(f, ctx)),
        Filter::Or(any) => any.iter().any(|f| matches(f, ctx)),
        Filter::Header(m) => {
            static NONE: std::sync::LazyLock<Head> = std::sync::LazyLock::new(Head::new);
            header_matches(m, ctx.request.unwrap_or(&NONE))
        }
        Filter::ResponseFlag(flags) if flags.is_empty() => !info.flags.is_empty(),
        Filter::ResponseFlag(flags) => info.flags.has(*flags),
        Filter::GrpcStatus { statuses, exclude } => {
            let status = grpc_status(ctx).unwrap_or(2);
            statuses.contains(&status) != *exclude
        }
        Filter::LogType { types, exclude } => types.contains(&(ctx.log_type as u32)) != *exclude,
        Filter::Cel(expression) => cel::matches(expression, ctx),
    }
}

fn compare(c: Comparison, value: u64) -> bool {
    match c.op {
        Op::Eq => value == c.value,
        Op::Ge => value >= c.value,
        Op::Le => value <= c.value,
        Op::Ne => value != c.value,
    }
}

/// The number that a request id stands for in sampling: its first eight hex digits.
pub(crate) fn request_id_number(request: Option<&Head>) -> Option<u64> {
    let id = request?.get_str(HeaderId::XRequestId)?;
    u64::from_str_radix(id.get(..8)?, 16).ok()
}

/// Whether a head fulfils a header matcher.
pub fn header_matches(m: &HeaderMatcher, head: &Head) -> bool {
    let value = head.joined(&m.name);
    let value = match (&value, m.treat_missing_as_empty) {
        (Some(v), _) => Some(&**v),
        (None, true) => Some(&b""[..]),
        (None, false) => None,
    };
    let found = match (&m.kind, value) {
        (HeaderMatch::Present(want), value) => return (value.is_some() == *want) != m.invert,
        // A header that is not there matches nothing, not even an inverted matcher.
        (_, None) => return false,
        (HeaderMatch::String(s), Some(v)) => s.matches(v),
        (HeaderMatch::Range { start, end }, Some(v)) => {
            let number = std::str::from_utf8(v).ok().and_then(|v| v.parse::<i64>().ok());
            number.is_some_and(|n| (*start..*end).contains(&n))
        }
    };
    found != m.invert
}
