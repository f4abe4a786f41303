//! HTTP filters of a connection manager, and their overrides by route. A filter that is not listed is refused by name.

use std::collections::HashMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3 as route_pb;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3 as cors_pb;
use envoy_types::pb::envoy::extensions::filters::http::header_mutation::v3 as mutation;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3 as rbac_pb;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use envoy_types::pb::google::protobuf::Any;

use super::any::Extension;
use super::{Ctx, Result, fault, filter_misc, istio, rbac, take};
use crate::config::filter::{FilterOverride, HttpFilter, HttpFilterConfig};
use crate::config::route::Overrides;

const SERVED: &str = "envoy.filters.http.{router, cors, fault, grpc_stats, rbac, compressor, header_mutation, health_check, local_ratelimit, \
set_metadata}, istio.metadata_exchange, istio.alpn, istio.stats";

pub fn http_filter(ctx: &Ctx<'_>, m: pb::HttpFilter) -> Result<HttpFilter> {
    use pb::http_filter::ConfigType as C;
    take!(ctx, m, pb::HttpFilter { name, disabled, config_type, is_optional });
    if is_optional {
        return ctx.bad("is_optional", "true is not served; a filter is either served or refused");
    }
    if name.is_empty() {
        return ctx.bad("name", "is required");
    }
    let any = match config_type {
        Some(C::TypedConfig(any)) => any,
        None => return ctx.bad("typed_config", format!("is required (filter '{name}')")),
        Some(C::ConfigDiscovery(_)) => {
            return ctx.bad(
                "config_discovery",
                format!("extension discovery of filter '{name}' is not served; typed_config is accepted"),
            );
        }
    };
    let ctx = ctx.field("typed_config");
    let e = Extension::open(&ctx, any)?;
    let config = match e.message.as_str() {
        "envoy.extensions.filters.http.router.v3.Router" => {
            HttpFilterConfig::Router(filter_misc::router(&ctx, e.decode(&ctx)?)?)
        }
        "envoy.extensions.filters.http.cors.v3.Cors" => {
            let cors_pb::Cors {} = e.decode(&ctx)?;
            HttpFilterConfig::Cors
        }
        "envoy.extensions.filters.http.fault.v3.HTTPFault" => {
            HttpFilterConfig::Fault(Arc::new(fault::fault(&ctx, e.decode(&ctx)?)?))
        }
        "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig" => {
            HttpFilterConfig::GrpcStats(filter_misc::grpc_stats(&ctx, e.decode(&ctx)?)?)
        }
        "envoy.extensions.filters.http.rbac.v3.RBAC" => {
            HttpFilterConfig::Rbac(Arc::new(rbac::http(&ctx, e.decode(&ctx)?)?))
        }
        "envoy.extensions.filters.http.compressor.v3.Compressor" => {
            HttpFilterConfig::Compressor(Arc::new(filter_misc::compressor(&ctx, e.decode(&ctx)?)?))
        }
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation" => {
            take!(ctx, e.decode(&ctx)?, mutation::HeaderMutation {
                mutations; refuse most_specific_header_mutations_wins = "unset is accepted"
            });
            HttpFilterConfig::HeaderMutation(Arc::new(filter_misc::header_mutation(&ctx, mutations)?))
        }
        "envoy.extensions.filters.http.health_check.v3.HealthCheck" => {
            HttpFilterConfig::HealthCheck(Arc::new(filter_misc::health_check(&ctx, e.decode(&ctx)?)?))
        }
        "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit" => {
            HttpFilterConfig::LocalRateLimit(Arc::new(fault::local_rate_limit(&ctx, e.decode(&ctx)?)?))
        }
        "envoy.extensions.filters.http.set_metadata.v3.Config" => {
            HttpFilterConfig::SetMetadata(filter_misc::set_metadata(&ctx, e.decode(&ctx)?)?)
        }
        "io.istio.http.peer_metadata.Config" => {
            HttpFilterConfig::PeerMetadata(Arc::new(istio::peer_metadata(&ctx, e.decode_istio(&ctx)?)?))
        }
        "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig" => {
            HttpFilterConfig::IstioAlpn(Arc::new(istio::alpn(&ctx, e.decode(&ctx)?)?))
        }
        "stats.PluginConfig" => HttpFilterConfig::IstioStats(Arc::new(istio::stats(&ctx, e.decode(&ctx)?)?)),
        _ => return e.unknown(&ctx, &format!("HTTP filter '{name}' of type"), SERVED),
    };
    Ok(HttpFilter { name: name.into(), config, disabled })
}

/// The filters of a connection manager: the router stands last, and only there.
pub fn chain(ctx: &Ctx<'_>, field: &str, list: Vec<pb::HttpFilter>) -> Result<Vec<HttpFilter>> {
    let filters = ctx.each(field, list, http_filter)?;
    let routers: Vec<usize> = filters
        .iter()
        .enumerate()
        .filter(|(_, f)| matches!(f.config, HttpFilterConfig::Router(_)))
        .map(|(i, _)| i)
        .collect();
    if routers.as_slice() != [filters.len().wrapping_sub(1)] {
        return ctx.bad(field, "the last filter, and only that, must be envoy.filters.http.router");
    }
    if filters.iter().any(|f| f.disabled && matches!(f.config, HttpFilterConfig::Router(_))) {
        return ctx.bad(field, "the router cannot be disabled");
    }
    Ok(filters)
}

/// `typed_per_filter_config`, sorted by the filter's name.
pub fn overrides(ctx: &Ctx<'_>, map: HashMap<String, Any>) -> Result<Overrides> {
    let mut list: Vec<_> = map.into_iter().collect();
    list.sort_by(|a, b| a.0.cmp(&b.0));
    let mut out = Vec::with_capacity(list.len());
    for (name, any) in list {
        let value = one_override(&ctx.key("typed_per_filter_config", &name), any)?;
        out.push((Arc::from(name), value));
    }
    Ok(out)
}

fn one_override(ctx: &Ctx<'_>, any: Any) -> Result<FilterOverride> {
    let e = Extension::open(ctx, any)?;
    Ok(match e.message.as_str() {
        "envoy.config.route.v3.FilterConfig" => {
            take!(ctx, e.decode(ctx)?, route_pb::FilterConfig { config, is_optional, disabled });
            if is_optional {
                return ctx.bad("is_optional", "true is not served; an override is either served or refused");
            }
            match config {
                _ if disabled => FilterOverride::Disabled,
                Some(any) if any.type_url.ends_with("/envoy.config.route.v3.FilterConfig") => {
                    return ctx.bad("config", "a FilterConfig in a FilterConfig is not accepted");
                }
                Some(any) if !any.type_url.is_empty() => one_override(&ctx.field("config"), any)?,
                _ => FilterOverride::Enabled,
            }
        }
        "envoy.extensions.filters.http.cors.v3.CorsPolicy" => FilterOverride::Cors(Arc::new(filter_misc::cors(ctx, e.decode(ctx)?)?)),
        "envoy.extensions.filters.http.fault.v3.HTTPFault" => FilterOverride::Fault(Arc::new(fault::fault(ctx, e.decode(ctx)?)?)),
        "envoy.extensions.filters.http.rbac.v3.RBACPerRoute" => {
            take!(ctx, e.decode(ctx)?, rbac_pb::RbacPerRoute { rbac });
            FilterOverride::Rbac(rbac.map(|r| rbac::http(&ctx.field("rbac"), r).map(Arc::new)).transpose()?)
        }
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute" => {
            take!(ctx, e.decode(ctx)?, mutation::HeaderMutationPerRoute { mutations });
            FilterOverride::HeaderMutation(Arc::new(filter_misc::header_mutation(ctx, mutations)?))
        }
        "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit" => FilterOverride::LocalRateLimit(Arc::new(fault::local_rate_limit(ctx, e.decode(ctx)?)?)),
        _ => return e.unknown(ctx, "override of type", "FilterConfig, cors.CorsPolicy, fault.HTTPFault, rbac.RBACPerRoute, header_mutation.HeaderMutationPerRoute, local_ratelimit.LocalRateLimit"),
    })
}
