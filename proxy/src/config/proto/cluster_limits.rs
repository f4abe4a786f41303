//! A cluster's circuit breakers and outlier detection. Source: envoy/config/cluster/v3/{circuit_breaker,outlier_detection}.proto.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core_pb;
use envoy_types::pb::google::protobuf as wkt;

use super::{Ctx, Result, core, flag, take, uint};
use crate::config::cluster::{Breaker, OutlierDetection};

pub(super) fn breakers(ctx: &Ctx<'_>, m: pb::CircuitBreakers) -> Result<[Breaker; 2]> {
    take!(ctx, m, pb::CircuitBreakers { thresholds, per_host_thresholds });
    let mut out = [Breaker::default(), Breaker::default()];
    for (i, t) in thresholds.into_iter().enumerate() {
        let ctx = ctx.index("thresholds", i);
        take!(
            ctx,
            t,
            pb::circuit_breakers::Thresholds {
                priority,
                max_connections,
                max_pending_requests,
                max_requests,
                max_retries,
                retry_budget,
                track_remaining,
                max_connection_pools
            }
        );
        let default = Breaker::default();
        let retry_budget = match retry_budget {
            None => None,
            Some(b) => {
                let ctx = ctx.field("retry_budget");
                take!(ctx, b, pb::circuit_breakers::thresholds::RetryBudget {
                    budget_percent, min_retry_concurrency; refuse budget_interval = "the budget is of the requests that are active now"
                });
                Some((
                    core::percent(&ctx, "budget_percent", budget_percent)?.unwrap_or(20.0),
                    uint(min_retry_concurrency).unwrap_or(3),
                ))
            }
        };
        *slot(&ctx, &mut out, priority)? = Breaker {
            max_connections: uint(max_connections).unwrap_or(default.max_connections),
            max_pending: uint(max_pending_requests).unwrap_or(default.max_pending),
            max_requests: uint(max_requests).unwrap_or(default.max_requests),
            max_retries: uint(max_retries).unwrap_or(default.max_retries),
            max_connection_pools: uint(max_connection_pools).unwrap_or(default.max_connection_pools),
            track_remaining,
            retry_budget,
            per_host_max_connections: None,
        };
    }
    for (i, t) in per_host_thresholds.into_iter().enumerate() {
        let ctx = ctx.index("per_host_thresholds", i);
        let priority = t.priority;
        let only = pb::circuit_breakers::Thresholds {
            priority,
            max_connections: t.max_connections,
            ..Default::default()
        };
        if t != only {
            return Err(ctx.err("only max_connections is served for one host"));
        }
        slot(&ctx, &mut out, priority)?.per_host_max_connections = uint(t.max_connections);
    }
    Ok(out)
}

fn slot<'b>(ctx: &Ctx<'_>, breakers: &'b mut [Breaker; 2], priority: i32) -> Result<&'b mut Breaker> {
    let [default, high] = breakers;
    Ok(match ctx.enumeration("priority", priority)? {
        core_pb::RoutingPriority::Default => default,
        core_pb::RoutingPriority::High => high,
    })
}

pub(super) fn outlier(ctx: &Ctx<'_>, m: pb::OutlierDetection) -> Result<OutlierDetection> {
    take!(ctx, m, pb::OutlierDetection {
        consecutive_5xx, interval, base_ejection_time, max_ejection_percent, enforcing_consecutive_5xx, enforcing_success_rate,
        success_rate_minimum_hosts, success_rate_request_volume, success_rate_stdev_factor, consecutive_gateway_failure,
        enforcing_consecutive_gateway_failure, split_external_local_origin_errors, consecutive_local_origin_failure,
        enforcing_consecutive_local_origin_failure, enforcing_local_origin_success_rate, failure_percentage_threshold,
        enforcing_failure_percentage, enforcing_failure_percentage_local_origin, failure_percentage_minimum_hosts,
        failure_percentage_request_volume, max_ejection_time, max_ejection_time_jitter, successful_active_health_check_uneject_host,
        always_eject_one_host;
        refuse monitors = "the built-in monitors are accepted", detect_degraded_hosts = "unset is accepted"
    });
    let percent = |field: &str, v: Option<wkt::UInt32Value>, default: u32| match uint(v).unwrap_or(default) {
        n @ 0..=100 => Ok(n),
        n => ctx.bad(field, format!("{n} is not a percentage; 0 to 100 is accepted")),
    };
    let base = ctx.positive("base_ejection_time", base_ejection_time)?.unwrap_or(Duration::from_secs(30));
    let max = ctx.positive("max_ejection_time", max_ejection_time)?;
    if max.is_some_and(|m| m < base) {
        return ctx.bad("max_ejection_time", "is less than base_ejection_time");
    }
    Ok(OutlierDetection {
        consecutive_5xx: uint(consecutive_5xx).unwrap_or(5),
        consecutive_gateway: uint(consecutive_gateway_failure).unwrap_or(5),
        consecutive_local_origin: uint(consecutive_local_origin_failure).unwrap_or(5),
        interval: ctx.positive("interval", interval)?.unwrap_or(Duration::from_secs(10)),
        base_ejection: base,
        max_ejection_time: max.unwrap_or_else(|| base.max(Duration::from_secs(300))),
        max_ejection_jitter: ctx
            .duration("max_ejection_time_jitter", max_ejection_time_jitter)?
            .unwrap_or_default(),
        max_ejection_percent: percent("max_ejection_percent", max_ejection_percent, 10)?,
        always_eject_one: flag(always_eject_one_host, false),
        enforcing_5xx: percent("enforcing_consecutive_5xx", enforcing_consecutive_5xx, 100)?,
        enforcing_gateway: percent(
            "enforcing_consecutive_gateway_failure",
            enforcing_consecutive_gateway_failure,
            0,
        )?,
        enforcing_local_origin: percent(
            "enforcing_consecutive_local_origin_failure",
            enforcing_consecutive_local_origin_failure,
            100,
        )?,
        enforcing_success_rate: percent("enforcing_success_rate", enforcing_success_rate, 100)?,
        enforcing_local_success_rate: percent(
            "enforcing_local_origin_success_rate",
            enforcing_local_origin_success_rate,
            100,
        )?,
        success_rate_minimum_hosts: uint(success_rate_minimum_hosts).unwrap_or(5),
        success_rate_request_volume: uint(success_rate_request_volume).unwrap_or(100),
        success_rate_stdev_factor: uint(success_rate_stdev_factor).unwrap_or(1900),
        split_external_local: split_external_local_origin_errors,
        failure_percentage_threshold: percent(
            "failure_percentage_threshold",
            failure_percentage_threshold,
            85,
        )?,
        enforcing_failure_percentage: percent(
            "enforcing_failure_percentage",
            enforcing_failure_percentage,
            0,
        )?,
        enforcing_failure_percentage_local: percent(
            "enforcing_failure_percentage_local_origin",
            enforcing_failure_percentage_local_origin,
            0,
        )?,
        failure_percentage_minimum_hosts: uint(failure_percentage_minimum_hosts).unwrap_or(5),
        failure_percentage_request_volume: uint(failure_percentage_request_volume).unwrap_or(50),
        successful_active_hc_uneject: flag(successful_active_health_check_uneject_host, true),
    })
}
