//! Endpoints. Source: envoy/config/endpoint/v3.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core_pb;
use envoy_types::pb::envoy::config::endpoint::v3 as pb;

use super::{Ctx, Env, Result, Root, core, take, text, uint};
use crate::config::address::Address;
use crate::config::cluster::{EdsHealth, Endpoint, Endpoints, LocalityEndpoints};

/// An EDS resource.
///
/// # Errors
/// What is not served or not valid.
pub fn load_assignment(env: &Env, m: pb::ClusterLoadAssignment) -> Result<Endpoints> {
    let root = Root::new("load assignment", &m.cluster_name, env);
    let endpoints = endpoints(&root.ctx(), m, false)?;
    Ok(endpoints)
}

/// The endpoints of a `ClusterLoadAssignment`; host names are accepted where `names` says so (DNS clusters).
pub fn endpoints(ctx: &Ctx<'_>, m: pb::ClusterLoadAssignment, names: bool) -> Result<Endpoints> {
    take!(ctx, m, pb::ClusterLoadAssignment {
        cluster_name, endpoints, policy;
        refuse named_endpoints = "endpoints are given where they are used"
    });
    if cluster_name.is_empty() {
        return ctx.bad("cluster_name", "is required");
    }
    let ctx2 = ctx.field("policy");
    take!(
        ctx2,
        policy.unwrap_or_default(),
        pb::cluster_load_assignment::Policy {
            drop_overloads,
            overprovisioning_factor,
            endpoint_stale_after,
            weighted_priority_health
        }
    );
    let overprovisioning = uint(overprovisioning_factor).unwrap_or(140);
    if overprovisioning == 0 {
        return ctx2.bad("overprovisioning_factor", "0 is not accepted; 1 or more is");
    }
    let drops = ctx2.each("drop_overloads", drop_overloads, |c, d| {
        take!(c, d, pb::cluster_load_assignment::policy::DropOverload { category, drop_percentage });
        if category.is_empty() {
            return c.bad("category", "is required");
        }
        let share = core::fractional(&c.field("drop_percentage"), drop_percentage.unwrap_or_default())?;
        Ok((
            category.into(),
            (u64::from(share.numerator) * 1_000_000 / u64::from(share.denominator)).min(1_000_000) as u32,
        ))
    })?;
    let localities = ctx.each("endpoints", endpoints, |c, l| locality(c, l, names))?;
    let mut priorities: Vec<u32> = localities.iter().map(|l| l.priority).collect();
    priorities.sort_unstable();
    priorities.dedup();
    // A gap between priorities is taken as Envoy takes it: the missing ones are empty.
    if let Some(last) = priorities.last().filter(|p| **p > 128) {
        return ctx.bad("endpoints", format!("priority {last} is too high; 0 to 128 is accepted"));
    }
    Ok(Endpoints {
        cluster_name: cluster_name.into(),
        localities,
        overprovisioning,
        drops,
        weighted_priority_health,
        endpoint_stale_after: ctx2.timeout("endpoint_stale_after", endpoint_stale_after, None)?,
    })
}

fn locality(ctx: &Ctx<'_>, m: pb::LocalityLbEndpoints, names: bool) -> Result<LocalityEndpoints> {
    use pb::locality_lb_endpoints::LbConfig as C;
    take!(ctx, m, pb::LocalityLbEndpoints {
        locality, lb_endpoints, load_balancing_weight, priority, lb_config;
        harmless metadata = "of a locality, which no served extension reads", proximity = "not used by Envoy either"
    });
    let core_pb::Locality { region, zone, sub_zone } = locality.unwrap_or_default();
    let list = match lb_config {
        None => lb_endpoints,
        Some(C::LoadBalancerEndpoints(pb::locality_lb_endpoints::LbEndpointList { lb_endpoints })) => {
            lb_endpoints
        }
        Some(C::LedsClusterLocalityConfig(_)) => {
            return ctx.bad("leds_cluster_locality_config", "LEDS is not served; lb_endpoints is accepted");
        }
    };
    let weight = uint(load_balancing_weight);
    if weight == Some(0) {
        return ctx.bad("load_balancing_weight", "0 is not accepted; 1 or more is");
    }
    Ok(LocalityEndpoints {
        region: region.into(),
        zone: zone.into(),
        sub_zone: sub_zone.into(),
        priority,
        weight,
        endpoints: ctx.each("lb_endpoints", list, |c, e| endpoint(c, e, names))?,
    })
}

fn endpoint(ctx: &Ctx<'_>, m: pb::LbEndpoint, names: bool) -> Result<Endpoint> {
    use pb::lb_endpoint::HostIdentifier as H;
    take!(ctx, m, pb::LbEndpoint { health_status, metadata, load_balancing_weight, host_identifier });
    let e = match ctx.required("endpoint", host_identifier)? {
        H::Endpoint(e) => e,
        H::EndpointName(n) => {
            return ctx.bad("endpoint_name", format!("{n:?} is not served; endpoint is accepted"));
        }
    };
    let metadata = core::metadata(&ctx.field("metadata"), metadata)?;
    let weight = uint(load_balancing_weight).unwrap_or(1);
    if weight == 0 {
        return ctx.bad("load_balancing_weight", "0 is not accepted; 1 or more is");
    }
    let health = health(ctx, health_status)?;
    let ctx = ctx.field("endpoint");
    take!(ctx, e, pb::Endpoint {
        address, health_check_config, hostname, additional_addresses;
        harmless observability_name = "a name for per-endpoint stats"
    });
    let host = |ctx: &Ctx<'_>, a: Option<core_pb::Address>| -> Result<Address> {
        let address = core::address(&ctx.field("address"), ctx.required("address", a)?)?;
        if let (Address::Name(name, _), false) = (&address, names) {
            return ctx.field("address.socket_address").bad(
                "address",
                format!(
                    "{name:?} is not an IP address; a host name needs a STRICT_DNS or LOGICAL_DNS cluster"
                ),
            );
        }
        Ok(address)
    };
    let check = health_check(&ctx.field("health_check_config"), health_check_config.unwrap_or_default())?;
    Ok(Endpoint {
        address: host(&ctx, address)?,
        additional: ctx.each("additional_addresses", additional_addresses, |c, a| {
            take!(c, a, pb::endpoint::AdditionalAddress { address });
            host(c, address)
        })?,
        hostname: text(hostname),
        weight,
        health,
        metadata,
        health_check_port: check.port,
        health_check_hostname: check.hostname,
        health_check_address: check.address,
        disable_active_health_check: check.disabled,
    })
}

struct Check {
    port: Option<u16>,
    hostname: Option<Arc<str>>,
    address: Option<Address>,
    disabled: bool,
}

fn health_check(ctx: &Ctx<'_>, m: pb::endpoint::HealthCheckConfig) -> Result<Check> {
    take!(
        ctx,
        m,
        pb::endpoint::HealthCheckConfig { port_value, hostname, address, disable_active_health_check }
    );
    let port = ctx.port("port_value", port_value)?;
    Ok(Check {
        port: (port != 0).then_some(port),
        hostname: text(hostname),
        address: address.map(|a| core::address(&ctx.field("address"), a)).transpose()?,
        disabled: disable_active_health_check,
    })
}

pub fn health(ctx: &Ctx<'_>, status: i32) -> Result<EdsHealth> {
    use core_pb::HealthStatus as S;
    Ok(match ctx.enumeration("health_status", status)? {
        S::Unknown => EdsHealth::Unknown,
        S::Healthy => EdsHealth::Healthy,
        S::Unhealthy => EdsHealth::Unhealthy,
        S::Draining => EdsHealth::Draining,
        S::Timeout => EdsHealth::Timeout,
        S::Degraded => EdsHealth::Degraded,
    })
}

/// Endpoints without any: a cluster without a `load_assignment`.
pub fn none(cluster: &str) -> Arc<Endpoints> {
    Arc::new(Endpoints { cluster_name: cluster.into(), overprovisioning: 140, ..Endpoints::default() })
}
