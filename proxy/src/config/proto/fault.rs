//! Fault injection and local rate limits. Source: envoy/extensions/filters/http/{fault,local_ratelimit}/v3.

use std::sync::Arc;

use envoy_types::pb::envoy::extensions::filters::common::fault::v3 as common;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3 as limit;
use envoy_types::pb::envoy::r#type::v3 as ty;

use super::{Ctx, Result, core, matcher, take, text, uint};
use crate::config::filter::{Fault, FaultAbort, LocalRateLimit};
use crate::config::matcher::Fraction;

const NONE: Fraction = Fraction { numerator: 0, denominator: 100 };

fn share(ctx: &Ctx<'_>, m: Option<ty::FractionalPercent>) -> Result<Fraction> {
    m.map_or(Ok(NONE), |p| core::fractional(&ctx.field("percentage"), p))
}

pub fn fault(ctx: &Ctx<'_>, m: pb::HttpFault) -> Result<Fault> {
    use common::fault_delay::FaultDelaySecifier as D;
    use common::fault_rate_limit::LimitType as L;
    use pb::fault_abort::ErrorType as E;
    take!(ctx, m, pb::HttpFault {
        delay, abort, upstream_cluster, headers, downstream_nodes, max_active_faults, response_rate_limit;
        refuse delay_percent_runtime = "the percentage in the configuration is used",
            abort_percent_runtime = "the percentage in the configuration is used",
            delay_duration_runtime = "the delay in the configuration is used",
            abort_http_status_runtime = "the status in the configuration is used",
            max_active_faults_runtime = "the number in the configuration is used",
            response_rate_limit_percent_runtime = "the percentage in the configuration is used",
            abort_grpc_status_runtime = "the status in the configuration is used",
            filter_metadata = "none is accepted";
        harmless disable_downstream_cluster_stats = "stats by downstream cluster are not kept"
    });
    let mut out = Fault {
        delay: None,
        header_delay: None,
        abort: None,
        header_abort: None,
        upstream_cluster: text(upstream_cluster),
        headers: matcher::headers(ctx, "headers", headers)?,
        downstream_nodes: downstream_nodes.into_iter().map(Arc::from).collect(),
        max_active: uint(max_active_faults),
        response_rate: None,
    };
    if let Some(d) = delay {
        let ctx = ctx.field("delay");
        take!(ctx, d, common::FaultDelay { percentage, fault_delay_secifier });
        let share = share(&ctx, percentage)?;
        match ctx.required("fixed_delay", fault_delay_secifier)? {
            D::FixedDelay(d) => {
                out.delay = Some((ctx.positive("fixed_delay", Some(d))?.unwrap_or_default(), share));
            }
            D::HeaderDelay(common::fault_delay::HeaderDelay {}) => out.header_delay = Some(share),
        }
    }
    if let Some(a) = abort {
        let ctx = ctx.field("abort");
        take!(ctx, a, pb::FaultAbort { percentage, error_type; refuse response_body = "the standard body is sent" });
        let share = share(&ctx, percentage)?;
        match ctx.required("error_type", error_type)? {
            E::HttpStatus(s @ 200..=599) => out.abort = Some((FaultAbort::Http(s as u16), share)),
            E::HttpStatus(s) => return ctx.bad("http_status", format!("{s} is not accepted; 200 to 599 is")),
            E::GrpcStatus(s) => out.abort = Some((FaultAbort::Grpc(s), share)),
            E::HeaderAbort(pb::fault_abort::HeaderAbort {}) => out.header_abort = Some(share),
        }
    }
    if let Some(r) = response_rate_limit {
        let ctx = ctx.field("response_rate_limit");
        take!(ctx, r, common::FaultRateLimit { percentage, limit_type });
        match ctx.required("fixed_limit", limit_type)? {
            L::FixedLimit(common::fault_rate_limit::FixedLimit { limit_kbps: 0 }) => {
                return ctx.field("fixed_limit").bad("limit_kbps", "0 is not accepted; 1 or more is");
            }
            L::FixedLimit(common::fault_rate_limit::FixedLimit { limit_kbps }) => {
                out.response_rate = Some((limit_kbps, share(&ctx, percentage)?));
            }
            L::HeaderLimit(_) => return ctx.bad("header_limit", "is not served; fixed_limit is accepted"),
        }
    }
    Ok(out)
}

pub fn local_rate_limit(ctx: &Ctx<'_>, m: limit::LocalRateLimit) -> Result<LocalRateLimit> {
    take!(ctx, m, limit::LocalRateLimit {
        stat_prefix, status, token_bucket, filter_enabled, filter_enforced, request_headers_to_add_when_not_enforced,
        response_headers_to_add, local_rate_limit_per_downstream_connection, rate_limited_as_resource_exhausted;
        refuse descriptors = "one token_bucket is accepted",
            local_cluster_rate_limit = "one token_bucket is accepted",
            enable_x_ratelimit_headers = "OFF is accepted",
            rate_limits = "one token_bucket is accepted",
            enable_retry_after_header = "unset is accepted";
        harmless stage = "for descriptors alone",
            vh_rate_limits = "for descriptors alone",
            always_consume_default_token_bucket = "for descriptors alone",
            max_dynamic_descriptors = "for descriptors alone"
    });
    if stat_prefix.is_empty() {
        return ctx.bad("stat_prefix", "is required");
    }
    let ctx2 = ctx.field("token_bucket");
    take!(
        ctx2,
        ctx.required("token_bucket", token_bucket)?,
        ty::TokenBucket { max_tokens, tokens_per_fill, fill_interval }
    );
    if max_tokens == 0 {
        return ctx2.bad("max_tokens", "0 is not accepted; 1 or more is");
    }
    let fraction =
        |field: &str, v: Option<_>| v.map_or(Ok(NONE), |f| core::runtime_fraction(&ctx.field(field), f));
    let status = match status {
        // Codes below 400 are raised to 429, as in Envoy.
        Some(ty::HttpStatus { code }) if code >= 400 => {
            u16::try_from(code).map_err(|_| ctx.field("status").err(format!("{code} is not a status")))?
        }
        _ => 429,
    };
    Ok(LocalRateLimit {
        stat_prefix: stat_prefix.into(),
        status,
        max_tokens,
        tokens_per_fill: uint(tokens_per_fill).unwrap_or(1),
        fill_interval: ctx2.required("fill_interval", ctx2.positive("fill_interval", fill_interval)?)?,
        enabled: fraction("filter_enabled", filter_enabled)?,
        enforced: fraction("filter_enforced", filter_enforced)?,
        response_headers: ctx.each("response_headers_to_add", response_headers_to_add, core::header_add)?,
        request_headers: ctx.each(
            "request_headers_to_add_when_not_enforced",
            request_headers_to_add_when_not_enforced,
            core::header_add,
        )?,
        per_connection: local_rate_limit_per_downstream_connection,
        grpc_resource_exhausted: rate_limited_as_resource_exhausted,
    })
}
