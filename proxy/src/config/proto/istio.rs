//! Istio's own filters. Source: istio/proxy's source/extensions/filters and istio/api.

use std::sync::Arc;

use outrigger_xds::istio as pb;

use super::{Ctx, Result, access_log, take};
use crate::config::filter::{
    AlpnOverride, IstioStats, MetricDefinition, MetricOverride, PeerMetadata, PeerMethod,
};
use crate::config::hcm::Protocol;

/// The ALPN protocol of the exchange, and whether discovery is on.
pub fn metadata_exchange(ctx: &Ctx<'_>, m: pb::MetadataExchange) -> Result<(Arc<str>, bool)> {
    take!(ctx, m, pb::MetadataExchange {
        protocol, enable_discovery;
        harmless additional_labels = "the peer's labels are kept as the peer sends them"
    });
    Ok((if protocol.is_empty() { "istio-peer-exchange".into() } else { protocol.into() }, enable_discovery))
}

pub fn peer_metadata(ctx: &Ctx<'_>, m: pb::PeerMetadataConfig) -> Result<PeerMetadata> {
    take!(
        ctx,
        m,
        pb::PeerMetadataConfig {
            downstream_discovery,
            upstream_discovery,
            downstream_propagation,
            upstream_propagation,
            shared_with_upstream,
            additional_labels
        }
    );
    Ok(PeerMetadata {
        downstream_discovery: ctx.each("downstream_discovery", downstream_discovery, method)?,
        upstream_discovery: ctx.each("upstream_discovery", upstream_discovery, method)?,
        downstream_propagation: propagation(ctx, "downstream_propagation", &downstream_propagation)?,
        upstream_propagation: propagation(ctx, "upstream_propagation", &upstream_propagation)?,
        shared_with_upstream,
        additional_labels: additional_labels.into_iter().map(Arc::from).collect(),
    })
}

fn method(ctx: &Ctx<'_>, m: pb::DiscoveryMethod) -> Result<PeerMethod> {
    take!(ctx, m, pb::DiscoveryMethod { baggage, workload_discovery, istio_headers });
    if let Some(pb::IstioHeaders { skip_external_clusters }) = istio_headers {
        return Ok(PeerMethod::IstioHeaders { skip_external_clusters });
    }
    if let Some(pb::WorkloadDiscovery {}) = workload_discovery {
        return Ok(PeerMethod::WorkloadDiscovery);
    }
    let pb::Baggage {} = ctx.required("istio_headers", baggage)?;
    Ok(PeerMethod::Baggage)
}

fn propagation(ctx: &Ctx<'_>, field: &str, list: &[pb::PropagationMethod]) -> Result<bool> {
    for (i, m) in list.iter().enumerate() {
        if m.baggage.is_some() {
            return Err(ctx.index(field, i).err("baggage is not served; istio_headers is accepted"));
        }
    }
    Ok(list.iter().any(|m| m.istio_headers.is_some()))
}

pub fn stats(ctx: &Ctx<'_>, m: pb::StatsConfig) -> Result<IstioStats> {
    take!(ctx, m, pb::StatsConfig {
        disable_host_header_fallback, tcp_reporting_duration, metrics, definitions, reporter, rotation_interval, graceful_deletion_interval;
        refuse field_separator = "the standard separators are used", value_separator = "the standard separators are used";
        harmless debug = "for the old Wasm extension alone",
            max_peer_cache_size = "for the old Wasm extension alone",
            stat_prefix = "for the old Wasm extension alone"
    });
    Ok(IstioStats {
        disable_host_header_fallback,
        server_gateway_reporter: ctx.enumeration::<pb::StatsReporter>("reporter", reporter)?
            == pb::StatsReporter::ServerGateway,
        tcp_reporting_duration: ctx.duration("tcp_reporting_duration", tcp_reporting_duration)?,
        metrics: ctx.each("metrics", metrics, metric)?,
        definitions: ctx.each("definitions", definitions, |c, d| {
            take!(c, d, pb::StatsMetricDefinition { name, value, r#type });
            let kind = match c.enumeration("type", r#type)? {
                pb::StatsMetricType::Counter => 0,
                pb::StatsMetricType::Gauge => 1,
                pb::StatsMetricType::Histogram => 2,
            };
            Ok(MetricDefinition { name: name.into(), value: value.into(), kind })
        })?,
        rotation_interval: ctx.duration("rotation_interval", rotation_interval)?,
        graceful_deletion_interval: ctx.duration("graceful_deletion_interval", graceful_deletion_interval)?,
    })
}

fn metric(ctx: &Ctx<'_>, m: pb::StatsMetric) -> Result<MetricOverride> {
    take!(ctx, m, pb::StatsMetric { dimensions, name, tags_to_remove, r#match, drop });
    let mut dimensions: Vec<(Arc<str>, Arc<str>)> = dimensions
        .into_iter()
        .map(|(k, v)| {
            Ok((Arc::from(k.as_str()), access_log::cel_expression(&ctx.key("dimensions", &k), &v)?))
        })
        .collect::<Result<_>>()?;
    dimensions.sort();
    Ok(MetricOverride {
        name: name.into(),
        dimensions,
        tags_to_remove: tags_to_remove.into_iter().map(Arc::from).collect(),
        match_expr: if r#match.is_empty() {
            None
        } else {
            Some(access_log::cel_expression(&ctx.field("match"), &r#match)?)
        },
        drop,
    })
}

pub fn alpn(ctx: &Ctx<'_>, m: pb::AlpnFilterConfig) -> Result<Vec<AlpnOverride>> {
    take!(ctx, m, pb::AlpnFilterConfig { alpn_override });
    ctx.each("alpn_override", alpn_override, |c, o| {
        take!(c, o, pb::AlpnOverride { upstream_protocol, alpn_override });
        let upstream_protocol = match c.enumeration("upstream_protocol", upstream_protocol)? {
            pb::AlpnProtocol::Http10 => Protocol::Http10,
            pb::AlpnProtocol::Http11 => Protocol::Http11,
            pb::AlpnProtocol::Http2 => Protocol::Http2,
        };
        Ok(AlpnOverride { upstream_protocol, alpn: alpn_override.into_iter().map(Arc::from).collect() })
    })
}
