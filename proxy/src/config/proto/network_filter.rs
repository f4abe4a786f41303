//! Network filters of a filter chain. Source: envoy/extensions/filters/network. A filter that is not listed is refused by name.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::listener::v3 as listener;
use envoy_types::pb::envoy::extensions::filters::network::connection_limit::v3 as limit;
use envoy_types::pb::envoy::extensions::filters::network::direct_response::v3 as direct;
use envoy_types::pb::envoy::extensions::filters::network::echo::v3 as echo;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use envoy_types::pb::envoy::r#type::v3 as ty;

use super::any::Extension;
use super::{Ctx, Result, access_log, core, hcm, istio, rbac, take, uint};
use crate::config::filter::{NetworkFilter, TcpProxy};

const SERVED: &str = "envoy.filters.network.{http_connection_manager, tcp_proxy, rbac, echo, direct_response, connection_limit}, istio.stats, istio.metadata_exchange";

pub fn network_filter(ctx: &Ctx<'_>, m: listener::Filter) -> Result<NetworkFilter> {
    use listener::filter::ConfigType as C;
    take!(ctx, m, listener::Filter { name, config_type });
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
    Ok(match e.message.as_str() {
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager" => {
            NetworkFilter::Hcm(Arc::new(hcm::hcm(&ctx, e.decode(&ctx)?)?))
        }
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" => {
            NetworkFilter::TcpProxy(Arc::new(tcp_proxy(&ctx, e.decode(&ctx)?)?))
        }
        "envoy.extensions.filters.network.rbac.v3.RBAC" => {
            NetworkFilter::Rbac(Arc::new(rbac::network(&ctx, e.decode(&ctx)?)?))
        }
        "stats.PluginConfig" => NetworkFilter::IstioStats(Arc::new(istio::stats(&ctx, e.decode(&ctx)?)?)),
        "envoy.tcp.metadataexchange.config.MetadataExchange" => {
            let (protocol, enable_discovery) = istio::metadata_exchange(&ctx, e.decode_istio(&ctx)?)?;
            NetworkFilter::MetadataExchange { protocol, enable_discovery }
        }
        "envoy.extensions.filters.network.echo.v3.Echo" => {
            let echo::Echo {} = e.decode(&ctx)?;
            NetworkFilter::Echo
        }
        "envoy.extensions.filters.network.direct_response.v3.Config" => {
            take!(ctx, e.decode(&ctx)?, direct::Config { response });
            NetworkFilter::DirectResponse(match response {
                None => Arc::from([].as_slice()),
                Some(r) => core::data_source(&ctx.field("response"), r)?.0,
            })
        }
        "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit" => {
            take!(
                ctx,
                e.decode(&ctx)?,
                limit::ConnectionLimit { stat_prefix, max_connections, delay, runtime_enabled }
            );
            if runtime_enabled.is_some_and(|f| !core::runtime_flag(&ctx, f)) {
                return ctx.bad("runtime_enabled", "false is not served; leave the filter out");
            }
            NetworkFilter::ConnectionLimit {
                stat_prefix: stat_prefix.into(),
                max: ctx.required("max_connections", max_connections)?.value,
                delay: ctx.timeout("delay", delay, None)?,
            }
        }
        _ => return e.unknown(&ctx, &format!("network filter '{name}' of type"), SERVED),
    })
}

/// Whether a filter ends a chain.
pub fn is_terminal(f: &NetworkFilter) -> bool {
    matches!(
        f,
        NetworkFilter::Hcm(_)
            | NetworkFilter::TcpProxy(_)
            | NetworkFilter::Echo
            | NetworkFilter::DirectResponse(_)
    )
}

fn tcp_proxy(ctx: &Ctx<'_>, m: tcp::TcpProxy) -> Result<TcpProxy> {
    use tcp::tcp_proxy::ClusterSpecifier as C;
    use ty::hash_policy::PolicySpecifier as P;
    take!(ctx, m, tcp::TcpProxy {
        stat_prefix, metadata_match, idle_timeout, access_log, max_connect_attempts, hash_policy,
        max_downstream_connection_duration, access_log_flush_interval, flush_access_log_on_connected, access_log_options,
        cluster_specifier;
        refuse on_demand = "a cluster that is configured is accepted",
            downstream_idle_timeout = "idle_timeout is accepted",
            upstream_idle_timeout = "idle_timeout is accepted",
            backoff_options = "the next attempt is made at once",
            max_downstream_connection_duration_jitter_percentage = "max_downstream_connection_duration without jitter is accepted",
            proxy_protocol_tlvs = "none is accepted",
            upstream_connect_mode = "IMMEDIATE is accepted",
            check_drain_close = "unset is accepted",
            tunneling_config = "bytes are proxied as they are";
        harmless proxy_protocol_tlv_merge_policy = "for proxy_protocol_tlvs alone",
            max_early_data_bytes = "for upstream_connect_mode alone"
    });
    if stat_prefix.is_empty() {
        return ctx.bad("stat_prefix", "is required");
    }
    let clusters = match ctx.required("cluster", cluster_specifier)? {
        C::Cluster(name) => vec![(Arc::from(name), 1, None)],
        C::WeightedClusters(w) => {
            let ctx = ctx.field("weighted_clusters");
            take!(ctx, w, tcp::tcp_proxy::WeightedCluster { clusters });
            if clusters.is_empty() {
                return ctx.bad("clusters", "is required");
            }
            ctx.each("clusters", clusters, |c, w| {
                take!(c, w, tcp::tcp_proxy::weighted_cluster::ClusterWeight { name, weight, metadata_match });
                if weight == 0 {
                    return c.bad("weight", "0 is not accepted; 1 or more is");
                }
                Ok((Arc::from(name), weight, core::lb_metadata(&c.field("metadata_match"), metadata_match)?))
            })?
        }
    };
    let mut hash_source_ip = false;
    for (i, h) in hash_policy.into_iter().enumerate() {
        match h.policy_specifier {
            Some(P::SourceIp(ty::hash_policy::SourceIp {})) => hash_source_ip = true,
            _ => return Err(ctx.index("hash_policy", i).err("only source_ip is served")),
        }
    }
    let ctx2 = ctx.field("access_log_options");
    let options = access_log_options.unwrap_or_default();
    ctx2.refuse("flush_access_log_on_start", &options.flush_access_log_on_start, "false is accepted")?;
    let access_log_flush_interval = match options.access_log_flush_interval {
        Some(d) => ctx2.positive("access_log_flush_interval", Some(d))?,
        None => ctx.positive("access_log_flush_interval", access_log_flush_interval)?,
    };
    let max_connect_attempts = uint(max_connect_attempts).unwrap_or(1);
    if max_connect_attempts == 0 {
        return ctx.bad("max_connect_attempts", "0 is not accepted; 1 or more is");
    }
    Ok(TcpProxy {
        stat_prefix: stat_prefix.into(),
        clusters,
        metadata_match: core::lb_metadata(&ctx.field("metadata_match"), metadata_match)?,
        idle_timeout: ctx.timeout("idle_timeout", idle_timeout, Some(Duration::from_secs(3600)))?,
        max_connect_attempts,
        hash_source_ip,
        max_duration: ctx.timeout(
            "max_downstream_connection_duration",
            max_downstream_connection_duration,
            None,
        )?,
        access_log: access_log::access_logs(ctx, "access_log", access_log)?,
        access_log_flush_interval,
        flush_on_connected: flush_access_log_on_connected || options.flush_access_log_on_connected,
    })
}
