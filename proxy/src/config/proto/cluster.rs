//! Clusters. Source: envoy/config/cluster/v3, envoy/extensions/clusters.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core_pb;
use envoy_types::pb::envoy::extensions::clusters::aggregate::v3 as aggregate;
use envoy_types::pb::envoy::extensions::clusters::common::dns::v3 as family_pb;
use envoy_types::pb::envoy::extensions::clusters::dns::v3 as dns;
use envoy_types::pb::envoy::extensions::clusters::original_dst::v3 as original;
use envoy_types::pb::envoy::extensions::network::dns_resolver::cares::v3 as cares;
use envoy_types::pb::google::protobuf as wkt;
use outrigger_xds::istio::MetadataExchange;

use super::any::{self, Extension};
use super::cluster_limits as limits;
use super::http_options::{self, Deprecated};
use super::{
    Ctx, Env, Need, NeedKind, Result, Root, core, endpoint, flag, health_check, lb, take, text, tls, uint,
};
use crate::config::address::Address;
use crate::config::cluster::{Cluster, Discovery, DnsFamily, LbPolicy, TcpKeepalive, TransportMatch};
use crate::head::HeaderName;

/// A cluster of the bootstrap or from CDS.
///
/// # Errors
/// What is not served or not valid.
pub fn cluster(env: &Env, m: pb::Cluster) -> Result<(Cluster, Vec<Need>)> {
    let root = Root::new("cluster", &m.name, env);
    let ctx = root.ctx();
    take!(ctx, m, pb::Cluster {
        transport_socket_matches, name, alt_stat_name, eds_cluster_config, connect_timeout, per_connection_buffer_limit_bytes,
        lb_policy, load_assignment, health_checks, max_requests_per_connection, circuit_breakers, upstream_http_protocol_options,
        common_http_protocol_options, http_protocol_options, http2_protocol_options, typed_extension_protocol_options,
        dns_refresh_rate, dns_jitter, dns_failure_refresh_rate, respect_dns_ttl, dns_lookup_family, dns_resolvers,
        dns_resolution_config, typed_dns_resolver_config, wait_for_warm_on_init, outlier_detection,
        cleanup_interval, upstream_bind_config, lb_subset_config, common_lb_config, transport_socket, metadata, protocol_selection,
        upstream_connection_options, close_connections_on_host_health_failure, ignore_health_on_host_removal, filters,
        load_balancing_policy, track_timeout_budgets, track_cluster_stats, preconnect_policy, cluster_discovery_type, lb_config;
        refuse use_tcp_for_dns_lookups = "UDP with TCP on truncation is used", transport_socket_matcher = "transport_socket_matches is accepted",
            stats_matcher = "the bootstrap's stats_config is used",
            per_connection_buffer_high_watermark_timeout = "unset is accepted",
            upstream_config = "the generic HTTP and TCP upstreams are always used",
            connection_pool_per_downstream_connection = "false is accepted",
            queuing_policies = "pending requests wait in order of arrival";
        harmless lrs_server = "load reports are not sent; a management server that gets none does without",
            lrs_report_endpoint_metrics = "load reports are not sent"
    });
    if name.is_empty() {
        return ctx.bad("name", "is required");
    }

    // Discovery, with what a cluster_type extension says in place of the cluster's own fields.
    let mut dns_fields = DnsFields {
        refresh: ctx.positive("dns_refresh_rate", dns_refresh_rate)?.unwrap_or(Duration::from_secs(5)),
        failure: dns_failure_refresh_rate
            .map(|pb::cluster::RefreshRate { base_interval, max_interval }| (base_interval, max_interval)),
        jitter: ctx.duration("dns_jitter", dns_jitter)?.unwrap_or_default(),
        respect_ttl: respect_dns_ttl,
        family: family(&ctx, dns_lookup_family)?,
        resolvers: resolvers(&ctx, dns_resolvers, dns_resolution_config, typed_dns_resolver_config)?,
    };
    let assignment = |names: bool| -> Result<Arc<_>> {
        Ok(match &load_assignment {
            Some(l) => Arc::new(endpoint::endpoints(&ctx.field("load_assignment"), l.clone(), names)?),
            None => endpoint::none(&name),
        })
    };
    let discovery = discovery(
        &ctx,
        &name,
        Found {
            kind: cluster_discovery_type,
            eds: eds_cluster_config,
            cleanup: ctx.positive("cleanup_interval", cleanup_interval)?.unwrap_or(Duration::from_secs(5)),
            original: match &lb_config {
                Some(pb::cluster::LbConfig::OriginalDstLbConfig(c)) => Some(c.clone()),
                _ => None,
            },
            dns: &mut dns_fields,
            has_assignment: load_assignment.is_some(),
        },
        &assignment,
    )?;
    let (failure_base, failure_max) = match dns_fields.failure {
        None => (dns_fields.refresh, dns_fields.refresh),
        Some((base, max)) => {
            let ctx = ctx.field("dns_failure_refresh_rate");
            let base = ctx.required("base_interval", ctx.positive("base_interval", base)?)?;
            (base, ctx.positive("max_interval", max)?.unwrap_or(base * 10))
        }
    };

    // Load balancing.
    let mut lb_common = lb::common(&ctx.field("common_lb_config"), common_lb_config.unwrap_or_default())?;
    lb_common.subset = lb_subset_config.map(|s| lb::subset(&ctx.field("lb_subset_config"), s)).transpose()?;
    let lb = match load_balancing_policy {
        Some(p) => lb::extension(&ctx.field("load_balancing_policy"), p, &mut lb_common)?,
        None => lb::policy(&ctx, lb_policy, lb_config)?,
    };
    match (&discovery, &lb) {
        (Discovery::OriginalDst { .. } | Discovery::Aggregate(_), LbPolicy::ClusterProvided) => {}
        (Discovery::OriginalDst { .. } | Discovery::Aggregate(_), _) => {
            return ctx.bad("lb_policy", "an ORIGINAL_DST or aggregate cluster needs CLUSTER_PROVIDED");
        }
        (_, LbPolicy::ClusterProvided) => {
            return ctx.bad("lb_policy", "CLUSTER_PROVIDED is for ORIGINAL_DST and aggregate clusters alone");
        }
        _ => {}
    }

    // HTTP.
    let use_downstream = match ctx.enumeration("protocol_selection", protocol_selection)? {
        pb::cluster::ClusterProtocolSelection::UseConfiguredProtocol => false,
        pb::cluster::ClusterProtocolSelection::UseDownstreamProtocol => true,
    };
    let http = http_options::cluster(
        &ctx,
        typed_extension_protocol_options,
        Deprecated {
            common: common_http_protocol_options,
            http1: http_protocol_options,
            http2: http2_protocol_options,
            upstream: upstream_http_protocol_options,
            use_downstream,
        },
    )?;

    let ctx2 = ctx.field("upstream_connection_options");
    take!(ctx2, upstream_connection_options.unwrap_or_default(), pb::UpstreamConnectionOptions {
        tcp_keepalive;
        harmless set_local_interface_name_on_upstream_connections = "for an attribute that no served format prints",
            happy_eyeballs_config = "a host's addresses are tried in the order given"
    });
    let tcp_keepalive = tcp_keepalive.map(
        |core_pb::TcpKeepalive { keepalive_probes, keepalive_time, keepalive_interval }| TcpKeepalive {
            probes: uint(keepalive_probes),
            time: uint(keepalive_time),
            interval: uint(keepalive_interval),
        },
    );
    let pb::TrackClusterStats { timeout_budgets, request_response_sizes, per_endpoint_stats } =
        track_cluster_stats.unwrap_or_default();
    let ctx2 = ctx.field("preconnect_policy");
    take!(ctx2, preconnect_policy.unwrap_or_default(), pb::cluster::PreconnectPolicy {
        per_upstream_preconnect_ratio, predictive_preconnect_ratio; refuse preconnect_enabled_metadata = "unset is accepted"
    });

    let cluster = Cluster {
        stat_name: text(alt_stat_name).unwrap_or_else(|| name.as_str().into()),
        connect_timeout: ctx.positive("connect_timeout", connect_timeout)?.unwrap_or(Duration::from_secs(5)),
        discovery,
        lb,
        lb_common,
        outlier: outlier_detection
            .map(|o| limits::outlier(&ctx.field("outlier_detection"), o))
            .transpose()?,
        health_checks: ctx.each("health_checks", health_checks, health_check::health_check)?,
        breakers: limits::breakers(&ctx.field("circuit_breakers"), circuit_breakers.unwrap_or_default())?,
        transport: tls::upstream_socket(&ctx.field("transport_socket"), transport_socket)?,
        transport_matches: ctx.each("transport_socket_matches", transport_socket_matches, transport_match)?,
        protocol: http.protocol,
        max_requests_per_connection: http
            .max_requests_per_connection
            .or(uint(max_requests_per_connection).filter(|n| *n > 0)),
        http: http.http,
        per_connection_buffer_limit: uint(per_connection_buffer_limit_bytes).unwrap_or(1024 * 1024),
        tcp_keepalive,
        bind: upstream_bind_config
            .map(|b| bind(&ctx.field("upstream_bind_config"), b))
            .transpose()?
            .flatten(),
        metadata: core::metadata(&ctx.field("metadata"), metadata)?,
        respect_dns_ttl: dns_fields.respect_ttl,
        dns_refresh: dns_fields.refresh,
        dns_failure_refresh: (failure_base, failure_max),
        dns_jitter: dns_fields.jitter,
        dns_family: dns_fields.family,
        dns_resolvers: dns_fields.resolvers,
        wait_for_warm_on_init: flag(wait_for_warm_on_init, true),
        ignore_health_on_host_removal,
        close_on_health_failure: close_connections_on_host_health_failure,
        preconnect_ratio: ratio(&ctx2, "per_upstream_preconnect_ratio", per_upstream_preconnect_ratio, 1.0)?,
        predictive_preconnect_ratio: ratio(
            &ctx2,
            "predictive_preconnect_ratio",
            predictive_preconnect_ratio,
            0.0,
        )?,
        timeout_budget_stats: timeout_budgets || track_timeout_budgets,
        request_response_size_stats: request_response_sizes,
        per_endpoint_stats,
        metadata_exchange: upstream_filters(&ctx, filters)?,
        is_static: env.is_static,
        name: name.into(),
    };
    Ok((cluster, root.needs()))
}

fn ratio(ctx: &Ctx<'_>, field: &str, v: Option<wkt::DoubleValue>, default: f64) -> Result<f64> {
    match v.map(|v| v.value) {
        None => Ok(default),
        Some(v) if (0.0..=3.0).contains(&v) && v >= default => Ok(v),
        Some(v) => ctx.bad(field, format!("{v} is out of range; {default} to 3 is accepted")),
    }
}

struct DnsFields {
    refresh: Duration,
    failure: Option<(Option<wkt::Duration>, Option<wkt::Duration>)>,
    jitter: Duration,
    respect_ttl: bool,
    family: DnsFamily,
    resolvers: Vec<SocketAddr>,
}

struct Found<'a> {
    kind: Option<pb::cluster::ClusterDiscoveryType>,
    eds: Option<pb::cluster::EdsClusterConfig>,
    cleanup: Duration,
    original: Option<pb::cluster::OriginalDstLbConfig>,
    dns: &'a mut DnsFields,
    has_assignment: bool,
}

fn discovery(
    ctx: &Ctx<'_>,
    name: &str,
    f: Found<'_>,
    assignment: &dyn Fn(bool) -> Result<Arc<crate::config::cluster::Endpoints>>,
) -> Result<Discovery> {
    use pb::cluster::ClusterDiscoveryType as T;
    use pb::cluster::DiscoveryType as D;
    let kind = match f.kind {
        None => D::Static,
        Some(T::Type(n)) => ctx.enumeration("type", n)?,
        Some(T::ClusterType(c)) => {
            let ctx = ctx.field("cluster_type");
            take!(ctx, c, pb::cluster::CustomClusterType { typed_config; harmless name = "the cluster type is told by its message" });
            let ctx = ctx.field("typed_config");
            let extension = Extension::open(&ctx, ctx.required("typed_config", typed_config)?)?;
            return match extension.message.as_str() {
                "envoy.extensions.clusters.dns.v3.DnsCluster" => {
                    let m = extension.decode(&ctx)?;
                    let logical = dns_cluster(&ctx, m, f.dns)?;
                    Ok(if logical {
                        Discovery::LogicalDns(assignment(true)?)
                    } else {
                        Discovery::StrictDns(assignment(true)?)
                    })
                }
                "envoy.extensions.clusters.original_dst.v3.OriginalDstCluster" => {
                    take!(
                        ctx,
                        extension.decode(&ctx)?,
                        original::OriginalDstCluster {
                            use_http_header,
                            http_header_name,
                            upstream_port_override,
                            metadata_key
                        }
                    );
                    original_dst(
                        &ctx,
                        f.cleanup,
                        Some(pb::cluster::OriginalDstLbConfig {
                            use_http_header,
                            http_header_name,
                            upstream_port_override,
                            metadata_key,
                        }),
                    )
                }
                "envoy.extensions.clusters.aggregate.v3.ClusterConfig" => {
                    take!(ctx, extension.decode(&ctx)?, aggregate::ClusterConfig { clusters });
                    if clusters.is_empty() {
                        return ctx.bad("clusters", "is required");
                    }
                    Ok(Discovery::Aggregate(clusters.into_iter().map(Arc::from).collect()))
                }
                _ => extension.unknown(
                    &ctx,
                    "cluster type",
                    "envoy.clusters.dns, envoy.clusters.original_dst, envoy.clusters.aggregate",
                ),
            };
        }
    };
    if f.eds.is_some() && kind != D::Eds {
        return ctx
            .bad("eds_cluster_config", format!("goes with type EDS alone, not with {}", kind.as_str_name()));
    }
    Ok(match kind {
        D::Static => Discovery::Static(assignment(false)?),
        D::StrictDns => Discovery::StrictDns(assignment(true)?),
        D::LogicalDns => {
            let endpoints = assignment(true)?;
            if endpoints.localities.len() != 1 || endpoints.localities[0].endpoints.len() != 1 {
                return ctx.bad(
                    "load_assignment",
                    "a LOGICAL_DNS cluster has exactly one locality with one endpoint",
                );
            }
            Discovery::LogicalDns(endpoints)
        }
        D::Eds => {
            if f.has_assignment {
                return ctx.bad("load_assignment", "does not go with type EDS");
            }
            let eds = ctx.required("eds_cluster_config", f.eds)?;
            let ctx = ctx.field("eds_cluster_config");
            take!(ctx, eds, pb::cluster::EdsClusterConfig { eds_config, service_name });
            let timeout = core::fetch_timeout(&ctx.field("eds_config"), eds_config.as_ref())?;
            let source =
                core::config_source(&ctx.field("eds_config"), ctx.required("eds_config", eds_config)?)?;
            let service_name: Arc<str> =
                if service_name.is_empty() { name.into() } else { service_name.into() };
            ctx.need(NeedKind::Endpoints, &service_name, Some(source), timeout);
            Discovery::Eds { service_name }
        }
        D::OriginalDst => {
            if f.has_assignment {
                return ctx.bad("load_assignment", "does not go with type ORIGINAL_DST");
            }
            original_dst(&ctx.field("original_dst_lb_config"), f.cleanup, f.original)?
        }
    })
}

fn original_dst(
    ctx: &Ctx<'_>,
    cleanup: Duration,
    m: Option<pb::cluster::OriginalDstLbConfig>,
) -> Result<Discovery> {
    take!(ctx, m.unwrap_or_default(), pb::cluster::OriginalDstLbConfig {
        use_http_header, http_header_name, upstream_port_override; refuse metadata_key = "use_http_header is accepted"
    });
    let use_header = match (use_http_header, http_header_name.is_empty()) {
        (false, true) => None,
        (false, false) => return ctx.bad("http_header_name", "needs use_http_header"),
        (true, true) => Some(HeaderName::new("x-envoy-original-dst-host")),
        (true, false) => Some(ctx.header_name("http_header_name", &http_header_name)?),
    };
    let port_override =
        uint(upstream_port_override).map(|p| ctx.port("upstream_port_override", p)).transpose()?;
    Ok(Discovery::OriginalDst { use_header, cleanup, port_override })
}

/// Reads `envoy.clusters.dns`; true: one logical endpoint.
fn dns_cluster(ctx: &Ctx<'_>, m: dns::DnsCluster, fields: &mut DnsFields) -> Result<bool> {
    take!(ctx, m, dns::DnsCluster {
        dns_refresh_rate, dns_failure_refresh_rate, respect_dns_ttl, dns_jitter, typed_dns_resolver_config, dns_lookup_family,
        all_addresses_in_single_endpoint;
        refuse dns_min_refresh_rate = "unset is accepted"
    });
    if let Some(d) = ctx.positive("dns_refresh_rate", dns_refresh_rate)? {
        fields.refresh = d;
    }
    if let Some(dns::dns_cluster::RefreshRate { base_interval, max_interval }) = dns_failure_refresh_rate {
        fields.failure = Some((base_interval, max_interval));
    }
    if let Some(d) = ctx.duration("dns_jitter", dns_jitter)? {
        fields.jitter = d;
    }
    fields.respect_ttl = respect_dns_ttl;
    fields.family = match ctx.enumeration("dns_lookup_family", dns_lookup_family)? {
        family_pb::DnsLookupFamily::Unspecified | family_pb::DnsLookupFamily::Auto => DnsFamily::Auto,
        family_pb::DnsLookupFamily::V4Only => DnsFamily::V4Only,
        family_pb::DnsLookupFamily::V6Only => DnsFamily::V6Only,
        family_pb::DnsLookupFamily::V4Preferred => DnsFamily::V4Preferred,
        family_pb::DnsLookupFamily::All => DnsFamily::All,
    };
    if let Some(t) = typed_dns_resolver_config {
        fields.resolvers = typed_resolver(&ctx.field("typed_dns_resolver_config"), t)?;
    }
    Ok(all_addresses_in_single_endpoint)
}

fn family(ctx: &Ctx<'_>, n: i32) -> Result<DnsFamily> {
    use pb::cluster::DnsLookupFamily as F;
    Ok(match ctx.enumeration("dns_lookup_family", n)? {
        F::Auto => DnsFamily::Auto,
        F::V4Only => DnsFamily::V4Only,
        F::V6Only => DnsFamily::V6Only,
        F::V4Preferred => DnsFamily::V4Preferred,
        F::All => DnsFamily::All,
    })
}

/// The resolvers to ask, from the three fields that may name them (the typed one wins).
pub fn resolvers(
    ctx: &Ctx<'_>,
    plain: Vec<core_pb::Address>,
    config: Option<core_pb::DnsResolutionConfig>,
    typed: Option<core_pb::TypedExtensionConfig>,
) -> Result<Vec<SocketAddr>> {
    if let Some(t) = typed {
        return typed_resolver(&ctx.field("typed_dns_resolver_config"), t);
    }
    if let Some(c) = config {
        let ctx = ctx.field("dns_resolution_config");
        take!(ctx, c, core_pb::DnsResolutionConfig { resolvers, dns_resolver_options });
        resolver_options(&ctx, dns_resolver_options)?;
        return ctx.each("resolvers", resolvers, core::ip_address);
    }
    ctx.each("dns_resolvers", plain, core::ip_address)
}

fn resolver_options(ctx: &Ctx<'_>, m: Option<core_pb::DnsResolverOptions>) -> Result<()> {
    let ctx = ctx.field("dns_resolver_options");
    take!(ctx, m.unwrap_or_default(), core_pb::DnsResolverOptions {
        ; refuse use_tcp_for_dns_lookups = "UDP with TCP on truncation is used";
        harmless no_default_search_domain = "search domains are tried as resolv.conf says"
    });
    Ok(())
}

fn typed_resolver(ctx: &Ctx<'_>, m: core_pb::TypedExtensionConfig) -> Result<Vec<SocketAddr>> {
    let (_, extension) = any::typed(ctx, m)?;
    match extension.message.as_str() {
        "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig" => {
            take!(ctx, extension.decode(ctx)?, cares::CaresDnsResolverConfig {
                resolvers, dns_resolver_options;
                refuse use_resolvers_as_fallback = "the resolvers given are used alone";
                harmless udp_max_queries = "how often c-ares makes a new socket",
                    filter_unroutable_families = "unroutable addresses fail at connect",
                    query_timeout_seconds = "the resolver's own timeout is used",
                    query_tries = "the resolver's own number of tries is used",
                    rotate_nameservers = "spreads queries alone",
                    edns0_max_payload_size = "the resolver's own is used",
                    max_udp_channel_duration = "how often c-ares makes a new socket",
                    reinit_channel_on_timeout = "how often c-ares makes a new socket",
                    qcache_max_ttl = "names are asked for at the refresh rate"
            });
            resolver_options(ctx, dns_resolver_options)?;
            ctx.each("resolvers", resolvers, core::ip_address)
        }
        "envoy.extensions.network.dns_resolver.getaddrinfo.v3.GetAddrInfoDnsResolverConfig" => Ok(Vec::new()),
        _ => extension.unknown(
            ctx,
            "DNS resolver",
            "envoy.network.dns_resolver.cares, envoy.network.dns_resolver.getaddrinfo",
        ),
    }
}

fn transport_match(ctx: &Ctx<'_>, m: pb::cluster::TransportSocketMatch) -> Result<TransportMatch> {
    take!(ctx, m, pb::cluster::TransportSocketMatch { name, r#match, transport_socket });
    Ok(TransportMatch {
        name: name.into(),
        criteria: core::flat_metadata(r#match.as_ref()),
        transport: tls::upstream_socket(&ctx.field("transport_socket"), transport_socket)?,
    })
}

/// A local address to connect from. A port of zero and an address of `0.0.0.0` say nothing.
pub fn bind(ctx: &Ctx<'_>, m: core_pb::BindConfig) -> Result<Option<Address>> {
    take!(ctx, m, core_pb::BindConfig {
        source_address;
        refuse freebind = "unset is accepted", socket_options = "none is accepted", extra_source_addresses = "one source_address is accepted",
            additional_source_addresses = "one source_address is accepted", local_address_selector = "one source_address is accepted",
            validate_network_namespaces = "unset is accepted"
    });
    Ok(match source_address {
        None => None,
        Some(a) => match core::socket_address(&ctx.field("source_address"), a)? {
            Address::Socket(a) if a.ip().is_unspecified() && a.port() == 0 => None,
            a @ Address::Socket(_) => Some(a),
            other => return ctx.bad("source_address", format!("{other} is not an IP address")),
        },
    })
}

/// Upstream network filters: Istio's metadata exchange is the one that is known.
fn upstream_filters(ctx: &Ctx<'_>, filters: Vec<pb::Filter>) -> Result<Option<(Arc<str>, bool)>> {
    let mut out = None;
    for (i, f) in filters.into_iter().enumerate() {
        let ctx = ctx.index("filters", i);
        take!(ctx, f, pb::Filter { typed_config; refuse config_discovery = "typed_config is accepted"; harmless name = "the filter is told by its type" });
        let ctx = ctx.field("typed_config");
        let extension = Extension::open(&ctx, ctx.required("typed_config", typed_config)?)?;
        if extension.message != "envoy.tcp.metadataexchange.config.MetadataExchange" {
            return extension.unknown(&ctx, "upstream network filter", "istio.metadata_exchange");
        }
        out = Some(super::istio::metadata_exchange(&ctx, extension.decode_istio::<MetadataExchange>(&ctx)?)?);
    }
    Ok(out)
}
