//! The parser of Envoy's substitution format strings: `%REQ(A?B):Z%`, `%START_TIME(%s)%`, `%%`. An unknown command is an error,
//! as in Envoy. Source: Envoy's "Access logging" page, "Command operators".

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};

use super::{Ctx, Result, any, take, text};
use crate::config::access_log::{Json, LogFormat};
use crate::config::format::{
    Command, DurationUnit, Format, GrpcStatusFormat, MetadataKind, Part, Simple, TimePoint,
};
use crate::config::hcm::ReplyFormat;

/// Takes a format string apart.
///
/// # Errors
/// An unknown command, a missing or a superfluous argument, a `%` without its twin.
pub fn parse(ctx: &Ctx<'_>, text: &str, omit_empty: bool) -> Result<Format> {
    parse_text(text, omit_empty).map_err(|reason| ctx.err(format!("{text:?}: {reason}")))
}

/// As [`parse`], with the reason alone as error.
///
/// # Errors
/// As [`parse`].
pub fn parse_text(text: &str, omit_empty: bool) -> Result<Format, String> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        literal.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            literal.push('%');
            rest = after;
            continue;
        }
        let (part, after) = command(rest)?;
        if !literal.is_empty() {
            parts.push(Part::Literal(std::mem::take(&mut literal).into()));
        }
        parts.push(part);
        rest = after;
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        parts.push(Part::Literal(literal.into()));
    }
    Ok(Format { parts, omit_empty })
}

/// Reads `NAME[(argument)][:length]%`.
fn command(text: &str) -> Result<(Part, &str), String> {
    let name_len =
        text.bytes().take_while(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b'_').count();
    let (name, mut rest) = text.split_at(name_len);
    if name.is_empty() {
        return Err("a % without a command; write %% for a percent sign".to_owned());
    }
    let mut argument = None;
    if let Some(inner) = rest.strip_prefix('(') {
        // An argument may hold parentheses and percent signs; it ends at the `)` before `%` or `:digits%`.
        let end = inner
            .char_indices()
            .filter(|(_, c)| *c == ')')
            .map(|(i, _)| i)
            .find(|i| {
                let after = &inner[i + 1..];
                let digits =
                    after.strip_prefix(':').map(|a| a.trim_start_matches(|c: char| c.is_ascii_digit()));
                after.starts_with('%') || digits.is_some_and(|d| d.starts_with('%'))
            })
            .ok_or_else(|| format!("%{name}( is not closed with )%"))?;
        argument = Some(&inner[..end]);
        rest = &inner[end + 1..];
    }
    let mut length = None;
    if let Some(after) = rest.strip_prefix(':') {
        let digits = after.bytes().take_while(u8::is_ascii_digit).count();
        length = Some(
            after[..digits]
                .parse::<usize>()
                .map_err(|_| format!("%{name}%: the length after ':' is not a number"))?,
        );
        rest = &after[digits..];
    }
    let rest = rest.strip_prefix('%').ok_or_else(|| format!("%{name} is not closed with %"))?;
    Ok((Part::Command(operator(name, argument)?, length), rest))
}

fn operator(name: &str, argument: Option<&str>) -> Result<Command, String> {
    let need = || {
        argument.filter(|a| !a.is_empty()).ok_or_else(|| format!("%{name}% needs an argument in parentheses"))
    };
    let keys = |a: &str| -> Arc<[Arc<str>]> { a.split(':').map(Arc::from).collect() };
    Ok(match name {
        "REQ" | "RESP" | "TRAILER" | "REQUEST_HEADER" | "RESPONSE_HEADER" | "RESPONSE_TRAILER" => {
            let a = need()?;
            let (main, alternative) = match a.split_once('?') {
                Some((m, alt)) => (m, Some(alt)),
                None => (a, None),
            };
            if alternative.is_some_and(|alt| alt.contains('?')) {
                return Err(format!("%{name}({a})%: more than one alternative header"));
            }
            let header = crate::head::HeaderName::new;
            let (main, alternative) = (header(main), alternative.map(header));
            match name {
                "REQ" | "REQUEST_HEADER" => Command::Req(main, alternative),
                "RESP" | "RESPONSE_HEADER" => Command::Resp(main, alternative),
                _ => Command::Trailer(main, alternative),
            }
        }
        "START_TIME" => Command::Time(TimePoint::Start, text(argument.unwrap_or_default().to_owned())),
        "START_TIME_LOCAL" | "EMIT_TIME" | "EMIT_TIME_LOCAL" => {
            return Err(format!("%{name}% is not served; START_TIME is"));
        }
        "DYNAMIC_METADATA" => Command::DynamicMetadata(keys(need()?)),
        "CLUSTER_METADATA" => Command::Metadata(MetadataKind::Cluster, keys(need()?)),
        "UPSTREAM_METADATA" => Command::Metadata(MetadataKind::UpstreamHost, upstream_metadata(need()?)?),
        "METADATA" => {
            let (kind, path) = need()?.split_once(':').ok_or("%METADATA% needs TYPE:NAMESPACE")?;
            match kind {
                "DYNAMIC" => Command::DynamicMetadata(keys(path)),
                "CLUSTER" => Command::Metadata(MetadataKind::Cluster, keys(path)),
                "ROUTE" => Command::Metadata(MetadataKind::Route, keys(path)),
                "UPSTREAM_HOST" => Command::Metadata(MetadataKind::UpstreamHost, keys(path)),
                "LISTENER" => Command::Metadata(MetadataKind::Listener, keys(path)),
                "VIRTUAL_HOST" => Command::Metadata(MetadataKind::VirtualHost, keys(path)),
                other => {
                    return Err(format!(
                        "%METADATA({other}:…)% is not served; DYNAMIC, CLUSTER, ROUTE, UPSTREAM_HOST, LISTENER, VIRTUAL_HOST are"
                    ));
                }
            }
        }
        "FILTER_STATE" => Command::FilterState(need()?.into()),
        "UPSTREAM_FILTER_STATE" => Command::UpstreamFilterState(need()?.into()),
        "ENVIRONMENT" => {
            Command::Environment(std::env::var(need()?).unwrap_or_else(|_| "-".to_owned()).into())
        }
        "COMMON_DURATION" => common_duration(need()?)?,
        "GRPC_STATUS" => Command::GrpcStatus(match argument.unwrap_or("CAMEL_STRING") {
            "CAMEL_STRING" | "" => GrpcStatusFormat::Camel,
            "SNAKE_STRING" => GrpcStatusFormat::Snake,
            "NUMBER" => GrpcStatusFormat::Number,
            other => {
                return Err(format!(
                    "%GRPC_STATUS({other})%: CAMEL_STRING, SNAKE_STRING or NUMBER is accepted"
                ));
            }
        }),
        "GRPC_STATUS_NUMBER" => Command::GrpcStatus(GrpcStatusFormat::Number),
        "CEL" => {
            let expression = need()?;
            cel::Program::compile(expression).map_err(|e| format!("%CEL({expression})%: {e}"))?;
            Command::Cel(expression.into())
        }
        "DOWNSTREAM_PEER_CERT_V_START" if argument.is_some_and(|a| !a.is_empty()) => {
            Command::Time(TimePoint::DownstreamPeerCertStart, argument.map(Arc::from))
        }
        "DOWNSTREAM_PEER_CERT_V_END" if argument.is_some_and(|a| !a.is_empty()) => {
            Command::Time(TimePoint::DownstreamPeerCertEnd, argument.map(Arc::from))
        }
        "UPSTREAM_PEER_CERT_V_START" => {
            Command::Time(TimePoint::UpstreamPeerCertStart, argument.filter(|a| !a.is_empty()).map(Arc::from))
        }
        "UPSTREAM_PEER_CERT_V_END" => {
            Command::Time(TimePoint::UpstreamPeerCertEnd, argument.filter(|a| !a.is_empty()).map(Arc::from))
        }
        _ => {
            let simple = simple(name).ok_or_else(|| format!("%{name}% is not a known command"))?;
            if argument.is_some_and(|a| !a.is_empty()) {
                return Err(format!("%{name}% takes no argument"));
            }
            Command::Simple(simple)
        }
    })
}

/// `UPSTREAM_METADATA`'s old form in headers, `(["namespace", "key"])`, and the new one, `(namespace:key)`.
fn upstream_metadata(argument: &str) -> Result<Arc<[Arc<str>]>, String> {
    if argument.starts_with('[') {
        let list: Vec<String> =
            serde_json::from_str(argument).map_err(|e| format!("%UPSTREAM_METADATA({argument})%: {e}"))?;
        return Ok(list.into_iter().map(Arc::from).collect());
    }
    Ok(argument.split(':').map(Arc::from).collect())
}

fn common_duration(argument: &str) -> Result<Command, String> {
    let point = |name: &str| {
        Ok::<_, String>(match name {
            "DS_RX_BEG" => TimePoint::Start,
            "DS_RX_END" => TimePoint::DownstreamRxEnd,
            "US_CX_BEG" => TimePoint::UpstreamConnectBegin,
            "US_CX_END" => TimePoint::UpstreamConnectEnd,
            "US_TX_BEG" => TimePoint::UpstreamTxBegin,
            "US_TX_END" => TimePoint::UpstreamTxEnd,
            "US_RX_BEG" => TimePoint::UpstreamRxBegin,
            "US_RX_END" => TimePoint::UpstreamRxEnd,
            "DS_TX_BEG" => TimePoint::DownstreamTxBegin,
            "DS_TX_END" => TimePoint::DownstreamTxEnd,
            other => {
                return Err(format!(
                    "%COMMON_DURATION({argument})%: {other} is not a time point that is served"
                ));
            }
        })
    };
    let parts: Vec<&str> = argument.split(':').collect();
    let [start, end, precision @ ..] = parts.as_slice() else {
        return Err("%COMMON_DURATION% needs START:END:PRECISION".to_owned());
    };
    let unit = match precision {
        [] | ["ms"] => DurationUnit::Milliseconds,
        ["us"] => DurationUnit::Microseconds,
        ["ns"] => DurationUnit::Nanoseconds,
        _ => return Err(format!("%COMMON_DURATION({argument})%: the precision is ms, us or ns")),
    };
    Ok(Command::CommonDuration(point(start)?, point(end)?, unit))
}

fn simple(name: &str) -> Option<Simple> {
    use Simple as S;
    Some(match name {
        "PROTOCOL" => S::Protocol,
        "UPSTREAM_PROTOCOL" => S::UpstreamProtocol,
        "RESPONSE_CODE" => S::ResponseCode,
        "RESPONSE_CODE_DETAILS" => S::ResponseCodeDetails,
        "RESPONSE_FLAGS" => S::ResponseFlags,
        "RESPONSE_FLAGS_LONG" => S::ResponseFlagsLong,
        "CONNECTION_TERMINATION_DETAILS" => S::ConnectionTerminationDetails,
        "BYTES_RECEIVED" => S::BytesReceived,
        "BYTES_SENT" => S::BytesSent,
        "UPSTREAM_WIRE_BYTES_SENT" => S::UpstreamWireBytesSent,
        "UPSTREAM_WIRE_BYTES_RECEIVED" => S::UpstreamWireBytesReceived,
        "UPSTREAM_HEADER_BYTES_SENT" => S::UpstreamHeaderBytesSent,
        "UPSTREAM_HEADER_BYTES_RECEIVED" => S::UpstreamHeaderBytesReceived,
        "DOWNSTREAM_WIRE_BYTES_SENT" => S::DownstreamWireBytesSent,
        "DOWNSTREAM_WIRE_BYTES_RECEIVED" => S::DownstreamWireBytesReceived,
        "DOWNSTREAM_HEADER_BYTES_SENT" => S::DownstreamHeaderBytesSent,
        "DOWNSTREAM_HEADER_BYTES_RECEIVED" => S::DownstreamHeaderBytesReceived,
        "REQUEST_HEADERS_BYTES" => S::RequestHeadersBytes,
        "RESPONSE_HEADERS_BYTES" => S::ResponseHeadersBytes,
        "RESPONSE_TRAILERS_BYTES" => S::ResponseTrailersBytes,
        "DURATION" => S::Duration,
        "REQUEST_DURATION" => S::RequestDuration,
        "REQUEST_TX_DURATION" => S::RequestTxDuration,
        "RESPONSE_DURATION" => S::ResponseDuration,
        "RESPONSE_TX_DURATION" => S::ResponseTxDuration,
        "UPSTREAM_CONNECTION_POOL_READY_DURATION" => S::UpstreamConnectionPoolReadyDuration,
        "DOWNSTREAM_HANDSHAKE_DURATION" => S::DownstreamHandshakeDuration,
        "ROUNDTRIP_DURATION" => S::RoundtripDuration,
        "UPSTREAM_HOST" => S::UpstreamHost,
        "UPSTREAM_HOST_NAME" => S::UpstreamHostName,
        "UPSTREAM_HOST_NAME_WITHOUT_PORT" => S::UpstreamHostNameWithoutPort,
        "UPSTREAM_CLUSTER" => S::UpstreamCluster,
        "UPSTREAM_CLUSTER_RAW" => S::UpstreamClusterRaw,
        "UPSTREAM_LOCAL_ADDRESS" => S::UpstreamLocalAddress,
        "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => S::UpstreamLocalAddressWithoutPort,
        "UPSTREAM_LOCAL_PORT" => S::UpstreamLocalPort,
        "UPSTREAM_REMOTE_ADDRESS" => S::UpstreamRemoteAddress,
        "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => S::UpstreamRemoteAddressWithoutPort,
        "UPSTREAM_REMOTE_PORT" => S::UpstreamRemotePort,
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => S::UpstreamRequestAttemptCount,
        "UPSTREAM_CONNECTION_ID" => S::UpstreamConnectionId,
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => S::UpstreamTransportFailureReason,
        "UPSTREAM_TLS_VERSION" => S::UpstreamTlsVersion,
        "UPSTREAM_TLS_CIPHER" => S::UpstreamTlsCipher,
        "UPSTREAM_TLS_SESSION_ID" => S::UpstreamTlsSessionId,
        "UPSTREAM_PEER_SUBJECT" => S::UpstreamPeerSubject,
        "UPSTREAM_PEER_ISSUER" => S::UpstreamPeerIssuer,
        "UPSTREAM_PEER_URI_SAN" => S::UpstreamPeerUriSan,
        "UPSTREAM_PEER_DNS_SAN" => S::UpstreamPeerDnsSan,
        "UPSTREAM_LOCAL_URI_SAN" => S::UpstreamLocalUriSan,
        "UPSTREAM_LOCAL_SUBJECT" => S::UpstreamLocalSubject,
        "UPSTREAM_PEER_CERT" => S::UpstreamPeerCert,
        "DOWNSTREAM_TRANSPORT_FAILURE_REASON" => S::DownstreamTransportFailureReason,
        "DOWNSTREAM_LOCAL_CLOSE_REASON" => S::DownstreamLocalCloseReason,
        "DOWNSTREAM_DETECTED_CLOSE_TYPE" => S::DownstreamDetectedCloseType,
        "DOWNSTREAM_REMOTE_ADDRESS" => S::DownstreamRemoteAddress,
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => S::DownstreamRemoteAddressWithoutPort,
        "DOWNSTREAM_REMOTE_PORT" => S::DownstreamRemotePort,
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => S::DownstreamDirectRemoteAddress,
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => S::DownstreamDirectRemoteAddressWithoutPort,
        "DOWNSTREAM_DIRECT_REMOTE_PORT" => S::DownstreamDirectRemotePort,
        "DOWNSTREAM_LOCAL_ADDRESS" => S::DownstreamLocalAddress,
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => S::DownstreamLocalAddressWithoutPort,
        "DOWNSTREAM_LOCAL_PORT" => S::DownstreamLocalPort,
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS" => S::DownstreamDirectLocalAddress,
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT" => S::DownstreamDirectLocalAddressWithoutPort,
        "CONNECTION_ID" => S::ConnectionId,
        "REQUESTED_SERVER_NAME" => S::RequestedServerName,
        "ROUTE_NAME" => S::RouteName,
        "VIRTUAL_HOST_NAME" => S::VirtualHostName,
        "VIRTUAL_CLUSTER_NAME" => S::VirtualClusterName,
        "FILTER_CHAIN_NAME" => S::FilterChainName,
        "LISTENER_NAME" => S::ListenerName,
        "STREAM_ID" => S::StreamId,
        "UNIQUE_ID" => S::UniqueId,
        "TRACE_ID" => S::TraceId,
        "SPAN_ID" => S::SpanId,
        "HOSTNAME" => S::Hostname,
        "LOCAL_REPLY_BODY" => S::LocalReplyBody,
        "DOWNSTREAM_LOCAL_URI_SAN" => S::DownstreamLocalUriSan,
        "DOWNSTREAM_LOCAL_DNS_SAN" => S::DownstreamLocalDnsSan,
        "DOWNSTREAM_LOCAL_SUBJECT" => S::DownstreamLocalSubject,
        "DOWNSTREAM_PEER_URI_SAN" => S::DownstreamPeerUriSan,
        "DOWNSTREAM_PEER_DNS_SAN" => S::DownstreamPeerDnsSan,
        "DOWNSTREAM_PEER_IP_SAN" => S::DownstreamPeerIpSan,
        "DOWNSTREAM_PEER_SUBJECT" => S::DownstreamPeerSubject,
        "DOWNSTREAM_PEER_ISSUER" => S::DownstreamPeerIssuer,
        "DOWNSTREAM_PEER_SERIAL" => S::DownstreamPeerSerial,
        "DOWNSTREAM_PEER_FINGERPRINT_256" => S::DownstreamPeerFingerprint256,
        "DOWNSTREAM_PEER_FINGERPRINT_1" => S::DownstreamPeerFingerprint1,
        "DOWNSTREAM_PEER_CERT" => S::DownstreamPeerCert,
        "DOWNSTREAM_PEER_CERT_V_START" => S::DownstreamPeerCertVStart,
        "DOWNSTREAM_PEER_CERT_V_END" => S::DownstreamPeerCertVEnd,
        "DOWNSTREAM_TLS_VERSION" => S::DownstreamTlsVersion,
        "DOWNSTREAM_TLS_CIPHER" => S::DownstreamTlsCipher,
        "DOWNSTREAM_TLS_SESSION_ID" => S::DownstreamTlsSessionId,
        "TLS_JA3_FINGERPRINT" => S::TlsJa3Fingerprint,
        "TLS_JA4_FINGERPRINT" => S::TlsJa4Fingerprint,
        _ => return None,
    })
}

/// A `SubstitutionFormatString`. Text gets no newline added.
pub fn substitution(ctx: &Ctx<'_>, m: core::SubstitutionFormatString) -> Result<ReplyFormat> {
    use core::substitution_format_string::Format as F;
    take!(
        ctx,
        m,
        core::SubstitutionFormatString {
            omit_empty_values,
            content_type,
            formatters,
            format; harmless json_format_options = "keys are always written sorted" }
    );
    for (i, f) in formatters.into_iter().enumerate() {
        let ctx = ctx.index("formatters", i);
        let (_, extension) = any::typed(&ctx, f)?;
        match extension.message.as_str() {
            // Their commands are always known here.
            "envoy.extensions.formatter.metadata.v3.Metadata" | "envoy.extensions.formatter.cel.v3.Cel" => {}
            _ => {
                return extension.unknown(&ctx, "formatter", "envoy.formatter.metadata, envoy.formatter.cel");
            }
        }
    }
    let format = match ctx.required("format", format)? {
        F::TextFormat(t) => LogFormat::Text(parse(&ctx.field("text_format"), &t, omit_empty_values)?),
        F::TextFormatSource(s) => {
            let ctx = ctx.field("text_format_source");
            let (bytes, _) = super::core::data_source(&ctx, s)?;
            let t = std::str::from_utf8(&bytes).map_err(|_| ctx.err("is not UTF-8"))?;
            LogFormat::Text(parse(&ctx, t, omit_empty_values)?)
        }
        F::JsonFormat(s) => LogFormat::Json(json(&ctx.field("json_format"), &s, omit_empty_values)?),
    };
    Ok(ReplyFormat { format, content_type: text(content_type) })
}

/// A JSON format's object, keys sorted.
pub fn json(ctx: &Ctx<'_>, m: &Struct, omit_empty: bool) -> Result<Json> {
    let mut entries: Vec<_> = m.fields.iter().collect();
    entries.sort_by_key(|(k, _)| k.as_str());
    Ok(Json::Object(
        entries
            .into_iter()
            .map(|(k, v)| Ok((Arc::from(k.as_str()), json_value(&ctx.field(k), v, omit_empty)?)))
            .collect::<Result<_>>()?,
    ))
}

fn json_value(ctx: &Ctx<'_>, v: &Value, omit_empty: bool) -> Result<Json> {
    Ok(match &v.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::NumberValue(n)) => Json::Number(*n),
        Some(Kind::BoolValue(b)) => Json::Bool(*b),
        Some(Kind::StringValue(s)) => Json::Value(parse(ctx, s, omit_empty)?),
        Some(Kind::StructValue(s)) => json(ctx, s, omit_empty)?,
        Some(Kind::ListValue(l)) => Json::List(
            l.values
                .iter()
                .enumerate()
                .map(|(i, v)| json_value(&ctx.index("", i), v, omit_empty))
                .collect::<Result<_>>()?,
        ),
    })
}
