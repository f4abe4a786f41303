//! Load balancing: `lb_policy` with its `*_lb_config`, and `load_balancing_policy`, which takes precedence.
//! Source: envoy/config/cluster/v3/cluster.proto, envoy/extensions/load_balancing_policies.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core_pb;
use envoy_types::pb::envoy::extensions::load_balancing_policies as policies;
use envoy_types::pb::envoy::extensions::load_balancing_policies::common::v3 as common;
use policies::cluster_provided::v3 as provided;
use policies::least_request::v3 as least;
use policies::maglev::v3 as maglev;
use policies::random::v3 as random;
use policies::ring_hash::v3 as ring;
use policies::round_robin::v3 as robin;
use policies::subset::v3 as subset;
use policies::wrr_locality::v3 as wrr;

use super::{Ctx, Result, any, core, endpoint, take, uint};
use crate::config::cluster::{
    LbCommon, LbPolicy, SlowStart, Subset, SubsetFallback, SubsetSelector, ZoneAware,
};

const SERVED: &str = "envoy.load_balancing_policies.{round_robin, least_request, random, ring_hash, maglev, cluster_provided, subset, wrr_locality}";

/// The deprecated form: an enumeration and a configuration beside it.
pub fn policy(ctx: &Ctx<'_>, lb_policy: i32, config: Option<pb::cluster::LbConfig>) -> Result<LbPolicy> {
    use pb::cluster::LbConfig as C;
    use pb::cluster::LbPolicy as P;
    let kind: P = ctx.enumeration("lb_policy", lb_policy)?;
    let mut policy = match kind {
        P::RoundRobin => LbPolicy::RoundRobin { slow_start: None },
        P::LeastRequest => {
            LbPolicy::LeastRequest { choices: 2, bias: 1.0, slow_start: None, full_scan: false }
        }
        P::RingHash => LbPolicy::RingHash { min: 1024, max: 8_388_608, murmur: false },
        P::Random => LbPolicy::Random,
        P::Maglev => LbPolicy::Maglev { table_size: 65_537 },
        P::ClusterProvided => LbPolicy::ClusterProvided,
        P::LoadBalancingPolicyConfig => {
            return ctx.bad("lb_policy", "LOAD_BALANCING_POLICY_CONFIG needs load_balancing_policy");
        }
    };
    match (&mut policy, config) {
        // A configuration for another policy is not used, as in Envoy.
        (LbPolicy::RoundRobin { slow_start }, Some(C::RoundRobinLbConfig(c))) => {
            let ctx = ctx.field("round_robin_lb_config");
            take!(ctx, c, pb::cluster::RoundRobinLbConfig { slow_start_config });
            *slow_start =
                slow_start_config.map(|s| old_slow_start(&ctx.field("slow_start_config"), s)).transpose()?;
        }
        (LbPolicy::LeastRequest { choices, bias, slow_start, .. }, Some(C::LeastRequestLbConfig(c))) => {
            let ctx = ctx.field("least_request_lb_config");
            take!(
                ctx,
                c,
                pb::cluster::LeastRequestLbConfig { choice_count, active_request_bias, slow_start_config }
            );
            *choices = choice(&ctx, uint(choice_count))?;
            *bias = self::bias(&ctx, active_request_bias)?;
            *slow_start =
                slow_start_config.map(|s| old_slow_start(&ctx.field("slow_start_config"), s)).transpose()?;
        }
        (LbPolicy::RingHash { min, max, murmur }, Some(C::RingHashLbConfig(c))) => {
            let ctx = ctx.field("ring_hash_lb_config");
            take!(
                ctx,
                c,
                pb::cluster::RingHashLbConfig { minimum_ring_size, hash_function, maximum_ring_size }
            );
            let size =
                ring_size(&ctx, minimum_ring_size.map(|v| v.value), maximum_ring_size.map(|v| v.value))?;
            (*min, *max) = size;
            *murmur = hash_function == pb::cluster::ring_hash_lb_config::HashFunction::MurmurHash2 as i32;
        }
        (LbPolicy::Maglev { table_size }, Some(C::MaglevLbConfig(c))) => {
            let ctx = ctx.field("maglev_lb_config");
            let pb::cluster::MaglevLbConfig { table_size: size } = c;
            *table_size = self::table_size(&ctx, size.map(|v| v.value))?;
        }
        _ => {}
    }
    Ok(policy)
}

fn choice(ctx: &Ctx<'_>, v: Option<u32>) -> Result<u32> {
    match v.unwrap_or(2) {
        n @ 2.. => Ok(n),
        n => ctx.bad("choice_count", format!("{n} is not accepted; 2 or more is")),
    }
}

fn bias(ctx: &Ctx<'_>, m: Option<core_pb::RuntimeDouble>) -> Result<f64> {
    let v = m.map_or(1.0, |m| core::runtime_double(ctx, m));
    if v < 0.0 { ctx.bad("active_request_bias", format!("{v} is negative")) } else { Ok(v) }
}

fn ring_size(ctx: &Ctx<'_>, min: Option<u64>, max: Option<u64>) -> Result<(u64, u64)> {
    const LIMIT: u64 = 8_388_608;
    let (min, max) = (min.unwrap_or(1024), max.unwrap_or(LIMIT));
    if max > LIMIT || min > max {
        return ctx.bad(
            "minimum_ring_size",
            format!("{min} to {max} is not accepted; minimum <= maximum <= {LIMIT} is"),
        );
    }
    Ok((min, max))
}

fn table_size(ctx: &Ctx<'_>, v: Option<u64>) -> Result<u64> {
    let n = v.unwrap_or(65_537);
    let prime = n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d));
    if !prime || n > 5_000_011 {
        return ctx.bad("table_size", format!("{n} is not accepted; a prime up to 5000011 is"));
    }
    Ok(n)
}

fn old_slow_start(ctx: &Ctx<'_>, m: pb::cluster::SlowStartConfig) -> Result<SlowStart> {
    take!(ctx, m, pb::cluster::SlowStartConfig { slow_start_window, aggression, min_weight_percent });
    slow_start(ctx, common::SlowStartConfig { slow_start_window, aggression, min_weight_percent })
}

fn slow_start(ctx: &Ctx<'_>, m: common::SlowStartConfig) -> Result<SlowStart> {
    take!(ctx, m, common::SlowStartConfig { slow_start_window, aggression, min_weight_percent });
    let aggression = aggression.map_or(1.0, |a| core::runtime_double(ctx, a));
    if aggression <= 0.0 {
        return ctx.bad("aggression", format!("{aggression} is not accepted; more than 0 is"));
    }
    Ok(SlowStart {
        window: ctx.duration("slow_start_window", slow_start_window)?.unwrap_or_default(),
        aggression,
        min_weight: core::percent(ctx, "min_weight_percent", min_weight_percent)?.unwrap_or(10.0),
    })
}

/// `common_lb_config` and `lb_subset_config`.
pub fn common(ctx: &Ctx<'_>, m: pb::cluster::CommonLbConfig) -> Result<LbCommon> {
    use pb::cluster::common_lb_config::LocalityConfigSpecifier as L;
    take!(
        ctx,
        m,
        pb::cluster::CommonLbConfig {
            healthy_panic_threshold,
            update_merge_window,
            ignore_new_hosts_until_first_hc,
            close_connections_on_host_set_change,
            consistent_hashing_lb_config,
            override_host_status,
            locality_config_specifier
        }
    );
    let mut out = LbCommon {
        panic_threshold: core::percent(ctx, "healthy_panic_threshold", healthy_panic_threshold)?
            .unwrap_or(50.0),
        fail_traffic_on_panic: false,
        locality_weighted: false,
        zone_aware: None,
        update_merge_window: ctx
            .duration("update_merge_window", update_merge_window)?
            .unwrap_or(Duration::from_secs(1)),
        ignore_new_hosts_until_first_hc,
        close_on_host_set_change: close_connections_on_host_set_change,
        hash_by_hostname: false,
        hash_balance_factor: 0,
        override_host_statuses: Vec::new(),
        subset: None,
    };
    if let Some(pb::cluster::common_lb_config::ConsistentHashingLbConfig {
        use_hostname_for_hashing,
        hash_balance_factor,
    }) = consistent_hashing_lb_config
    {
        out.hash_by_hostname = use_hostname_for_hashing;
        out.hash_balance_factor =
            balance(&ctx.field("consistent_hashing_lb_config"), uint(hash_balance_factor))?;
    }
    if let Some(core_pb::HealthStatusSet { statuses }) = override_host_status {
        out.override_host_statuses = ctx.each("override_host_status.statuses", statuses, endpoint::health)?;
    }
    match locality_config_specifier {
        None => {}
        Some(L::LocalityWeightedLbConfig(pb::cluster::common_lb_config::LocalityWeightedLbConfig {})) => {
            out.locality_weighted = true;
        }
        Some(L::ZoneAwareLbConfig(z)) => {
            let ctx = ctx.field("zone_aware_lb_config");
            take!(
                ctx,
                z,
                pb::cluster::common_lb_config::ZoneAwareLbConfig {
                    routing_enabled,
                    min_cluster_size,
                    fail_traffic_on_panic
                }
            );
            out.fail_traffic_on_panic = fail_traffic_on_panic;
            out.zone_aware = Some(ZoneAware {
                routing_enabled: core::percent(&ctx, "routing_enabled", routing_enabled)?.unwrap_or(100.0),
                min_cluster_size: min_cluster_size.map_or(6, |v| v.value),
                fail_traffic_on_panic,
            });
        }
    }
    Ok(out)
}

fn balance(ctx: &Ctx<'_>, v: Option<u32>) -> Result<u32> {
    match v {
        None => Ok(0),
        Some(n @ 100..) => Ok(n),
        Some(n) => ctx.bad("hash_balance_factor", format!("{n} is not accepted; 100 or more is")),
    }
}

pub fn subset(ctx: &Ctx<'_>, m: pb::cluster::LbSubsetConfig) -> Result<Subset> {
    use pb::cluster::lb_subset_config::LbSubsetFallbackPolicy as F;
    use pb::cluster::lb_subset_config::lb_subset_selector::LbSubsetSelectorFallbackPolicy as S;
    take!(ctx, m, pb::cluster::LbSubsetConfig {
        fallback_policy, default_subset, subset_selectors, locality_weight_aware, scale_locality_weight, panic_mode_any, list_as_any;
        refuse metadata_fallback_policy = "METADATA_NO_FALLBACK is accepted"
    });
    let fallback = match ctx.enumeration("fallback_policy", fallback_policy)? {
        F::NoFallback => SubsetFallback::None,
        F::AnyEndpoint => SubsetFallback::AnyEndpoint,
        F::DefaultSubset => SubsetFallback::DefaultSubset,
    };
    let selectors = ctx.each("subset_selectors", subset_selectors, |c, s| {
        take!(
            c,
            s,
            pb::cluster::lb_subset_config::LbSubsetSelector {
                keys,
                single_host_per_subset,
                fallback_policy,
                fallback_keys_subset
            }
        );
        Ok(SubsetSelector {
            keys: keys.into_iter().map(Into::into).collect(),
            fallback: match c.enumeration("fallback_policy", fallback_policy)? {
                S::NotDefined => None,
                S::NoFallback => Some(SubsetFallback::None),
                S::AnyEndpoint => Some(SubsetFallback::AnyEndpoint),
                S::DefaultSubset => Some(SubsetFallback::DefaultSubset),
                S::KeysSubset => Some(SubsetFallback::KeysSubset),
            },
            fallback_keys: fallback_keys_subset.into_iter().map(Into::into).collect(),
            single_host: single_host_per_subset,
        })
    })?;
    Ok(Subset {
        fallback,
        default_subset: core::flat_metadata(default_subset.as_ref()),
        selectors,
        locality_weight_aware,
        scale_locality_weight,
        panic_mode_any,
        list_as_any,
    })
}

/// `load_balancing_policy`: the first policy that is known is used.
pub fn extension(ctx: &Ctx<'_>, m: pb::LoadBalancingPolicy, lb: &mut LbCommon) -> Result<LbPolicy> {
    take!(ctx, m, pb::LoadBalancingPolicy { policies });
    let mut first_unknown = None;
    for (i, p) in policies.into_iter().enumerate() {
        let ctx = ctx.index("policies", i);
        take!(ctx, p, pb::load_balancing_policy::Policy { typed_extension_config });
        let ctx = ctx.field("typed_extension_config");
        let (_, extension) = any::typed(&ctx, ctx.required("typed_config", typed_extension_config)?)?;
        let name = extension.message.clone();
        match name.strip_prefix("envoy.extensions.load_balancing_policies.") {
            Some("round_robin.v3.RoundRobin") => {
                take!(
                    ctx,
                    extension.decode(&ctx)?,
                    robin::RoundRobin { slow_start_config, locality_lb_config }
                );
                locality(&ctx.field("locality_lb_config"), locality_lb_config, lb)?;
                return Ok(LbPolicy::RoundRobin {
                    slow_start: slow_start_config
                        .map(|s| slow_start(&ctx.field("slow_start_config"), s))
                        .transpose()?,
                });
            }
            Some("least_request.v3.LeastRequest") => {
                take!(
                    ctx,
                    extension.decode(&ctx)?,
                    least::LeastRequest {
                        choice_count,
                        active_request_bias,
                        slow_start_config,
                        locality_lb_config,
                        enable_full_scan,
                        selection_method
                    }
                );
                locality(&ctx.field("locality_lb_config"), locality_lb_config, lb)?;
                return Ok(LbPolicy::LeastRequest {
                    choices: choice(&ctx, uint(choice_count))?,
                    bias: bias(&ctx, active_request_bias)?,
                    slow_start: slow_start_config
                        .map(|s| slow_start(&ctx.field("slow_start_config"), s))
                        .transpose()?,
                    full_scan: super::flag(enable_full_scan, false)
                        || selection_method == least::least_request::SelectionMethod::FullScan as i32,
                });
            }
            Some("random.v3.Random") => {
                take!(ctx, extension.decode(&ctx)?, random::Random { locality_lb_config });
                locality(&ctx.field("locality_lb_config"), locality_lb_config, lb)?;
                return Ok(LbPolicy::Random);
            }
            Some("ring_hash.v3.RingHash") => {
                take!(
                    ctx,
                    extension.decode(&ctx)?,
                    ring::RingHash {
                        hash_function,
                        minimum_ring_size,
                        maximum_ring_size,
                        use_hostname_for_hashing,
                        hash_balance_factor,
                        consistent_hashing_lb_config,
                        locality_weighted_lb_config
                    }
                );
                lb.hash_by_hostname = use_hostname_for_hashing;
                lb.hash_balance_factor = balance(&ctx, uint(hash_balance_factor))?;
                consistent(&ctx.field("consistent_hashing_lb_config"), consistent_hashing_lb_config, lb)?;
                lb.locality_weighted |= locality_weighted_lb_config.is_some();
                let (min, max) =
                    ring_size(&ctx, minimum_ring_size.map(|v| v.value), maximum_ring_size.map(|v| v.value))?;
                return Ok(LbPolicy::RingHash {
                    min,
                    max,
                    murmur: hash_function == ring::ring_hash::HashFunction::MurmurHash2 as i32,
                });
            }
            Some("maglev.v3.Maglev") => {
                take!(
                    ctx,
                    extension.decode(&ctx)?,
                    maglev::Maglev { table_size, consistent_hashing_lb_config, locality_weighted_lb_config }
                );
                consistent(&ctx.field("consistent_hashing_lb_config"), consistent_hashing_lb_config, lb)?;
                lb.locality_weighted |= locality_weighted_lb_config.is_some();
                return Ok(LbPolicy::Maglev {
                    table_size: self::table_size(&ctx, table_size.map(|v| v.value))?,
                });
            }
            Some("cluster_provided.v3.ClusterProvided") => {
                let provided::ClusterProvided {} = extension.decode(&ctx)?;
                return Ok(LbPolicy::ClusterProvided);
            }
            Some("subset.v3.Subset") => {
                let m: subset::Subset = extension.decode(&ctx)?;
                return subset_extension(&ctx, m, lb);
            }
            Some("wrr_locality.v3.WrrLocality") => {
                take!(ctx, extension.decode(&ctx)?, wrr::WrrLocality { endpoint_picking_policy });
                lb.locality_weighted = true;
                return self::extension(
                    &ctx.field("endpoint_picking_policy"),
                    ctx.required("endpoint_picking_policy", endpoint_picking_policy)?,
                    lb,
                );
            }
            _ => first_unknown = first_unknown.or(Some(name)),
        }
    }
    ctx.bad(
        "policies",
        match first_unknown {
            Some(name) => format!("load balancing policy '{name}' is not served; accepted: {SERVED}"),
            None => "is required".to_owned(),
        },
    )
}

fn subset_extension(ctx: &Ctx<'_>, m: subset::Subset, lb: &mut LbCommon) -> Result<LbPolicy> {
    take!(ctx, m, subset::Subset {
        fallback_policy, default_subset, subset_selectors, locality_weight_aware, scale_locality_weight, panic_mode_any, list_as_any,
        metadata_fallback_policy, subset_lb_policy;
        harmless allow_redundant_keys = "redundant keys of a request are always allowed"
    });
    let selectors = subset_selectors
        .into_iter()
        .map(|s| {
            let subset::subset::LbSubsetSelector {
                keys,
                single_host_per_subset,
                fallback_policy,
                fallback_keys_subset,
            } = s;
            pb::cluster::lb_subset_config::LbSubsetSelector {
                keys,
                single_host_per_subset,
                fallback_policy,
                fallback_keys_subset,
            }
        })
        .collect();
    lb.subset = Some(subset(
        ctx,
        pb::cluster::LbSubsetConfig {
            fallback_policy,
            default_subset,
            subset_selectors: selectors,
            locality_weight_aware,
            scale_locality_weight,
            panic_mode_any,
            list_as_any,
            metadata_fallback_policy,
        },
    )?);
    extension(&ctx.field("subset_lb_policy"), ctx.required("subset_lb_policy", subset_lb_policy)?, lb)
}

fn consistent(ctx: &Ctx<'_>, m: Option<common::ConsistentHashingLbConfig>, lb: &mut LbCommon) -> Result<()> {
    let Some(m) = m else { return Ok(()) };
    take!(ctx, m, common::ConsistentHashingLbConfig {
        use_hostname_for_hashing, hash_balance_factor;
        refuse hash_policy = "the route's hash_policy is accepted"
    });
    lb.hash_by_hostname = use_hostname_for_hashing;
    lb.hash_balance_factor = balance(ctx, uint(hash_balance_factor))?;
    Ok(())
}

fn locality(ctx: &Ctx<'_>, m: Option<common::LocalityLbConfig>, lb: &mut LbCommon) -> Result<()> {
    use common::locality_lb_config::LocalityConfigSpecifier as L;
    let Some(common::LocalityLbConfig { locality_config_specifier }) = m else { return Ok(()) };
    match locality_config_specifier {
        None => {}
        Some(L::LocalityWeightedLbConfig(common::locality_lb_config::LocalityWeightedLbConfig {})) => {
            lb.locality_weighted = true;
        }
        Some(L::ZoneAwareLbConfig(z)) => {
            let ctx = ctx.field("zone_aware_lb_config");
            take!(ctx, z, common::locality_lb_config::ZoneAwareLbConfig {
                routing_enabled, min_cluster_size, fail_traffic_on_panic;
                refuse force_locality_direct_routing = "unset is accepted", force_local_zone = "unset is accepted",
                    locality_basis = "HEALTHY_HOSTS_NUM is accepted"
            });
            lb.fail_traffic_on_panic = fail_traffic_on_panic;
            lb.zone_aware = Some(ZoneAware {
                routing_enabled: core::percent(&ctx, "routing_enabled", routing_enabled)?.unwrap_or(100.0),
                min_cluster_size: min_cluster_size.map_or(6, |v| v.value),
                fail_traffic_on_panic,
            });
        }
    }
    Ok(())
}
