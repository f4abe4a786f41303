//! Active health checks. Source: envoy/config/core/v3/health_check.proto.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as pb;
use envoy_types::pb::envoy::r#type::v3 as ty;

use super::{Ctx, Result, core, flag, matcher, take, text, uint};
use crate::config::cluster::{HealthCheck, HealthCheckKind};

pub fn health_check(ctx: &Ctx<'_>, m: pb::HealthCheck) -> Result<HealthCheck> {
    use pb::health_check::HealthChecker as C;
    take!(ctx, m, pb::HealthCheck {
        timeout, interval, initial_jitter, interval_jitter, interval_jitter_percent, unhealthy_threshold, healthy_threshold,
        reuse_connection, no_traffic_interval, no_traffic_healthy_interval, unhealthy_interval, unhealthy_edge_interval,
        healthy_edge_interval, always_log_health_check_failures, tls_options, health_checker;
        refuse alt_port = "the endpoint's health_check_config.port_value is accepted",
            event_log_path = "health check events are not logged to a file",
            event_logger = "health check events are not logged to a file",
            event_service = "none is accepted",
            transport_socket_match_criteria = "the endpoint's own transport socket is used";
        harmless always_log_health_check_success = "there is no event log to write to"
    });
    let interval = ctx.required("interval", ctx.positive("interval", interval)?)?;
    let timeout = ctx.required("timeout", ctx.positive("timeout", timeout)?)?;
    let zero = |d: Option<Duration>| d.unwrap_or_default();
    let no_traffic_interval =
        ctx.positive("no_traffic_interval", no_traffic_interval)?.unwrap_or(Duration::from_secs(60));
    let unhealthy_interval = ctx.positive("unhealthy_interval", unhealthy_interval)?.unwrap_or(interval);
    let alpn = match tls_options {
        None => Vec::new(),
        Some(pb::health_check::TlsOptions { alpn_protocols }) => {
            alpn_protocols.into_iter().map(Arc::from).collect()
        }
    };
    let kind = match ctx.required("health_checker", health_checker)? {
        C::HttpHealthCheck(h) => http(&ctx.field("http_health_check"), h)?,
        C::TcpHealthCheck(t) => {
            let ctx = ctx.field("tcp_health_check");
            take!(ctx, t, pb::health_check::TcpHealthCheck { send, receive; refuse proxy_protocol_config = "none is accepted" });
            HealthCheckKind::Tcp {
                send: send.map(|p| payload(&ctx.field("send"), p)).transpose()?,
                receive: ctx.each("receive", receive, payload)?,
            }
        }
        C::GrpcHealthCheck(g) => {
            let ctx = ctx.field("grpc_health_check");
            take!(ctx, g, pb::health_check::GrpcHealthCheck { service_name, authority; refuse initial_metadata = "none is accepted" });
            HealthCheckKind::Grpc { service: service_name.into(), authority: text(authority) }
        }
        C::CustomHealthCheck(c) => {
            return ctx.bad(
                "custom_health_check",
                format!("'{}' is not served; http, tcp and grpc health checks are accepted", c.name),
            );
        }
    };
    Ok(HealthCheck {
        timeout,
        interval,
        initial_jitter: zero(ctx.duration("initial_jitter", initial_jitter)?),
        interval_jitter: zero(ctx.duration("interval_jitter", interval_jitter)?),
        interval_jitter_percent,
        unhealthy_threshold: ctx.required("unhealthy_threshold", uint(unhealthy_threshold))?,
        healthy_threshold: ctx.required("healthy_threshold", uint(healthy_threshold))?,
        no_traffic_interval,
        no_traffic_healthy_interval: ctx
            .positive("no_traffic_healthy_interval", no_traffic_healthy_interval)?
            .unwrap_or(no_traffic_interval),
        unhealthy_interval,
        unhealthy_edge_interval: ctx
            .positive("unhealthy_edge_interval", unhealthy_edge_interval)?
            .unwrap_or(unhealthy_interval),
        healthy_edge_interval: ctx
            .positive("healthy_edge_interval", healthy_edge_interval)?
            .unwrap_or(interval),
        reuse_connection: flag(reuse_connection, true),
        always_log_failures: always_log_health_check_failures,
        kind,
        alpn,
    })
}

fn http(ctx: &Ctx<'_>, m: pb::health_check::HttpHealthCheck) -> Result<HealthCheckKind> {
    take!(ctx, m, pb::health_check::HttpHealthCheck {
        host, path, request_headers_to_add, request_headers_to_remove, expected_statuses, retriable_statuses, codec_client_type,
        service_name_matcher, method;
        refuse send = "a request without a body is sent", receive = "the status decides";
        harmless response_buffer_size = "the body is not looked at"
    });
    if !path.starts_with('/') {
        return ctx.bad("path", format!("{path:?} must begin with /"));
    }
    let http2 = match ctx.enumeration("codec_client_type", codec_client_type)? {
        ty::CodecClientType::Http1 => false,
        ty::CodecClientType::Http2 => true,
        ty::CodecClientType::Http3 => {
            return ctx.bad("codec_client_type", "HTTP3 is not served; HTTP1 or HTTP2 is accepted");
        }
    };
    let method = match ctx.enumeration("method", method)? {
        pb::RequestMethod::MethodUnspecified => "GET",
        pb::RequestMethod::Connect => return ctx.bad("method", "CONNECT is not accepted"),
        other => other.as_str_name(),
    };
    let mut expected = ctx.each("expected_statuses", expected_statuses, statuses)?;
    if expected.is_empty() {
        expected.push((200, 201));
    }
    Ok(HealthCheckKind::Http {
        host: text(host),
        path: path.into(),
        method: method.into(),
        headers: ctx.each("request_headers_to_add", request_headers_to_add, core::header_add)?,
        remove: ctx
            .each("request_headers_to_remove", request_headers_to_remove, |c, n| c.header_name("", &n))?,
        expected,
        retriable: ctx.each("retriable_statuses", retriable_statuses, statuses)?,
        service_name: service_name_matcher
            .map(|s| matcher::string(&ctx.field("service_name_matcher"), s))
            .transpose()?,
        http2,
    })
}

fn statuses(ctx: &Ctx<'_>, m: ty::Int64Range) -> Result<(u16, u16)> {
    let ty::Int64Range { start, end } = m;
    if !(100..600).contains(&start) || end <= start || end > 600 {
        return Err(ctx.err(format!(
            "[{start}, {end}) is not a range of statuses; 100 <= start < end <= 600 is accepted"
        )));
    }
    Ok((start as u16, end as u16))
}

/// Text payloads are hexadecimal.
fn payload(ctx: &Ctx<'_>, m: pb::health_check::Payload) -> Result<Arc<[u8]>> {
    use pb::health_check::payload::Payload as P;
    take!(ctx, m, pb::health_check::Payload { payload });
    match ctx.required("payload", payload)? {
        P::Binary(b) => Ok(b.into()),
        P::Text(t) => {
            let nibbles: Option<Vec<u8>> = t.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
            match nibbles {
                Some(n) if !n.is_empty() && n.len() % 2 == 0 => {
                    Ok(n.chunks(2).map(|p| p[0] << 4 | p[1]).collect())
                }
                _ => ctx.bad("text", format!("{t:?} is not hexadecimal")),
            }
        }
    }
}
