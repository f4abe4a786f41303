//! Small HTTP filters: router, CORS, gRPC stats, compressor, header mutation, health check, metadata.
//! Source: envoy/extensions/filters/http, envoy/extensions/compression.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core_pb;
use envoy_types::pb::envoy::extensions::compression::brotli::compressor::v3 as brotli;
use envoy_types::pb::envoy::extensions::compression::gzip::compressor::v3 as gzip;
use envoy_types::pb::envoy::extensions::compression::zstd::compressor::v3 as zstd;
use envoy_types::pb::envoy::extensions::filters::http::compressor::v3 as compressor;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3 as cors_pb;
use envoy_types::pb::envoy::extensions::filters::http::grpc_stats::v3 as grpc;
use envoy_types::pb::envoy::extensions::filters::http::header_mutation::v3 as mutation;
use envoy_types::pb::envoy::extensions::filters::http::health_check::v3 as health;
use envoy_types::pb::envoy::extensions::filters::http::router::v3 as router_pb;
use envoy_types::pb::envoy::extensions::filters::http::set_metadata::v3 as set_metadata;

use super::{Ctx, Result, access_log, any, core, flag, matcher, take, uint};
use crate::config::filter::{CompressionLibrary, Compressor, CorsPolicy, GrpcStats, HealthCheck, Router};
use crate::config::matcher::Fraction;
use crate::config::route::{HeaderMutations, Metadata};

pub fn router(ctx: &Ctx<'_>, m: router_pb::Router) -> Result<Router> {
    take!(ctx, m, router_pb::Router {
        dynamic_stats, start_child_span, upstream_log, suppress_envoy_headers, strict_check_headers, respect_expected_rq_timeout,
        suppress_grpc_request_failure_code_stats, upstream_http_filters;
        refuse upstream_log_options = "upstream_log is written when the try ends";
        harmless reject_connect_request_early_data = "payload before a CONNECT is answered waits, as by default"
    });
    for (i, f) in upstream_http_filters.iter().enumerate() {
        if f.name != "envoy.filters.http.upstream_codec" {
            return Err(ctx.index("upstream_http_filters", i).err(format!(
                "upstream HTTP filter '{}' is not served; envoy.filters.http.upstream_codec is accepted",
                f.name
            )));
        }
    }
    Ok(Router {
        dynamic_stats: flag(dynamic_stats, true),
        start_child_span,
        suppress_envoy_headers,
        respect_expected_rq_timeout,
        suppress_grpc_failure_stats: suppress_grpc_request_failure_code_stats,
        upstream_log: access_log::access_logs(ctx, "upstream_log", upstream_log)?,
        strict_check_headers: ctx
            .each("strict_check_headers", strict_check_headers, |c, n| c.header_name("", &n))?,
    })
}

pub fn cors(ctx: &Ctx<'_>, m: cors_pb::CorsPolicy) -> Result<CorsPolicy> {
    take!(
        ctx,
        m,
        cors_pb::CorsPolicy {
            allow_origin_string_match,
            allow_methods,
            allow_headers,
            expose_headers,
            max_age,
            allow_credentials,
            filter_enabled,
            shadow_enabled,
            allow_private_network_access,
            forward_not_matching_preflights
        }
    );
    Ok(CorsPolicy {
        allow_origin: ctx.each("allow_origin_string_match", allow_origin_string_match, matcher::string)?,
        allow_methods: allow_methods.into(),
        allow_headers: allow_headers.into(),
        expose_headers: expose_headers.into(),
        max_age: max_age.into(),
        allow_credentials: flag(allow_credentials, false),
        allow_private_network: flag(allow_private_network_access, false),
        enabled: filter_enabled
            .map_or(Ok(Fraction::ALL), |f| core::runtime_fraction(&ctx.field("filter_enabled"), f))?,
        shadow_enabled: shadow_enabled
            .map(|f| core::runtime_fraction(&ctx.field("shadow_enabled"), f))
            .transpose()?,
        forward_not_matching_preflights: flag(forward_not_matching_preflights, true),
    })
}

pub fn grpc_stats(ctx: &Ctx<'_>, m: grpc::FilterConfig) -> Result<GrpcStats> {
    use grpc::filter_config::PerMethodStatSpecifier as S;
    take!(ctx, m, grpc::FilterConfig {
        emit_filter_state, enable_upstream_stats, per_method_stat_specifier;
        refuse replace_dots_in_grpc_service_name = "names are kept as they are"
    });
    let stats_for_all_methods = match per_method_stat_specifier {
        None => false,
        Some(S::StatsForAllMethods(b)) => b.value,
        Some(S::IndividualMethodStatsAllowlist(_)) => {
            return ctx.bad(
                "individual_method_stats_allowlist",
                "is not served; stats_for_all_methods is accepted",
            );
        }
    };
    Ok(GrpcStats { emit_filter_state, enable_upstream_stats, stats_for_all_methods })
}

pub fn compressor(ctx: &Ctx<'_>, m: compressor::Compressor) -> Result<Compressor> {
    take!(
        ctx,
        m,
        compressor::Compressor {
            content_length,
            content_type,
            disable_on_etag_header,
            remove_accept_encoding_header,
            compressor_library,
            request_direction_config,
            response_direction_config,
            choose_first,
            runtime_enabled
        }
    );
    if runtime_enabled.is_some_and(|f| !core::runtime_flag(ctx, f)) {
        return ctx.bad("runtime_enabled", "false is not served; leave the filter out");
    }
    if let Some(compressor::compressor::RequestDirectionConfig { common_config }) = request_direction_config {
        let enabled = common_config.and_then(|c| c.enabled).is_some_and(|f| core::runtime_flag(ctx, f));
        if enabled {
            return ctx.bad(
                "request_direction_config",
                "compression of requests is not served; responses are compressed",
            );
        }
    }
    let mut out = Compressor {
        library: library(
            &ctx.field("compressor_library"),
            ctx.required("compressor_library", compressor_library)?,
        )?,
        content_types: content_type.into_iter().map(Arc::from).collect(),
        min_content_length: uint(content_length).unwrap_or(30),
        disable_on_etag: disable_on_etag_header,
        remove_accept_encoding: remove_accept_encoding_header,
        choose_first,
    };
    if let Some(r) = response_direction_config {
        let ctx = ctx.field("response_direction_config");
        take!(ctx, r, compressor::compressor::ResponseDirectionConfig {
            common_config, disable_on_etag_header, remove_accept_encoding_header;
            refuse weaken_etag_on_compress = "disable_on_etag_header is accepted",
                uncompressible_response_codes = "none is accepted",
                status_header_enabled = "unset is accepted"
        });
        out.disable_on_etag = disable_on_etag_header;
        out.remove_accept_encoding = remove_accept_encoding_header;
        let ctx = ctx.field("common_config");
        take!(ctx, common_config.unwrap_or_default(), compressor::compressor::CommonDirectionConfig {
            enabled, min_content_length, content_type; refuse content_type_matcher = "content_type is accepted"
        });
        if enabled.is_some_and(|f| !core::runtime_flag(&ctx, f)) {
            return ctx.bad("enabled", "false is not served; leave the filter out");
        }
        out.min_content_length = uint(min_content_length).unwrap_or(30);
        out.content_types = content_type.into_iter().map(Arc::from).collect();
    }
    if out.content_types.is_empty() {
        out.content_types = [
            "application/javascript",
            "application/json",
            "application/xhtml+xml",
            "image/svg+xml",
            "text/css",
            "text/html",
            "text/plain",
            "text/xml",
        ]
        .into_iter()
        .map(Arc::from)
        .collect();
    }
    Ok(out)
}

fn library(ctx: &Ctx<'_>, m: core_pb::TypedExtensionConfig) -> Result<CompressionLibrary> {
    let (_, extension) = any::typed(ctx, m)?;
    Ok(match extension.message.as_str() {
        "envoy.extensions.compression.gzip.compressor.v3.Gzip" => {
            use gzip::gzip::CompressionLevel as L;
            take!(ctx, extension.decode(ctx)?, gzip::Gzip {
                compression_level;
                harmless memory_level = "memory against speed of one library",
                    compression_strategy = "the output is gzip in any case",
                    window_bits = "the output is gzip in any case",
                    chunk_size = "a buffer's size"
            });
            let level = match ctx.enumeration("compression_level", compression_level)? {
                L::DefaultCompression => 6,
                L::BestSpeed => 1,
                other => other as u32,
            };
            CompressionLibrary::Gzip { level }
        }
        "envoy.extensions.compression.brotli.compressor.v3.Brotli" => {
            take!(ctx, extension.decode(ctx)?, brotli::Brotli {
                quality;
                harmless encoder_mode = "the output is brotli in any case",
                    window_bits = "the output is brotli in any case",
                    input_block_bits = "a buffer's size",
                    chunk_size = "a buffer's size",
                    disable_literal_context_modeling = "speed against size of one library"
            });
            CompressionLibrary::Brotli { quality: uint(quality).unwrap_or(3) }
        }
        "envoy.extensions.compression.zstd.compressor.v3.Zstd" => {
            take!(ctx, extension.decode(ctx)?, zstd::Zstd {
                compression_level;
                refuse dictionary = "none is accepted";
                harmless enable_checksum = "a decoder takes it with or without",
                    strategy = "the output is zstd in any case",
                    chunk_size = "a buffer's size"
            });
            CompressionLibrary::Zstd {
                level: uint(compression_level).map_or(3, |v| i32::try_from(v).unwrap_or(22)),
            }
        }
        _ => {
            return extension.unknown(
                ctx,
                "compressor library",
                "envoy.compression.{gzip, brotli, zstd}.compressor",
            );
        }
    })
}

pub fn header_mutation(ctx: &Ctx<'_>, m: Option<mutation::Mutations>) -> Result<HeaderMutations> {
    let ctx = ctx.field("mutations");
    take!(ctx, m.unwrap_or_default(), mutation::Mutations {
        request_mutations, response_mutations;
        refuse query_parameter_mutations = "header mutations are accepted",
            response_trailers_mutations = "header mutations are accepted",
            request_trailers_mutations = "header mutations are accepted"
    });
    let (request_add, request_remove) = core::header_mutations(&ctx, "request_mutations", request_mutations)?;
    let (response_add, response_remove) =
        core::header_mutations(&ctx, "response_mutations", response_mutations)?;
    Ok(HeaderMutations { request_add, request_remove, response_add, response_remove })
}

pub fn health_check(ctx: &Ctx<'_>, m: health::HealthCheck) -> Result<HealthCheck> {
    take!(ctx, m, health::HealthCheck {
        pass_through_mode, cache_time, headers;
        refuse cluster_min_healthy_percentages = "none is accepted"
    });
    Ok(HealthCheck {
        pass_through: ctx.required("pass_through_mode", pass_through_mode)?.value,
        headers: matcher::headers(ctx, "headers", headers)?,
        cache_time: ctx.timeout("cache_time", cache_time, None)?,
    })
}

pub fn set_metadata(ctx: &Ctx<'_>, m: set_metadata::Config) -> Result<Metadata> {
    take!(ctx, m, set_metadata::Config { metadata_namespace, value, metadata });
    let mut out = serde_json::Map::new();
    let mut put = |ns: String, value: Option<_>| {
        if let Some(v) = value {
            out.insert(ns, serde_json::Value::Object(core::json(&v)));
        }
    };
    if !metadata_namespace.is_empty() {
        put(metadata_namespace, value);
    }
    for (i, m) in metadata.into_iter().enumerate() {
        let ctx = ctx.index("metadata", i);
        take!(ctx, m, set_metadata::Metadata {
            metadata_namespace, value;
            refuse typed_value = "value is accepted";
            harmless allow_overwrite = "the filter runs once, before any other writes to its namespace"
        });
        if metadata_namespace.is_empty() {
            return ctx.bad("metadata_namespace", "is required");
        }
        put(metadata_namespace, value);
    }
    Ok(if out.is_empty() { None } else { Some(Arc::new(out)) })
}
