//! The HTTP connection manager. Source: envoy/extensions/filters/network/http_connection_manager/v3.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core_pb;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use envoy_types::pb::envoy::extensions::request_id::uuid::v3 as uuid;

use super::any::Extension;
use super::{
    Ctx, NeedKind, Result, access_log, core, flag, format, http_filter, http_options, route, take, text,
    trace, uint,
};
use crate::config::hcm::{
    ClientCertDetails, CodecType, EscapedSlashes, ForwardClientCert, Hcm, LocalReply, LocalReplyMapper,
    RouteSource, ServerHeader, StripPort,
};

pub fn hcm(ctx: &Ctx<'_>, m: pb::HttpConnectionManager) -> Result<Hcm> {
    use pb::http_connection_manager as h;
    take!(ctx, m, pb::HttpConnectionManager {
        codec_type, stat_prefix, http_filters, tracing, common_http_protocol_options, http_protocol_options, http2_protocol_options,
        server_name, server_header_transformation, scheme_header_transformation, max_request_headers_kb, stream_idle_timeout,
        request_timeout, request_headers_timeout, drain_timeout, delayed_close_timeout, access_log, access_log_flush_interval,
        flush_access_log_on_new_request, access_log_options, use_remote_address, xff_num_trusted_hops, internal_address_config,
        skip_xff_append, via, generate_request_id, preserve_external_request_id, always_set_request_id_in_response,
        forward_client_cert_details, set_current_client_cert_details, proxy_100_continue,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6, upgrade_configs, normalize_path, merge_slashes,
        path_with_escaped_slashes_action, request_id_extension, local_reply_config, strip_matching_host_port,
        stream_error_on_invalid_http_message, strip_trailing_host_dot, append_x_forwarded_port, route_specifier, strip_port_mode;
        refuse add_user_agent = "unset is accepted",
            http1_safe_max_connection_duration = "unset is accepted",
            http3_protocol_options = "HTTP/3 is not served",
            stream_flush_timeout = "stream_idle_timeout is used while a response is flushed",
            original_ip_detection_extensions = "x-forwarded-for is read as use_remote_address and xff_num_trusted_hops say",
            early_header_mutation_extensions = "none is accepted",
            forward_client_cert_matcher = "forward_client_cert_details is accepted",
            path_normalization_options = "normalize_path and merge_slashes are accepted",
            proxy_status_config = "the proxy-status header is not written",
            typed_header_validation_config = "headers are always validated",
            forward_proto_config = "x-forwarded-proto tells the transport";
        harmless drain_timeout_jitter = "spreads the closing of connections over time alone",
            append_local_overload = "overload actions are not taken, so there is nothing to tell",
            add_proxy_protocol_connection_state = "for a filter state that no served filter reads"
    });
    if stat_prefix.is_empty() {
        return ctx.bad("stat_prefix", "is required");
    }
    let (routes, strip_port) = (
        match ctx.required("route_specifier", route_specifier)? {
            h::RouteSpecifier::Rds(r) => {
                let ctx = ctx.field("rds");
                take!(ctx, r, pb::Rds { config_source, route_config_name });
                if route_config_name.is_empty() {
                    return ctx.bad("route_config_name", "is required");
                }
                let timeout = core::fetch_timeout(&ctx.field("config_source"), config_source.as_ref())?;
                let source = core::config_source(
                    &ctx.field("config_source"),
                    ctx.required("config_source", config_source)?,
                )?;
                ctx.need(NeedKind::Routes, &route_config_name, Some(source), timeout);
                RouteSource::Rds(route_config_name.into())
            }
            h::RouteSpecifier::RouteConfig(r) => {
                RouteSource::Static(Arc::new(route::inline(&ctx.field("route_config"), r, true)?))
            }
            h::RouteSpecifier::ScopedRoutes(s) => {
                return ctx.bad(
                    "scoped_routes",
                    format!("'{}' is not served; rds or route_config is accepted", s.name),
                );
            }
        },
        match strip_port_mode {
            Some(h::StripPortMode::StripAnyHostPort(true)) if strip_matching_host_port => {
                return ctx.bad("strip_any_host_port", "does not go with strip_matching_host_port");
            }
            Some(h::StripPortMode::StripAnyHostPort(true)) => StripPort::Any,
            _ if strip_matching_host_port => StripPort::Matching,
            _ => StripPort::None,
        },
    );
    let common = http_options::common(
        &ctx.field("common_http_protocol_options"),
        common_http_protocol_options.unwrap_or_default(),
    )?;
    let (scheme_overwrite, scheme_match_upstream) =
        scheme(&ctx.field("scheme_header_transformation"), scheme_header_transformation)?;
    let ctx2 = ctx.field("access_log_options");
    let options = access_log_options.unwrap_or_default();
    let (new_interval, new_on_request) =
        (options.access_log_flush_interval, options.flush_access_log_on_new_request);
    ctx2.refuse(
        "flush_log_on_tunnel_successfully_established",
        &options.flush_log_on_tunnel_successfully_established,
        "false is accepted",
    )?;
    let access_log_flush_interval = match new_interval {
        Some(d) => ctx2.positive("access_log_flush_interval", Some(d))?,
        None => ctx.positive("access_log_flush_interval", access_log_flush_interval)?,
    };
    let (internal_ranges, unix_sockets_internal) = match internal_address_config {
        // As of Envoy 1.33 no address is internal unless it is listed.
        None => (Vec::new(), false),
        Some(i) => {
            let ctx = ctx.field("internal_address_config");
            take!(ctx, i, h::InternalAddressConfig { unix_sockets, cidr_ranges });
            (ctx.each("cidr_ranges", cidr_ranges, core::cidr)?, unix_sockets)
        }
    };
    let (pack_trace_reason, trace_sampling) =
        request_id(&ctx.field("request_id_extension"), request_id_extension)?;
    let max_request_headers_kb = uint(max_request_headers_kb).unwrap_or(60);
    if !(1..=8192).contains(&max_request_headers_kb) {
        return ctx.bad(
            "max_request_headers_kb",
            format!("{max_request_headers_kb} is not accepted; 1 to 8192 is"),
        );
    }
    Ok(Hcm {
        codec: match ctx.enumeration("codec_type", codec_type)? {
            h::CodecType::Auto => CodecType::Auto,
            h::CodecType::Http1 => CodecType::Http1,
            h::CodecType::Http2 => CodecType::Http2,
            h::CodecType::Http3 => return ctx.bad("codec_type", "HTTP3 is not served; AUTO, HTTP1 or HTTP2 is accepted"),
        },
        stat_prefix: stat_prefix.into(),
        routes,
        filters: http_filter::chain(ctx, "http_filters", http_filters)?,
        access_log: access_log::access_logs(ctx, "access_log", access_log)?,
        access_log_flush_interval,
        access_log_on_new_request: new_on_request || flush_access_log_on_new_request,
        tracing: tracing.map(|t| trace::tracing(&ctx.field("tracing"), t)).transpose()?,
        server_name: text(server_name).unwrap_or_else(|| "envoy".into()),
        server_header: match ctx.enumeration("server_header_transformation", server_header_transformation)? {
            h::ServerHeaderTransformation::Overwrite => ServerHeader::Overwrite,
            h::ServerHeaderTransformation::AppendIfAbsent => ServerHeader::AppendIfAbsent,
            h::ServerHeaderTransformation::PassThrough => ServerHeader::PassThrough,
        },
        via: text(via),
        use_remote_address: flag(use_remote_address, false),
        xff_num_trusted_hops,
        skip_xff_append,
        internal_ranges,
        unix_sockets_internal,
        append_x_forwarded_port,
        represent_ipv4_as_mapped: represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
        forward_client_cert: match ctx.enumeration("forward_client_cert_details", forward_client_cert_details)? {
            h::ForwardClientCertDetails::Sanitize => ForwardClientCert::Sanitize,
            h::ForwardClientCertDetails::ForwardOnly => ForwardClientCert::ForwardOnly,
            h::ForwardClientCertDetails::AppendForward => ForwardClientCert::AppendForward,
            h::ForwardClientCertDetails::SanitizeSet => ForwardClientCert::SanitizeSet,
            h::ForwardClientCertDetails::AlwaysForwardOnly => ForwardClientCert::AlwaysForwardOnly,
        },
        client_cert_details: client_cert(&ctx.field("set_current_client_cert_details"), set_current_client_cert_details.unwrap_or_default())?,
        scheme_overwrite,
        scheme_match_upstream,
        generate_request_id: flag(generate_request_id, true),
        preserve_external_request_id,
        always_set_request_id_in_response,
        request_id_pack_trace_reason: pack_trace_reason,
        request_id_trace_sampling: trace_sampling,
        normalize_path: flag(normalize_path, false),
        merge_slashes,
        escaped_slashes: match ctx.enumeration("path_with_escaped_slashes_action", path_with_escaped_slashes_action)? {
            h::PathWithEscapedSlashesAction::ImplementationSpecificDefault | h::PathWithEscapedSlashesAction::KeepUnchanged => EscapedSlashes::Keep,
            h::PathWithEscapedSlashesAction::RejectRequest => EscapedSlashes::Reject,
            h::PathWithEscapedSlashesAction::UnescapeAndRedirect => EscapedSlashes::UnescapeAndRedirect,
            h::PathWithEscapedSlashesAction::UnescapeAndForward => EscapedSlashes::UnescapeAndForward,
        },
        strip_port,
        strip_trailing_host_dot,
        underscores: common.underscores,
        http1: http_options::http1(&ctx.field("http_protocol_options"), http_protocol_options.unwrap_or_default())?,
        http2: http_options::http2(&ctx.field("http2_protocol_options"), http2_protocol_options.unwrap_or_default())?,
        max_request_headers_kb,
        max_headers_count: common.max_headers_count,
        max_requests_per_connection: common.max_requests_per_connection,
        idle_timeout: common.idle_timeout,
        max_connection_duration: common.max_connection_duration,
        max_stream_duration: common.max_stream_duration,
        stream_idle_timeout: ctx.timeout("stream_idle_timeout", stream_idle_timeout, Some(Duration::from_secs(300)))?,
        request_timeout: ctx.timeout("request_timeout", request_timeout, None)?,
        request_headers_timeout: ctx.timeout("request_headers_timeout", request_headers_timeout, None)?,
        drain_timeout: ctx.duration("drain_timeout", drain_timeout)?.unwrap_or(Duration::from_secs(5)),
        delayed_close_timeout: ctx.timeout("delayed_close_timeout", delayed_close_timeout, Some(Duration::from_secs(1)))?,
        proxy_100_continue,
        stream_error_on_invalid_http: flag(stream_error_on_invalid_http_message, false),
        upgrades: ctx.each("upgrade_configs", upgrade_configs, |c, u| {
            take!(c, u, h::UpgradeConfig { upgrade_type, enabled; refuse filters = "the connection manager's filters are used for upgrades too" });
            if upgrade_type.is_empty() {
                return c.bad("upgrade_type", "is required");
            }
            Ok((Arc::from(upgrade_type.to_ascii_lowercase()), flag(enabled, true)))
        })?,
        local_reply: local_reply_config.map(|l| local_reply(&ctx.field("local_reply_config"), l)).transpose()?.unwrap_or_default(),
    })
}

fn scheme(ctx: &Ctx<'_>, m: Option<core_pb::SchemeHeaderTransformation>) -> Result<(Option<Arc<str>>, bool)> {
    take!(ctx, m.unwrap_or_default(), core_pb::SchemeHeaderTransformation { match_upstream, transformation });
    let overwrite = match transformation {
        None => None,
        Some(core_pb::scheme_header_transformation::Transformation::SchemeToOverwrite(s))
            if s == "http" || s == "https" =>
        {
            Some(s.into())
        }
        Some(core_pb::scheme_header_transformation::Transformation::SchemeToOverwrite(s)) => {
            return ctx.bad("scheme_to_overwrite", format!("{s:?} is not accepted; http or https is"));
        }
    };
    Ok((overwrite, match_upstream))
}

fn client_cert(
    ctx: &Ctx<'_>,
    m: pb::http_connection_manager::SetCurrentClientCertDetails,
) -> Result<ClientCertDetails> {
    take!(ctx, m, pb::http_connection_manager::SetCurrentClientCertDetails {
        subject, cert, chain, dns, uri; refuse issuer = "subject, cert, chain, dns, uri are accepted", format = "TEXT is accepted"
    });
    Ok(ClientCertDetails { subject: flag(subject, false), cert, chain, dns, uri })
}

fn request_id(ctx: &Ctx<'_>, m: Option<pb::RequestIdExtension>) -> Result<(bool, bool)> {
    let Some(any) = m.and_then(|m| m.typed_config) else { return Ok((true, true)) };
    let ctx = ctx.field("typed_config");
    let extension = Extension::open(&ctx, any)?;
    if extension.message != "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig" {
        return extension.unknown(&ctx, "request id extension", "envoy.request_id.uuid");
    }
    take!(
        ctx,
        extension.decode(&ctx)?,
        uuid::UuidRequestIdConfig { pack_trace_reason, use_request_id_for_trace_sampling }
    );
    Ok((flag(pack_trace_reason, true), flag(use_request_id_for_trace_sampling, true)))
}

fn local_reply(ctx: &Ctx<'_>, m: pb::LocalReplyConfig) -> Result<LocalReply> {
    take!(ctx, m, pb::LocalReplyConfig { mappers, body_format });
    let mappers = ctx.each("mappers", mappers, |c, m| {
        take!(c, m, pb::ResponseMapper { filter, status_code, body, body_format_override, headers_to_add });
        let status = match uint(status_code) {
            None => None,
            Some(s @ 200..=599) => Some(s as u16),
            Some(s) => return c.bad("status_code", format!("{s} is not accepted; 200 to 599 is")),
        };
        Ok(LocalReplyMapper {
            filter: access_log::filter(&c.field("filter"), c.required("filter", filter)?)?,
            status,
            body: body.map(|b| core::data_source(&c.field("body"), b)).transpose()?.map(|(b, _)| b),
            body_format: body_format_override
                .map(|f| format::substitution(&c.field("body_format_override"), f))
                .transpose()?,
            headers: c.each("headers_to_add", headers_to_add, core::header_add)?,
        })
    })?;
    Ok(LocalReply {
        mappers,
        body_format: body_format.map(|f| format::substitution(&ctx.field("body_format"), f)).transpose()?,
    })
}
