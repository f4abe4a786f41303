//! HTTP protocol options of listeners and clusters. Source: envoy/config/core/v3/protocol.proto,
//! envoy/extensions/upstreams/http/v3/http_protocol_options.proto.

use std::collections::HashMap;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as pb;
use envoy_types::pb::google::protobuf::Any;

use super::any::{self, Extension};
use super::{Ctx, Result, flag, take, text, uint};
use crate::config::cluster::{UpstreamHttp, UpstreamProtocol};
use crate::config::hcm::{HeaderCase, Http1Options, Http2Options, Underscores};

/// `HttpProtocolOptions`, either side's.
#[derive(Clone, Debug)]
pub struct CommonHttp {
    pub idle_timeout: Option<Duration>,
    pub max_connection_duration: Option<Duration>,
    pub max_headers_count: u32,
    pub max_response_headers_kb: Option<u32>,
    pub max_stream_duration: Option<Duration>,
    pub underscores: Underscores,
    pub max_requests_per_connection: Option<u32>,
}

pub fn common(ctx: &Ctx<'_>, m: core::HttpProtocolOptions) -> Result<CommonHttp> {
    use core::http_protocol_options::HeadersWithUnderscoresAction as U;
    take!(ctx, m, core::HttpProtocolOptions {
        idle_timeout, max_connection_duration, max_headers_count, max_response_headers_kb, max_stream_duration,
        headers_with_underscores_action, max_requests_per_connection;
        refuse max_connection_duration_jitter = "max_connection_duration without jitter is accepted"
    });
    let max_headers_count = uint(max_headers_count).unwrap_or(100);
    if max_headers_count == 0 {
        return ctx.bad("max_headers_count", "0 is not accepted; 1 or more is");
    }
    Ok(CommonHttp {
        idle_timeout: ctx.timeout("idle_timeout", idle_timeout, Some(Duration::from_secs(3600)))?,
        max_connection_duration: ctx.timeout("max_connection_duration", max_connection_duration, None)?,
        max_headers_count,
        max_response_headers_kb: uint(max_response_headers_kb),
        max_stream_duration: ctx.timeout("max_stream_duration", max_stream_duration, None)?,
        underscores: match ctx
            .enumeration("headers_with_underscores_action", headers_with_underscores_action)?
        {
            U::Allow => Underscores::Allow,
            U::RejectRequest => Underscores::Reject,
            U::DropHeader => Underscores::Drop,
        },
        max_requests_per_connection: uint(max_requests_per_connection).filter(|n| *n > 0),
    })
}

pub fn http1(ctx: &Ctx<'_>, m: core::Http1ProtocolOptions) -> Result<Http1Options> {
    use core::http1_protocol_options::header_key_format::HeaderFormat as F;
    take!(ctx, m, core::Http1ProtocolOptions {
        allow_absolute_url, accept_http_10, default_host_for_http_10, header_key_format, enable_trailers, allow_chunked_length,
        override_stream_error_on_invalid_http_message, send_fully_qualified_url, allow_custom_methods;
        refuse ignore_http_11_upgrade = "upgrade_configs decide which upgrades are taken";
        harmless use_balsa_parser = "the codec is our own and follows the strict rules of either parser"
    });
    let header_case = match header_key_format {
        None => HeaderCase::Lower,
        Some(core::http1_protocol_options::HeaderKeyFormat { header_format }) => {
            let ctx = ctx.field("header_key_format");
            match ctx.required("header_format", header_format)? {
                F::ProperCaseWords(core::http1_protocol_options::header_key_format::ProperCaseWords {}) => {
                    HeaderCase::ProperCase
                }
                F::StatefulFormatter(t) => {
                    let ctx = ctx.field("stateful_formatter");
                    let (_, extension) = any::typed(&ctx, t)?;
                    return extension.unknown(
                        &ctx,
                        "header formatter",
                        "proper_case_words; the original case of names is not kept",
                    );
                }
            }
        }
    };
    Ok(Http1Options {
        accept_http_10,
        default_host_for_http_10: text(default_host_for_http_10),
        allow_absolute_url: flag(allow_absolute_url, true),
        header_case,
        enable_trailers,
        allow_chunked_length,
        send_fully_qualified_url,
        keep_open_on_error: override_stream_error_on_invalid_http_message.map(|v| v.value),
        allow_custom_methods,
    })
}

pub fn http2(ctx: &Ctx<'_>, m: core::Http2ProtocolOptions) -> Result<Http2Options> {
    take!(ctx, m, core::Http2ProtocolOptions {
        hpack_table_size, max_concurrent_streams, initial_stream_window_size, initial_connection_window_size, allow_connect,
        stream_error_on_invalid_http_messaging, override_stream_error_on_invalid_http_message;
        refuse connection_keepalive = "pings are not sent; tcp_keepalive is served", allow_metadata = "METADATA frames are not served", custom_settings_parameters = "none is accepted";
        harmless max_outbound_frames = "the h2 library bounds what it queues",
            max_outbound_control_frames = "the h2 library bounds what it queues",
            max_consecutive_inbound_frames_with_empty_payload = "the h2 library has its own limits against floods",
            max_inbound_priority_frames_per_stream = "PRIORITY frames are dropped unread",
            max_inbound_window_update_frames_per_data_frame_sent = "the h2 library has its own limits against floods",
            use_oghttp2_codec = "names a codec of Envoy",
            max_metadata_size = "METADATA frames are not served",
            enable_huffman_encoding = "an encoder's choice that no peer can observe but in length",
            max_header_field_size_kb = "the whole header list is limited by max_request_headers_kb",
            disallow_obs_text = "for a codec of Envoy that is not the default",
            stream_reset_burst = "the h2 library has its own limit against rapid resets",
            stream_reset_rate = "the h2 library has its own limit against rapid resets"
    });
    let default = Http2Options::default();
    let window = |field: &str, v: Option<u32>, default: u32| match v {
        Some(v) if !(65_535..=0x7fff_ffff).contains(&v) => {
            ctx.bad(field, format!("{v} is out of range; 65535 to 2147483647 is accepted"))
        }
        v => Ok(v.unwrap_or(default)),
    };
    let max_concurrent_streams = uint(max_concurrent_streams).unwrap_or(default.max_concurrent_streams);
    if !(1..=0x7fff_ffff).contains(&max_concurrent_streams) {
        return ctx.bad(
            "max_concurrent_streams",
            format!("{max_concurrent_streams} is out of range; 1 to 2147483647 is accepted"),
        );
    }
    Ok(Http2Options {
        max_concurrent_streams,
        initial_stream_window: window(
            "initial_stream_window_size",
            uint(initial_stream_window_size),
            default.initial_stream_window,
        )?,
        initial_connection_window: window(
            "initial_connection_window_size",
            uint(initial_connection_window_size),
            default.initial_connection_window,
        )?,
        hpack_table_size: uint(hpack_table_size).unwrap_or(default.hpack_table_size),
        allow_connect,
        max_frame_size: None,
        keep_stream_on_invalid: override_stream_error_on_invalid_http_message
            .map_or(stream_error_on_invalid_http_messaging, |v| v.value),
    })
}

/// The cluster's HTTP side: the extension, else the deprecated fields of the cluster itself.
#[derive(Debug)]
pub struct ClusterHttp {
    pub protocol: UpstreamProtocol,
    pub http: UpstreamHttp,
    pub max_requests_per_connection: Option<u32>,
}

/// Deprecated fields of a cluster that say what `HttpProtocolOptions` says.
#[derive(Debug)]
pub struct Deprecated {
    pub common: Option<core::HttpProtocolOptions>,
    pub http1: Option<core::Http1ProtocolOptions>,
    pub http2: Option<core::Http2ProtocolOptions>,
    pub upstream: Option<core::UpstreamHttpProtocolOptions>,
    pub use_downstream: bool,
}

pub fn cluster(ctx: &Ctx<'_>, options: HashMap<String, Any>, old: Deprecated) -> Result<ClusterHttp> {
    const NAME: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let mut found = None;
    for (key, value) in options {
        let ctx = ctx.key("typed_extension_protocol_options", &key);
        let extension = Extension::open(&ctx, value)?;
        if extension.message != NAME {
            return extension.unknown(&ctx, "protocol options", NAME);
        }
        found = Some(extension.decode::<pb::HttpProtocolOptions>(&ctx)?);
    }
    match found {
        Some(m) => upstream(&ctx.key("typed_extension_protocol_options", NAME), m),
        None => {
            let protocol = match (&old.http2, old.use_downstream) {
                (_, true) => UpstreamProtocol::Downstream,
                (Some(_), false) => UpstreamProtocol::Http2,
                (None, false) => UpstreamProtocol::Http1,
            };
            finish(ctx, protocol, old.common, old.upstream, old.http1, old.http2)
        }
    }
}

fn finish(
    ctx: &Ctx<'_>,
    protocol: UpstreamProtocol,
    common_options: Option<core::HttpProtocolOptions>,
    upstream: Option<core::UpstreamHttpProtocolOptions>,
    http1_options: Option<core::Http1ProtocolOptions>,
    http2_options: Option<core::Http2ProtocolOptions>,
) -> Result<ClusterHttp> {
    let common = common(&ctx.field("common_http_protocol_options"), common_options.unwrap_or_default())?;
    let ctx2 = ctx.field("upstream_http_protocol_options");
    take!(
        ctx2,
        upstream.unwrap_or_default(),
        core::UpstreamHttpProtocolOptions { auto_sni, auto_san_validation, override_auto_sni_header }
    );
    let override_auto_sni_header = if override_auto_sni_header.is_empty() {
        None
    } else {
        Some(ctx2.header_name("override_auto_sni_header", &override_auto_sni_header)?)
    };
    let http = UpstreamHttp {
        http1: http1(&ctx.field("http_protocol_options"), http1_options.unwrap_or_default())?,
        http2: http2(&ctx.field("http2_protocol_options"), http2_options.unwrap_or_default())?,
        idle_timeout: common.idle_timeout,
        max_connection_duration: common.max_connection_duration,
        max_stream_duration: common.max_stream_duration,
        max_response_headers_kb: common.max_response_headers_kb,
        max_headers_count: common.max_headers_count,
        auto_sni,
        auto_san_validation,
        override_auto_sni_header,
        reject_underscores: (common.underscores != Underscores::Allow).then_some(common.underscores),
    };
    Ok(ClusterHttp { protocol, http, max_requests_per_connection: common.max_requests_per_connection })
}

fn upstream(ctx: &Ctx<'_>, m: pb::HttpProtocolOptions) -> Result<ClusterHttp> {
    use pb::http_protocol_options::UpstreamProtocolOptions as P;
    use pb::http_protocol_options::explicit_http_config::ProtocolConfig as C;
    take!(ctx, m, pb::HttpProtocolOptions {
        common_http_protocol_options, upstream_http_protocol_options, upstream_protocol_options, http_filters;
        refuse header_validation_config = "headers are always validated",
            outlier_detection = "the cluster's outlier_detection is accepted",
            request_mirror_policies = "the route's are accepted",
            hash_policy = "the route's is accepted",
            retry_policy = "the route's is accepted"
    });
    for (i, f) in http_filters.iter().enumerate() {
        // The codec stands at the end of every chain anyway.
        if f.name != "envoy.filters.http.upstream_codec" {
            return Err(ctx.index("http_filters", i).err(format!(
                "upstream HTTP filter '{}' is not served; envoy.filters.http.upstream_codec is accepted",
                f.name
            )));
        }
    }
    let (protocol, h1, h2) = match upstream_protocol_options {
        // Istio leaves it out where only the common options matter.
        None => (UpstreamProtocol::Http1, None, None),
        Some(P::ExplicitHttpConfig(e)) => {
            let ctx = ctx.field("explicit_http_config");
            take!(ctx, e, pb::http_protocol_options::ExplicitHttpConfig { protocol_config });
            match ctx.required("protocol_config", protocol_config)? {
                C::HttpProtocolOptions(o) => (UpstreamProtocol::Http1, Some(o), None),
                C::Http2ProtocolOptions(o) => (UpstreamProtocol::Http2, None, Some(o)),
                C::Http3ProtocolOptions(_) => {
                    return ctx.bad(
                        "http3_protocol_options",
                        "HTTP/3 is not served; http_protocol_options or http2_protocol_options is accepted",
                    );
                }
            }
        }
        Some(P::UseDownstreamProtocolConfig(u)) => {
            let ctx = ctx.field("use_downstream_protocol_config");
            take!(ctx, u, pb::http_protocol_options::UseDownstreamHttpConfig {
                http_protocol_options, http2_protocol_options;
                refuse http3_protocol_options = "HTTP/3 is not served"
            });
            (UpstreamProtocol::Downstream, http_protocol_options, http2_protocol_options)
        }
        Some(P::AutoConfig(a)) => {
            let ctx = ctx.field("auto_config");
            take!(ctx, a, pb::http_protocol_options::AutoHttpConfig {
                http_protocol_options, http2_protocol_options;
                refuse http3_protocol_options = "HTTP/3 is not served", alternate_protocols_cache_options = "HTTP/3 is not served"
            });
            (UpstreamProtocol::Auto, http_protocol_options, http2_protocol_options)
        }
    };
    finish(ctx, protocol, common_http_protocol_options, upstream_http_protocol_options, h1, h2)
}
