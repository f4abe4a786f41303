//! Tracing. Source: `HttpConnectionManager.Tracing`, envoy/config/trace/v3/opentelemetry.proto, envoy/type/tracing/v3.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core_pb;
use envoy_types::pb::envoy::config::trace::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::extensions::tracers::opentelemetry::resource_detectors::v3 as detectors;
use envoy_types::pb::envoy::r#type::metadata::v3 as metadata;
use envoy_types::pb::envoy::r#type::tracing::v3 as tag_pb;
use envoy_types::pb::envoy::r#type::v3 as ty;

use super::any::{self, Extension};
use super::{Ctx, Result, core, flag, take, text, uint};
use crate::config::listener::Direction;
use crate::config::matcher::Fraction;
use crate::config::trace::{CustomTag, Provider, TagSource, Tracing};

pub fn tracing(ctx: &Ctx<'_>, m: hcm::http_connection_manager::Tracing) -> Result<Tracing> {
    take!(ctx, m, hcm::http_connection_manager::Tracing {
        client_sampling, random_sampling, overall_sampling, verbose, max_path_tag_length, custom_tags, provider, spawn_upstream_span;
        refuse operation = "the route's decorator is accepted", upstream_operation = "the route's decorator is accepted",
            no_context_propagation = "unset is accepted"
    });
    let share = |field: &str, p: Option<ty::Percent>| -> Result<Fraction> {
        let percent = core::percent(ctx, field, p)?.unwrap_or(100.0);
        // Hundredths of a percent, as Envoy's sampler counts.
        Ok(Fraction { numerator: (percent * 100.0).round() as u32, denominator: 10_000 })
    };
    Ok(Tracing {
        client: share("client_sampling", client_sampling)?,
        random: share("random_sampling", random_sampling)?,
        overall: share("overall_sampling", overall_sampling)?,
        verbose,
        max_path_tag_length: uint(max_path_tag_length).unwrap_or(256) as usize,
        custom_tags: ctx.each("custom_tags", custom_tags, custom_tag)?,
        spawn_upstream_span: flag(spawn_upstream_span, false),
        provider: provider.map(|p| self::provider(&ctx.field("provider"), p).map(Arc::new)).transpose()?,
        egress: ctx.direction() == Direction::Outbound,
    })
}

/// The provider of the connection manager or of the bootstrap.
pub fn provider(ctx: &Ctx<'_>, m: pb::tracing::Http) -> Result<Provider> {
    take!(ctx, m, pb::tracing::Http { config_type; harmless name = "the tracer is told by its type" });
    let pb::tracing::http::ConfigType::TypedConfig(any) = ctx.required("typed_config", config_type)?;
    let ctx = ctx.field("typed_config");
    let extension = Extension::open(&ctx, any)?;
    if extension.message != "envoy.config.trace.v3.OpenTelemetryConfig" {
        return extension.unknown(&ctx, "tracer", "envoy.tracers.opentelemetry");
    }
    take!(ctx, extension.decode(&ctx)?, pb::OpenTelemetryConfig {
        grpc_service, http_service, service_name, resource_detectors;
        refuse exporter = "grpc_service or http_service is accepted", sampler = "the connection manager's sampling is used";
        harmless max_cache_size = "spans wait in a buffer of the exporter's own size",
            set_telemetry_sdk_resource_attributes = "attributes about the library that made the span",
            set_service_name_resource_attribute = "the service name is always set",
            set_instrumentation_scope = "the scope names the library that made the span"
    });
    let mut out = Provider {
        cluster: None,
        authority: None,
        service_name: if service_name.is_empty() {
            "unknown_service:envoy".into()
        } else {
            service_name.into()
        },
        resource_attributes: Vec::new(),
        timeout_ms: 10_000,
        http_path: None,
    };
    match (grpc_service, http_service) {
        (Some(_), Some(_)) => {
            return ctx.bad("http_service", "only one of grpc_service and http_service may be set");
        }
        (None, None) => {}
        (Some(g), None) => {
            let target = core::grpc_service(&ctx.field("grpc_service"), g)?;
            if !target.headers.is_empty() {
                return ctx
                    .field("grpc_service")
                    .bad("initial_metadata", "is not served here; none is accepted");
            }
            out.cluster = Some(target.cluster);
            out.authority = target.authority;
            if let Some(t) = target.timeout {
                out.timeout_ms = u64::try_from(t.as_millis()).unwrap_or(u64::MAX);
            }
        }
        (None, Some(h)) => {
            let ctx = ctx.field("http_service");
            take!(ctx, h, core_pb::HttpService { http_uri; refuse request_headers_to_add = "none is accepted", formatters = "none is accepted" });
            let ctx2 = ctx.field("http_uri");
            take!(
                ctx2,
                ctx.required("http_uri", http_uri)?,
                core_pb::HttpUri { uri, timeout, http_upstream_type }
            );
            let core_pb::http_uri::HttpUpstreamType::Cluster(cluster) =
                ctx2.required("cluster", http_upstream_type)?;
            let rest = uri.split_once("://").map_or(uri.as_str(), |(_, r)| r);
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            out.cluster = Some(cluster.into());
            out.authority = text(authority.to_owned());
            out.http_path = Some(if path.is_empty() { "/v1/traces".into() } else { path.into() });
            if let Some(t) = ctx2.duration("timeout", timeout)? {
                out.timeout_ms = u64::try_from(t.as_millis()).unwrap_or(u64::MAX);
            }
        }
    }
    for (i, d) in resource_detectors.into_iter().enumerate() {
        let ctx = ctx.index("resource_detectors", i);
        let (_, extension) = any::typed(&ctx, d)?;
        match extension.message.as_str() {
            "envoy.extensions.tracers.opentelemetry.resource_detectors.v3.EnvironmentResourceDetectorConfig" =>
            {
                let detectors::EnvironmentResourceDetectorConfig {} = extension.decode(&ctx)?;
                let value = std::env::var("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
                let pairs = value.split(',').filter_map(|p| p.split_once('='));
                out.resource_attributes
                    .extend(pairs.map(|(k, v)| (Arc::from(k.trim()), Arc::from(v.trim()))));
            }
            "envoy.extensions.tracers.opentelemetry.resource_detectors.v3.StaticConfigResourceDetectorConfig" =>
            {
                take!(
                    ctx,
                    extension.decode(&ctx)?,
                    detectors::StaticConfigResourceDetectorConfig { attributes }
                );
                let mut list: Vec<(Arc<str>, Arc<str>)> =
                    attributes.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
                list.sort();
                out.resource_attributes.extend(list);
            }
            _ => {
                return extension.unknown(
                    &ctx,
                    "resource detector",
                    "envoy.tracers.opentelemetry.resource_detectors.{environment, static_config}",
                );
            }
        }
    }
    Ok(out)
}

fn custom_tag(ctx: &Ctx<'_>, m: tag_pb::CustomTag) -> Result<CustomTag> {
    use metadata::metadata_kind::Kind as K;
    use tag_pb::custom_tag::Type as T;
    take!(ctx, m, tag_pb::CustomTag { tag, r#type });
    if tag.is_empty() {
        return ctx.bad("tag", "is required");
    }
    let source = match ctx.required("type", r#type)? {
        T::Literal(tag_pb::custom_tag::Literal { value }) => TagSource::Literal(value.into()),
        T::Environment(tag_pb::custom_tag::Environment { name, default_value }) => {
            TagSource::Literal(std::env::var(&name).unwrap_or(default_value).into())
        }
        T::RequestHeader(tag_pb::custom_tag::Header { name, default_value }) => TagSource::RequestHeader {
            name: ctx.field("request_header").header_name("name", &name)?,
            default: text(default_value),
        },
        T::Metadata(m) => {
            let ctx = ctx.field("metadata");
            take!(ctx, m, tag_pb::custom_tag::Metadata { kind, metadata_key, default_value });
            let path =
                metadata_key_path(&ctx.field("metadata_key"), ctx.required("metadata_key", metadata_key)?)?;
            let default = text(default_value);
            match kind.and_then(|k| k.kind) {
                None | Some(K::Request(_)) => TagSource::RequestMetadata { path, default },
                Some(K::Route(_)) => TagSource::RouteMetadata { path, default },
                Some(K::Cluster(_)) => TagSource::ClusterMetadata { path, default },
                Some(K::Host(_)) => TagSource::HostMetadata { path, default },
            }
        }
        T::Value(v) => {
            return ctx.bad(
                "value",
                format!("{v:?} is not served; literal, environment, request_header, metadata are accepted"),
            );
        }
    };
    Ok(CustomTag { tag: tag.into(), source })
}

fn metadata_key_path(ctx: &Ctx<'_>, m: metadata::MetadataKey) -> Result<Arc<[Arc<str>]>> {
    use metadata::metadata_key::path_segment::Segment as S;
    take!(ctx, m, metadata::MetadataKey { key, path });
    let mut out: Vec<Arc<str>> = vec![key.into()];
    out.extend(ctx.each("path", path, |c, p| match c.required("key", p.segment)? {
        S::Key(k) => Ok(Arc::from(k)),
        S::Index(n) => c.bad("index", format!("{n} is not served; key is accepted")),
    })?);
    Ok(out.into())
}
