//! The bootstrap. Source: envoy/config/bootstrap/v3, envoy/config/metrics/v3, envoy/config/overload/v3.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::bootstrap::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core_pb;
use envoy_types::pb::envoy::config::metrics::v3 as metrics;
use envoy_types::pb::envoy::config::overload::v3 as overload;
use envoy_types::pb::envoy::extensions::bootstrap::internal_listener::v3 as internal;
use envoy_types::pb::envoy::extensions::resource_monitors::downstream_connections::v3 as downstream;
use prost::Message;
use serde_json::Value;

use super::any::{self, Extension};
use super::{Ctx, Env, Need, Result, Root, access_log, cluster, core, flag, listener, matcher, take, tls};
use crate::config::bootstrap::{Admin, Bootstrap, Node, StatsConfig, StatsMatcher, TagRule};

/// A bootstrap and what goes with it.
#[derive(Debug)]
pub struct Converted {
    pub bootstrap: Bootstrap,
    /// For the conversion of dynamic resources.
    pub env: Env,
    /// What each static cluster needs of dynamic resources.
    pub cluster_needs: Vec<Vec<Need>>,
    /// What each static listener needs.
    pub listener_needs: Vec<Vec<Need>>,
}

/// Converts a whole bootstrap: its static listeners, clusters and secrets too.
///
/// # Errors
/// What is not served or not valid, with the resource's name and the field's path.
pub fn bootstrap(m: pb::Bootstrap) -> Result<Converted> {
    let empty = Env::default();
    let root = Root::new("bootstrap", "", &empty);
    let ctx = root.ctx();
    take!(ctx, m, pb::Bootstrap {
        node, static_resources, dynamic_resources, cluster_manager, stats_config, stats_flush_interval, layered_runtime, admin,
        overload_manager, header_prefix, dns_resolution_config, typed_dns_resolver_config, bootstrap_extensions, default_regex_engine;
        refuse use_tcp_for_dns_lookups = "UDP with TCP on truncation is used", tracing = "the connection manager's provider is accepted", hds_config = "none is accepted",
            stats_sinks = "Prometheus scrapes the stats; none is accepted",
            fatal_actions = "none is accepted",
            config_sources = "none is accepted",
            default_config_source = "none is accepted",
            default_socket_interface = "the system's sockets are used",
            certificate_provider_instances = "none is accepted",
            inline_headers = "none is accepted",
            xds_delegate_extension = "none is accepted",
            xds_config_tracker_extension = "none is accepted",
            listener_manager = "the built-in one is used";
        harmless stats_flush = "values are gathered when they are asked for", application_log_config = "the process's own log keeps its form", node_context_params = "for xdstp names, which are not served",
            flags_path = "for runtime flags on disk, which are not read",
            deferred_stat_options = "a cluster without traffic has no stats in any case",
            watchdog = "a worker that hangs is seen by the health probe",
            watchdogs = "a worker that hangs is seen by the health probe",
            enable_dispatcher_stats = "there is no such dispatcher",
            stats_server_version_override = "server.version is derived from the version",
            perf_tracing_file_path = "for a build of Envoy with tracing compiled in",
            grpc_async_client_manager_config = "how long Envoy caches gRPC clients",
            memory_allocator_manager = "the allocator releases memory by itself",
            enable_worker_cpu_affinity = "the scheduler places workers",
            stats_eviction = "stats of removed resources go with them"
    });
    let runtime = runtime(&ctx, layered_runtime)?;
    let env = Env { runtime: runtime.clone().into(), is_static: true };
    let root = Root::new("bootstrap", "", &env);
    let ctx = root.ctx();
    if let Some(e) = default_regex_engine {
        let ctx = ctx.field("default_regex_engine");
        let (_, e) = any::typed(&ctx, e)?;
        if e.message != "envoy.extensions.regex_engines.v3.GoogleRE2" {
            return e.unknown(&ctx, "regex engine", "envoy.regex_engines.google_re2");
        }
    }
    for (i, e) in bootstrap_extensions.into_iter().enumerate() {
        let ctx = ctx.index("bootstrap_extensions", i);
        let (_, e) = any::typed(&ctx, e)?;
        if e.message != "envoy.extensions.bootstrap.internal_listener.v3.InternalListener" {
            return e.unknown(&ctx, "bootstrap extension", "envoy.bootstrap.internal_listener");
        }
        take!(ctx, e.decode(&ctx)?, internal::InternalListener { ; harmless buffer_size_kb = "internal listeners are refused where they stand, so the extension alone does nothing" });
    }

    let pb::bootstrap::StaticResources { listeners, clusters, secrets } =
        static_resources.unwrap_or_default();
    let secrets = secrets.into_iter().map(|s| tls::secret(&env, s)).collect::<Result<Vec<_>>>()?;
    let mut cluster_needs = Vec::new();
    let mut listener_needs = Vec::new();
    let clusters = clusters
        .into_iter()
        .map(|c| {
            let (cluster, more) = cluster::cluster(&env, c)?;
            cluster_needs.push(more);
            Ok(Arc::new(cluster))
        })
        .collect::<Result<Vec<_>>>()?;
    for (i, c) in clusters.iter().enumerate() {
        if clusters[..i].iter().any(|o| o.name == c.name) {
            return ctx.bad(
                &format!("static_resources.clusters[{i}].name"),
                format!("cluster '{}' stands twice", c.name),
            );
        }
    }
    let listeners = listeners
        .into_iter()
        .map(|l| {
            let (listener, more) = listener::listener(&env, l)?;
            listener_needs.push(more);
            Ok(Arc::new(listener))
        })
        .collect::<Result<Vec<_>>>()?;

    let ctx2 = ctx.field("dynamic_resources");
    take!(ctx2, dynamic_resources.unwrap_or_default(), pb::bootstrap::DynamicResources {
        lds_config, cds_config, ads_config;
        refuse lds_resources_locator = "lds_config is accepted", cds_resources_locator = "cds_config is accepted"
    });
    let ads = ads_config.map(|a| core::api_source(&ctx2.field("ads_config"), a)).transpose()?;
    let lds = lds_config.map(|c| core::config_source(&ctx2.field("lds_config"), c)).transpose()?;
    let cds = cds_config.map(|c| core::config_source(&ctx2.field("cds_config"), c)).transpose()?;

    let ctx2 = ctx.field("cluster_manager");
    take!(ctx2, cluster_manager.unwrap_or_default(), pb::ClusterManager {
        outlier_detection;
        refuse upstream_bind_config = "the cluster's own is accepted", load_stats_config = "load reports are not sent";
        harmless local_cluster_name = "zone aware routing compares with the node's zone",
            enable_deferred_cluster_creation = "a cluster is always made when it is first used"
    });
    let outlier_event_log = match outlier_detection {
        None => None,
        Some(o) => {
            let ctx = ctx2.field("outlier_detection");
            take!(ctx, o, pb::cluster_manager::OutlierDetection { event_log_path; refuse event_service = "event_log_path is accepted" });
            super::text(event_log_path)
        }
    };
    let bootstrap = Bootstrap {
        node: self::node(&ctx.field("node"), node.unwrap_or_default())?,
        listeners,
        clusters,
        secrets,
        admin: admin.map(|a| self::admin(&ctx.field("admin"), a)).transpose()?.flatten(),
        lds,
        cds,
        ads,
        stats: stats(&ctx.field("stats_config"), stats_config.unwrap_or_default())?,
        stats_flush_interval: ctx
            .positive("stats_flush_interval", stats_flush_interval)?
            .unwrap_or(Duration::from_secs(5)),
        runtime,
        outlier_event_log,
        max_downstream_connections: overload(
            &ctx.field("overload_manager"),
            overload_manager.unwrap_or_default(),
        )?,
        header_prefix: if header_prefix.is_empty() || header_prefix == "x-envoy" {
            "x-envoy".into()
        } else {
            return ctx.bad("header_prefix", format!("{header_prefix:?} is not served; x-envoy is accepted"));
        },
        default_dns_resolvers: cluster::resolvers(
            &ctx,
            Vec::new(),
            dns_resolution_config,
            typed_dns_resolver_config,
        )?,
    };
    Ok(Converted { bootstrap, env: Env { is_static: false, ..env }, cluster_needs, listener_needs })
}

fn node(ctx: &Ctx<'_>, m: core_pb::Node) -> Result<Node> {
    let raw = m.encode_to_vec().into();
    take!(ctx, m, core_pb::Node {
        id, cluster, metadata, locality;
        harmless dynamic_parameters = "sent to the management server as it is",
            user_agent_name = "sent to the management server as it is",
            extensions = "sent to the management server as it is",
            client_features = "sent to the management server as it is",
            listening_addresses = "sent to the management server as it is",
            user_agent_version_type = "sent to the management server as it is"
    });
    let core_pb::Locality { region, zone, sub_zone } = locality.unwrap_or_default();
    Ok(Node {
        id: id.into(),
        cluster: cluster.into(),
        region: region.into(),
        zone: zone.into(),
        sub_zone: sub_zone.into(),
        raw,
        metadata: core::flat_metadata(metadata.as_ref()),
    })
}

fn admin(ctx: &Ctx<'_>, m: pb::Admin) -> Result<Option<Admin>> {
    take!(ctx, m, pb::Admin {
        access_log, access_log_path, address, ;
        refuse allow_paths = "every path is answered", socket_options = "none is accepted";
        harmless profile_path = "for a profiler of Envoy", ignore_global_conn_limit = "the admin's connections are never counted"
    });
    let mut access_log = access_log::access_logs(ctx, "access_log", access_log)?;
    if !access_log_path.is_empty() {
        access_log.push(access_log::file(ctx, &access_log_path)?);
    }
    // Without an address there is no admin server, as in Envoy.
    Ok(address
        .map(|a| core::address(&ctx.field("address"), a))
        .transpose()?
        .map(|address| Admin { address, access_log }))
}

fn runtime(ctx: &Ctx<'_>, m: Option<pb::LayeredRuntime>) -> Result<Vec<(Arc<str>, Value)>> {
    use pb::runtime_layer::LayerSpecifier as L;
    let mut merged: BTreeMap<String, Value> = BTreeMap::new();
    let ctx = ctx.field("layered_runtime");
    for (i, layer) in m.map(|m| m.layers).unwrap_or_default().into_iter().enumerate() {
        let ctx = ctx.index("layers", i);
        take!(ctx, layer, pb::RuntimeLayer { name, layer_specifier });
        match ctx.required("layer_specifier", layer_specifier)? {
            L::StaticLayer(s) => flatten("", Value::Object(core::json(&s)), &mut merged),
            // Values set through the admin interface start empty.
            L::AdminLayer(pb::runtime_layer::AdminLayer {}) => {}
            L::DiskLayer(_) => {
                return ctx.bad(
                    "disk_layer",
                    format!("layer '{name}' is not served; static_layer and admin_layer are accepted"),
                );
            }
            L::RtdsLayer(_) => {
                return ctx.bad(
                    "rtds_layer",
                    format!("layer '{name}' is not served; static_layer and admin_layer are accepted"),
                );
            }
        }
    }
    Ok(merged.into_iter().map(|(k, v)| (Arc::from(k), v)).collect())
}

/// Nested mappings make dotted keys, except a FractionalPercent.
fn flatten(prefix: &str, value: Value, out: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(map) if prefix.is_empty() || !map.contains_key("numerator") => {
            for (k, v) in map {
                let key = if prefix.is_empty() { k } else { format!("{prefix}.{k}") };
                flatten(&key, v, out);
            }
        }
        other => {
            out.insert(prefix.to_owned(), other);
        }
    }
}

fn overload(ctx: &Ctx<'_>, m: overload::OverloadManager) -> Result<Option<u64>> {
    take!(ctx, m, overload::OverloadManager {
        resource_monitors;
        refuse actions = "none is accepted", loadshed_points = "none is accepted", buffer_factory_config = "none is accepted";
        harmless refresh_interval = "connections are counted as they come"
    });
    let mut max = None;
    for (i, r) in resource_monitors.into_iter().enumerate() {
        let ctx = ctx.index("resource_monitors", i);
        take!(ctx, r, overload::ResourceMonitor { config_type; harmless name = "the monitor is told by its type" });
        let overload::resource_monitor::ConfigType::TypedConfig(any) =
            ctx.required("typed_config", config_type)?;
        let ctx = ctx.field("typed_config");
        let e = Extension::open(&ctx, any)?;
        if e.message
            != "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
        {
            return e.unknown(
                &ctx,
                "resource monitor",
                "envoy.resource_monitors.global_downstream_max_connections",
            );
        }
        take!(
            ctx,
            e.decode(&ctx)?,
            downstream::DownstreamConnectionsConfig { max_active_downstream_connections }
        );
        match u64::try_from(max_active_downstream_connections) {
            Ok(n @ 1..) => max = Some(n),
            _ => {
                return ctx.bad(
                    "max_active_downstream_connections",
                    format!("{max_active_downstream_connections} is not accepted; 1 or more is"),
                );
            }
        }
    }
    Ok(max)
}

fn stats(ctx: &Ctx<'_>, m: metrics::StatsConfig) -> Result<StatsConfig> {
    use metrics::stats_matcher::StatsMatcher as M;
    use metrics::tag_specifier::TagValue as T;
    take!(ctx, m, metrics::StatsConfig {
        stats_tags, use_all_default_tags, stats_matcher, histogram_bucket_settings;
        harmless allow_default_tag_overrides = "a tag of the configuration always wins over a default one of its name"
    });
    let tags = ctx.each("stats_tags", stats_tags, |c, t| {
        take!(c, t, metrics::TagSpecifier { tag_name, tag_value });
        let rule = match tag_value {
            // A name alone takes the default regex of that name.
            None => return c.bad("tag_value", "is required; regex or fixed_value is accepted"),
            Some(T::FixedValue(v)) => TagRule::Fixed(v.into()),
            Some(T::Regex(r)) => match regex::Regex::new(&r) {
                Ok(re) => TagRule::Regex(re),
                // Envoy's tag regexes are ECMAScript's: look-ahead is known there.
                Err(_) if r.contains("(?=") || r.contains("(?!") => TagRule::Unsupported(r.into()),
                Err(e) => {
                    return c.bad(
                        "regex",
                        format!("{r:?}: {}", e.to_string().lines().last().unwrap_or_default().trim()),
                    );
                }
            },
        };
        Ok((Arc::from(tag_name), rule))
    })?;
    let matcher =
        match stats_matcher.and_then(|m| m.stats_matcher) {
            None | Some(M::RejectAll(false)) => StatsMatcher::All,
            Some(M::RejectAll(true)) => StatsMatcher::RejectAll,
            Some(M::ExclusionList(l)) => StatsMatcher::Exclude(
                ctx.field("stats_matcher.exclusion_list").each("patterns", l.patterns, matcher::string)?,
            ),
            Some(M::InclusionList(l)) => StatsMatcher::Include(
                ctx.field("stats_matcher.inclusion_list").each("patterns", l.patterns, matcher::string)?,
            ),
        };
    let buckets = ctx.each("histogram_bucket_settings", histogram_bucket_settings, |c, h| {
        take!(c, h, metrics::HistogramBucketSettings { r#match, buckets; harmless bins = "a size of the internal histogram" });
        Ok((matcher::string(&c.field("match"), c.required("match", r#match)?)?, buckets))
    })?;
    Ok(StatsConfig { use_default_tags: flag(use_all_default_tags, true), tags, matcher, buckets })
}
