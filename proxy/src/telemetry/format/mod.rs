//! Evaluates substitution format strings: access logs, local replies, header values (Envoy docs:
//! configuration/observability/access_log/usage).
//!
//! `command` writes one operator's value, `time` the strftime forms, `tls` what certificates and handshakes say, `json` the
//! typed JSON form. A value is written straight into the caller's buffer; nothing is allocated for a line in steady state.

mod command;
mod grpc;
mod json;
mod time;
mod tls;

pub(crate) use grpc::is_grpc;
pub use grpc::{grpc_status, status_of_http};
pub use json::write_json;
pub use time::strftime;

use crate::config::access_log::LogFormat;
use crate::config::format::{Format, Part};
use crate::head::Head;
use crate::stream_info::StreamInfo;

/// What an operator may read.
#[derive(Clone, Copy, Debug)]
pub struct FormatContext<'a> {
    /// `None` for TCP.
    pub request: Option<&'a Head>,
    pub response: Option<&'a Head>,
    pub trailers: Option<&'a Head>,
    pub info: &'a StreamInfo,
    /// `%ACCESS_LOG_TYPE%`'s number, for filters; `AccessLogType` of `envoy.data.accesslog.v3`.
    pub log_type: LogType,
}

/// When a log line is written: `envoy.data.accesslog.v3.AccessLogType`, by its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum LogType {
    #[default]
    NotSet = 0,
    TcpUpstreamConnected = 1,
    TcpPeriodic = 2,
    TcpConnectionEnd = 3,
    DownstreamStart = 4,
    DownstreamPeriodic = 5,
    DownstreamEnd = 6,
    UpstreamPoolReady = 7,
    UpstreamPeriodic = 8,
    UpstreamEnd = 9,
}

impl<'a> FormatContext<'a> {
    /// A context of a stream's end.
    pub fn new(request: Option<&'a Head>, info: &'a StreamInfo) -> FormatContext<'a> {
        FormatContext { request, response: None, trailers: None, info, log_type: LogType::NotSet }
    }

    /// While the request is on its way.
    pub fn request(request: &'a Head, info: &'a StreamInfo) -> FormatContext<'a> {
        FormatContext::new(Some(request), info)
    }

    /// While the response is on its way.
    pub fn response(request: &'a Head, response: &'a Head, info: &'a StreamInfo) -> FormatContext<'a> {
        FormatContext { response: Some(response), ..FormatContext::new(Some(request), info) }
    }
}

/// What a command wrote, for JSON's types and for the placeholder of an absent value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrote {
    /// Nothing: the value is absent.
    Absent,
    Text,
    /// A JSON number.
    Number,
    /// Any other JSON, as it stands.
    Json,
}

/// Appends a line in either form. JSON ends without a line break, as text does: Envoy's file loggers add it for JSON only.
pub fn write_log(format: &LogFormat, ctx: &FormatContext<'_>, out: &mut Vec<u8>) {
    match format {
        LogFormat::Text(format) => write(format, ctx, out),
        LogFormat::Json(json) => {
            write_json(json, ctx, out);
        }
    }
}

/// Appends the evaluated format.
pub fn write(format: &Format, ctx: &FormatContext<'_>, out: &mut Vec<u8>) {
    for part in &format.parts {
        match part {
            Part::Literal(text) => out.extend_from_slice(text.as_bytes()),
            Part::Command(command, max) => {
                let start = out.len();
                if command::write(command, ctx, out) == Wrote::Absent {
                    out.truncate(start);
                    if !format.omit_empty {
                        out.push(b'-');
                    }
                } else if let Some(max) = max {
                    out.truncate(start + (*max).min(out.len() - start));
                }
            }
        }
    }
}

/// The evaluated format as a string, for headers and names; bytes that are not UTF-8 are replaced.
pub fn to_string(format: &Format, ctx: &FormatContext<'_>) -> String {
    let mut out = Vec::new();
    write(format, ctx, &mut out);
    String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

#[cfg(test)]
pub(crate) mod tests;
