//! Retry policies. Source: `RetryPolicy` in envoy/config/route/v3/route_components.proto, envoy/extensions/retry.

use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::retry::host::omit_canary_hosts::v3 as canary;
use envoy_types::pb::envoy::extensions::retry::host::omit_host_metadata::v3 as omit;
use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3 as previous;
use envoy_types::pb::envoy::extensions::retry::priority::previous_priorities::v3 as priorities;

use super::any::Extension;
use super::{Ctx, Result, core, matcher, take, uint};
use crate::config::route::{RateLimitedBackOff, RetryOn, RetryPolicy};

pub fn retry_policy(ctx: &Ctx<'_>, m: pb::RetryPolicy) -> Result<RetryPolicy> {
    use pb::retry_policy::retry_host_predicate::ConfigType as H;
    use pb::retry_policy::retry_priority::ConfigType as P;
    take!(ctx, m, pb::RetryPolicy {
        retry_on, num_retries, per_try_timeout, per_try_idle_timeout, retry_priority, retry_host_predicate,
        host_selection_retry_max_attempts, retriable_status_codes, retry_back_off, rate_limited_retry_back_off, retriable_headers,
        retriable_request_headers;
        refuse retry_options_predicates = "none is accepted", refresh_cluster_on_retry = "the cluster of the first try is kept"
    });
    let (on, _) = RetryOn::parse(&retry_on);
    let mut out = RetryPolicy {
        retry_on: on,
        num_retries: uint(num_retries).unwrap_or(1),
        per_try_timeout: ctx.timeout("per_try_timeout", per_try_timeout, None)?,
        per_try_idle_timeout: ctx.timeout("per_try_idle_timeout", per_try_idle_timeout, None)?,
        retriable_status_codes: ctx.each("retriable_status_codes", retriable_status_codes, |c, s| {
            u16::try_from(s)
                .ok()
                .filter(|s| (100..600).contains(s))
                .ok_or_else(|| c.err(format!("{s} is not a status; 100 to 599 is accepted")))
        })?,
        retriable_headers: matcher::headers(ctx, "retriable_headers", retriable_headers)?,
        retriable_request_headers: matcher::headers(
            ctx,
            "retriable_request_headers",
            retriable_request_headers,
        )?,
        base_interval: Duration::from_millis(25),
        max_interval: Duration::from_millis(250),
        rate_limited: None,
        avoid_previous_hosts: false,
        omit_canary_hosts: false,
        omit_host_metadata: None,
        host_selection_attempts: match host_selection_retry_max_attempts {
            0 => 1,
            n => u32::try_from(n).map_err(|_| {
                ctx.field("host_selection_retry_max_attempts").err(format!("{n} is out of range"))
            })?,
        },
        previous_priorities: None,
    };
    if let Some(b) = retry_back_off {
        let ctx = ctx.field("retry_back_off");
        take!(ctx, b, pb::retry_policy::RetryBackOff { base_interval, max_interval });
        out.base_interval = ctx
            .required("base_interval", ctx.positive("base_interval", base_interval)?)?
            .max(Duration::from_millis(1));
        out.max_interval = ctx.positive("max_interval", max_interval)?.unwrap_or(out.base_interval * 10);
        if out.max_interval < out.base_interval {
            return ctx.bad("max_interval", "is less than base_interval");
        }
    }
    if let Some(r) = rate_limited_retry_back_off {
        let ctx = ctx.field("rate_limited_retry_back_off");
        take!(ctx, r, pb::retry_policy::RateLimitedRetryBackOff { reset_headers, max_interval });
        let headers = ctx.each("reset_headers", reset_headers, |c, h| {
            take!(c, h, pb::retry_policy::ResetHeader { name, format });
            Ok((
                c.header_name("name", &name)?,
                format == pb::retry_policy::ResetHeaderFormat::UnixTimestamp as i32,
            ))
        })?;
        if headers.is_empty() {
            return ctx.bad("reset_headers", "is required");
        }
        out.rate_limited = Some(RateLimitedBackOff {
            headers,
            max_interval: ctx.positive("max_interval", max_interval)?.unwrap_or(Duration::from_secs(300)),
        });
    }
    for (i, p) in retry_host_predicate.into_iter().enumerate() {
        let ctx = ctx.index("retry_host_predicate", i);
        take!(ctx, p, pb::retry_policy::RetryHostPredicate { name, config_type });
        let ctx = ctx.field("typed_config");
        let extension = match config_type {
            None if name == "envoy.retry_host_predicates.previous_hosts" => {
                out.avoid_previous_hosts = true;
                continue;
            }
            None => return Err(ctx.err("is required")),
            Some(H::TypedConfig(any)) => Extension::open(&ctx, any)?,
        };
        match extension.message.as_str() {
            "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate" => {
                let previous::PreviousHostsPredicate {} = extension.decode(&ctx)?;
                out.avoid_previous_hosts = true;
            }
            "envoy.extensions.retry.host.omit_canary_hosts.v3.OmitCanaryHostsPredicate" => {
                let canary::OmitCanaryHostsPredicate {} = extension.decode(&ctx)?;
                out.omit_canary_hosts = true;
            }
            "envoy.extensions.retry.host.omit_host_metadata.v3.OmitHostMetadataConfig" => {
                take!(ctx, extension.decode(&ctx)?, omit::OmitHostMetadataConfig { metadata_match });
                out.omit_host_metadata = core::lb_metadata(&ctx.field("metadata_match"), metadata_match)?;
            }
            _ => {
                return extension.unknown(
                    &ctx,
                    "retry host predicate",
                    "envoy.retry_host_predicates.{previous_hosts, omit_canary_hosts, omit_host_metadata}",
                );
            }
        }
    }
    if let Some(p) = retry_priority {
        let ctx = ctx.field("retry_priority");
        take!(ctx, p, pb::retry_policy::RetryPriority { config_type; harmless name = "the plugin is told by its type" });
        let ctx = ctx.field("typed_config");
        let P::TypedConfig(any) = ctx.required("typed_config", config_type)?;
        let extension = Extension::open(&ctx, any)?;
        if extension.message
            != "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig"
        {
            return extension.unknown(&ctx, "retry priority", "envoy.retry_priorities.previous_priorities");
        }
        take!(ctx, extension.decode(&ctx)?, priorities::PreviousPrioritiesConfig { update_frequency });
        match u32::try_from(update_frequency) {
            Ok(n @ 1..) => out.previous_priorities = Some(n),
            _ => {
                return ctx
                    .bad("update_frequency", format!("{update_frequency} is not accepted; 1 or more is"));
            }
        }
    }
    Ok(out)
}
