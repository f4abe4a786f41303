//! What a route does: forward, redirect, answer. Source: envoy/config/route/v3/route_components.proto.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core_pb;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::path::rewrite::uri_template::v3 as uri_rewrite;

use super::route::Scope;
use super::{Ctx, Result, any, core, flag, format, http_filter, matcher, retry, take, text, uint};
use crate::config::access_log::LogFormat;
use crate::config::matcher::Fraction;
use crate::config::route::{
    ClusterChoice, ClusterOrHeader, ConnectConfig, DirectResponse, Forward, HashPolicy, HashSource,
    HeaderMutations, HostRewrite, InternalRedirect, MaxStreamDuration, Mirror, PathRewrite, Redirect,
    RedirectPath, TemplatePart, WeightedCluster, WeightedClusters,
};

pub(super) fn forward(ctx: &Ctx<'_>, m: pb::RouteAction, scope: Scope) -> Result<Forward> {
    use pb::route_action::ClusterNotFoundResponseCode as N;
    use pb::route_action::ClusterSpecifier as C;
    use pb::route_action::HostRewriteSpecifier as H;
    take!(ctx, m, pb::RouteAction {
        cluster_not_found_response_code, metadata_match, prefix_rewrite, regex_rewrite, path_rewrite_policy, append_x_forwarded_host,
        timeout, idle_timeout, flush_timeout, retry_policy, request_mirror_policies, priority, hash_policy, max_grpc_timeout,
        grpc_timeout_offset, upgrade_configs, internal_redirect_policy, internal_redirect_action, max_internal_redirects, hedge_policy,
        max_stream_duration, cluster_specifier, host_rewrite_specifier;
        refuse path_rewrite = "prefix_rewrite, regex_rewrite or path_rewrite_policy is accepted",
            retry_policy_typed_config = "retry_policy is accepted",
            cors = "typed_per_filter_config for envoy.filters.http.cors is accepted";
        harmless early_data_policy = "TLS early data is not taken, so no request comes in it",
            rate_limits = "read by the rate limit filter, which is refused where it stands",
            include_vh_rate_limits = "read by the rate limit filter, which is refused where it stands"
    });
    let cluster = match ctx.required("cluster_specifier", cluster_specifier)? {
        C::Cluster(name) if name.is_empty() => return ctx.bad("cluster", "must not be empty"),
        C::Cluster(name) => ClusterChoice::Cluster(name.into()),
        C::ClusterHeader(name) => ClusterChoice::Header(ctx.header_name("cluster_header", &name)?),
        C::WeightedClusters(w) => ClusterChoice::Weighted(weighted(&ctx.field("weighted_clusters"), w)?),
        C::ClusterSpecifierPlugin(p) => {
            return ctx.bad(
                "cluster_specifier_plugin",
                format!("'{p}' is not served; cluster, cluster_header and weighted_clusters are accepted"),
            );
        }
        C::InlineClusterSpecifierPlugin(_) => {
            return ctx.bad(
                "inline_cluster_specifier_plugin",
                "is not served; cluster, cluster_header and weighted_clusters are accepted",
            );
        }
    };
    let path_rewrite = match (prefix_rewrite.is_empty(), regex_rewrite, path_rewrite_policy) {
        (true, None, None) => PathRewrite::None,
        (false, None, None) => PathRewrite::Prefix(prefix_rewrite.into()),
        (true, Some(r), None) => PathRewrite::Regex(matcher::rewrite(&ctx.field("regex_rewrite"), r)?),
        (true, None, Some(t)) => {
            PathRewrite::Template(rewrite_template(&ctx.field("path_rewrite_policy"), t)?)
        }
        _ => {
            return ctx.bad(
                "prefix_rewrite",
                "only one of prefix_rewrite, regex_rewrite, path_rewrite_policy may be set",
            );
        }
    };
    let host_rewrite = match host_rewrite_specifier {
        None => HostRewrite::None,
        Some(H::HostRewriteLiteral(h)) => HostRewrite::Literal(h.into()),
        Some(H::AutoHostRewrite(b)) => {
            if b.value {
                HostRewrite::Auto
            } else {
                HostRewrite::None
            }
        }
        Some(H::HostRewriteHeader(h)) => HostRewrite::Header(ctx.header_name("host_rewrite_header", &h)?),
        Some(H::HostRewritePathRegex(r)) => {
            HostRewrite::PathRegex(matcher::rewrite(&ctx.field("host_rewrite_path_regex"), r)?)
        }
        Some(H::HostRewrite(h)) => {
            return ctx.bad("host_rewrite", format!("{h:?} is not served; host_rewrite_literal is accepted"));
        }
    };
    let idle = ctx.duration("idle_timeout", idle_timeout)?;
    let mut upgrades = Vec::new();
    let mut connect_config = None;
    for (i, u) in upgrade_configs.into_iter().enumerate() {
        let ctx = ctx.index("upgrade_configs", i);
        let pb::route_action::UpgradeConfig { upgrade_type, enabled, connect_config: connect } = u;
        if let Some(c) = connect {
            let ctx = ctx.field("connect_config");
            take!(ctx, c, pb::route_action::upgrade_config::ConnectConfig { allow_post; refuse proxy_protocol_config = "none is accepted" });
            connect_config = Some(ConnectConfig { allow_post, proxy_protocol: false });
        }
        upgrades.push((upgrade_type.to_ascii_lowercase().into(), flag(enabled, true)));
    }
    let internal_redirect = match (internal_redirect_policy, internal_redirect_action) {
        (Some(p), _) => Some(internal_redirect(&ctx.field("internal_redirect_policy"), p)?),
        (None, 1) => Some(InternalRedirect {
            max_internal_redirects: uint(max_internal_redirects).unwrap_or(1),
            codes: vec![302],
            allow_cross_scheme: false,
            response_headers_to_copy: Vec::new(),
        }),
        (None, _) => None,
    };
    Ok(Forward {
        cluster,
        cluster_not_found_code: match ctx
            .enumeration("cluster_not_found_response_code", cluster_not_found_response_code)?
        {
            N::ServiceUnavailable => 503,
            N::NotFound => 404,
            N::InternalServerError => 500,
        },
        metadata_match: core::lb_metadata(&ctx.field("metadata_match"), metadata_match)?,
        path_rewrite,
        host_rewrite,
        append_x_forwarded_host,
        timeout: ctx.timeout("timeout", timeout, Some(Duration::from_secs(15)))?,
        idle_timeout: idle.filter(|d| !d.is_zero()),
        idle_timeout_off: idle == Some(Duration::ZERO),
        flush_timeout: ctx.duration("flush_timeout", flush_timeout)?,
        retry: retry_policy
            .map(|r| retry::retry_policy(&ctx.field("retry_policy"), r).map(Arc::new))
            .transpose()?,
        mirrors: ctx.each("request_mirror_policies", request_mirror_policies, mirror)?,
        high_priority: ctx.enumeration::<core_pb::RoutingPriority>("priority", priority)?
            == core_pb::RoutingPriority::High,
        hash: ctx.each("hash_policy", hash_policy, self::hash_policy)?,
        max_stream_duration: max_stream_duration
            .map(|d| stream_duration(&ctx.field("max_stream_duration"), d))
            .transpose()?,
        max_grpc_timeout: ctx.duration("max_grpc_timeout", max_grpc_timeout)?,
        grpc_timeout_offset: ctx.duration("grpc_timeout_offset", grpc_timeout_offset)?,
        upgrades,
        connect_config,
        internal_redirect,
        hedge_on_per_try_timeout: match hedge_policy {
            Some(h) => hedge(&ctx.field("hedge_policy"), h)?,
            None => scope.hedge,
        },
    })
}

fn stream_duration(ctx: &Ctx<'_>, m: pb::route_action::MaxStreamDuration) -> Result<MaxStreamDuration> {
    take!(
        ctx,
        m,
        pb::route_action::MaxStreamDuration {
            max_stream_duration,
            grpc_timeout_header_max,
            grpc_timeout_header_offset
        }
    );
    Ok(MaxStreamDuration {
        max: ctx.duration("max_stream_duration", max_stream_duration)?,
        grpc_timeout_header_max: ctx.duration("grpc_timeout_header_max", grpc_timeout_header_max)?,
        grpc_timeout_header_offset: ctx.duration("grpc_timeout_header_offset", grpc_timeout_header_offset)?,
    })
}

/// `hedge_policy`: only hedging on a per-try timeout.
pub(super) fn hedge(ctx: &Ctx<'_>, m: pb::HedgePolicy) -> Result<bool> {
    take!(ctx, m, pb::HedgePolicy { initial_requests, additional_request_chance, hedge_on_per_try_timeout });
    if uint(initial_requests).is_some_and(|n| n != 1) {
        return ctx.bad("initial_requests", "only 1 is served");
    }
    if additional_request_chance.is_some_and(|c| c.numerator != 0) {
        return ctx.bad("additional_request_chance", "only 0 is served");
    }
    Ok(hedge_on_per_try_timeout)
}

fn weighted(ctx: &Ctx<'_>, m: pb::WeightedCluster) -> Result<WeightedClusters> {
    use pb::weighted_cluster::RandomValueSpecifier as R;
    use pb::weighted_cluster::cluster_weight::HostRewriteSpecifier as H;
    take!(ctx, m, pb::WeightedCluster {
        clusters, random_value_specifier;
        refuse runtime_key_prefix = "weights in the configuration are accepted";
        harmless total_weight = "the sum of the weights is used, as in Envoy"
    });
    let random_value_header = match random_value_specifier {
        None => None,
        Some(R::HeaderName(h)) => Some(ctx.header_name("header_name", &h)?),
        Some(R::UseHashPolicy(b)) if b.value => {
            return ctx
                .bad("use_hash_policy", "true is not served; a random value or header_name is accepted");
        }
        Some(R::UseHashPolicy(_)) => None,
    };
    let clusters = ctx.each("clusters", clusters, |c, w| {
        take!(
            c,
            w,
            pb::weighted_cluster::ClusterWeight {
                name,
                cluster_header,
                weight,
                metadata_match,
                request_headers_to_add,
                request_headers_to_remove,
                response_headers_to_add,
                response_headers_to_remove,
                typed_per_filter_config,
                host_rewrite_specifier
            }
        );
        if name.is_empty() == cluster_header.is_empty() {
            return c.bad("name", "exactly one of name and cluster_header is required");
        }
        Ok(WeightedCluster {
            cluster_header: if cluster_header.is_empty() {
                None
            } else {
                Some(c.header_name("cluster_header", &cluster_header)?)
            },
            name: name.into(),
            weight: c.required("weight", uint(weight))?,
            metadata_match: core::lb_metadata(&c.field("metadata_match"), metadata_match)?,
            mutations: core::mutations(
                c,
                request_headers_to_add,
                request_headers_to_remove,
                response_headers_to_add,
                response_headers_to_remove,
            )?,
            overrides: http_filter::overrides(c, typed_per_filter_config)?,
            host_rewrite: host_rewrite_specifier.map(|H::HostRewriteLiteral(h)| h.into()),
        })
    })?;
    let total = clusters.iter().map(|c| u64::from(c.weight)).sum::<u64>();
    match u32::try_from(total) {
        Ok(total_weight @ 1..) => Ok(WeightedClusters { clusters, total_weight, random_value_header }),
        _ => ctx.bad("clusters", format!("the weights' sum {total} is not accepted; 1 to 4294967295 is")),
    }
}

pub(super) fn mirror(ctx: &Ctx<'_>, m: pb::route_action::RequestMirrorPolicy) -> Result<Mirror> {
    take!(
        ctx,
        m,
        pb::route_action::RequestMirrorPolicy {
            cluster,
            cluster_header,
            runtime_fraction,
            trace_sampled,
            disable_shadow_host_suffix_append,
            request_headers_mutations,
            host_rewrite_literal
        }
    );
    let cluster = match (cluster.is_empty(), cluster_header.is_empty()) {
        (false, true) => ClusterOrHeader::Cluster(cluster.into()),
        (true, false) => ClusterOrHeader::Header(ctx.header_name("cluster_header", &cluster_header)?),
        _ => return ctx.bad("cluster", "exactly one of cluster and cluster_header is required"),
    };
    let (request_add, request_remove) =
        core::header_mutations(ctx, "request_headers_mutations", request_headers_mutations)?;
    Ok(Mirror {
        cluster,
        fraction: match runtime_fraction {
            None => Fraction::ALL,
            Some(f) => core::runtime_fraction(&ctx.field("runtime_fraction"), f)?,
        },
        trace_sampled: trace_sampled.map(|v| v.value),
        no_host_suffix: disable_shadow_host_suffix_append,
        mutations: HeaderMutations { request_add, request_remove, ..HeaderMutations::default() },
        host_rewrite: text(host_rewrite_literal),
    })
}

fn hash_policy(ctx: &Ctx<'_>, m: pb::route_action::HashPolicy) -> Result<HashPolicy> {
    use pb::route_action::hash_policy as hp;
    use pb::route_action::hash_policy::PolicySpecifier as P;
    take!(ctx, m, pb::route_action::HashPolicy { terminal, policy_specifier });
    let source = match ctx.required("policy_specifier", policy_specifier)? {
        P::Header(hp::Header { header_name, regex_rewrite }) => {
            let ctx = ctx.field("header");
            HashSource::Header {
                name: ctx.header_name("header_name", &header_name)?,
                rewrite: regex_rewrite
                    .map(|r| matcher::rewrite(&ctx.field("regex_rewrite"), r))
                    .transpose()?,
            }
        }
        P::Cookie(hp::Cookie { name, ttl, path, attributes }) => {
            let ctx = ctx.field("cookie");
            if name.is_empty() {
                return ctx.bad("name", "is required");
            }
            HashSource::Cookie {
                name: name.into(),
                ttl: ctx.duration("ttl", ttl)?,
                path: path.into(),
                attributes: attributes
                    .into_iter()
                    .map(|hp::CookieAttribute { name, value }| (name.into(), value.into()))
                    .collect(),
            }
        }
        P::ConnectionProperties(hp::ConnectionProperties { source_ip }) => {
            if !source_ip {
                return ctx.field("connection_properties").bad("source_ip", "true is required");
            }
            HashSource::SourceIp
        }
        P::QueryParameter(hp::QueryParameter { name }) => {
            if name.is_empty() {
                return ctx.field("query_parameter").bad("name", "is required");
            }
            HashSource::Query(name.into())
        }
        P::FilterState(hp::FilterState { key }) => HashSource::FilterState(key.into()),
    };
    Ok(HashPolicy { source, terminal })
}

fn internal_redirect(ctx: &Ctx<'_>, m: pb::InternalRedirectPolicy) -> Result<InternalRedirect> {
    take!(ctx, m, pb::InternalRedirectPolicy {
        max_internal_redirects, redirect_response_codes, allow_cross_scheme_redirect, response_headers_to_copy;
        refuse predicates = "none is accepted"
    });
    let codes = ctx.each("redirect_response_codes", redirect_response_codes, |c, code| match code {
        301 | 302 | 303 | 307 | 308 => Ok(code as u16),
        _ => Err(c.err(format!("{code} is not a redirect; 301, 302, 303, 307, 308 are accepted"))),
    })?;
    Ok(InternalRedirect {
        max_internal_redirects: uint(max_internal_redirects).unwrap_or(1),
        codes: if codes.is_empty() { vec![302] } else { codes },
        allow_cross_scheme: allow_cross_scheme_redirect,
        response_headers_to_copy: ctx.each(
            "response_headers_to_copy",
            response_headers_to_copy,
            |c, n| c.header_name("", &n),
        )?,
    })
}

fn rewrite_template(ctx: &Ctx<'_>, m: core_pb::TypedExtensionConfig) -> Result<Vec<TemplatePart>> {
    let (_, extension) = any::typed(ctx, m)?;
    if extension.message != "envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig" {
        return extension.unknown(
            ctx,
            "path rewrite policy",
            "envoy.path.rewrite.uri_template.uri_template_rewriter",
        );
    }
    take!(ctx, extension.decode(ctx)?, uri_rewrite::UriTemplateRewriteConfig { path_template_rewrite });
    let mut parts = Vec::new();
    let mut rest = path_template_rewrite.as_str();
    if !rest.starts_with('/') {
        return ctx.bad("path_template_rewrite", format!("{rest:?} must begin with /"));
    }
    while let Some(open) = rest.find('{') {
        if open > 0 {
            parts.push(TemplatePart::Literal(rest[..open].into()));
        }
        let Some(close) = rest[open..].find('}') else {
            return ctx
                .bad("path_template_rewrite", format!("{path_template_rewrite:?}: a {{ is not closed"));
        };
        parts.push(TemplatePart::Variable(rest[open + 1..open + close].into()));
        rest = &rest[open + close + 1..];
    }
    if !rest.is_empty() {
        parts.push(TemplatePart::Literal(rest.into()));
    }
    Ok(parts)
}

pub(super) fn redirect(ctx: &Ctx<'_>, m: pb::RedirectAction) -> Result<Redirect> {
    use pb::redirect_action::PathRewriteSpecifier as P;
    use pb::redirect_action::RedirectResponseCode as C;
    use pb::redirect_action::SchemeRewriteSpecifier as S;
    take!(
        ctx,
        m,
        pb::RedirectAction {
            host_redirect,
            port_redirect,
            response_code,
            strip_query,
            scheme_rewrite_specifier,
            path_rewrite_specifier
        }
    );
    let (scheme, https) = match scheme_rewrite_specifier {
        None => (None, false),
        Some(S::HttpsRedirect(on)) => (None, on),
        Some(S::SchemeRedirect(s)) => (text(s), false),
    };
    let port = ctx.port("port_redirect", port_redirect)?;
    Ok(Redirect {
        scheme,
        https,
        host: text(host_redirect),
        port: (port != 0).then_some(port),
        path: match path_rewrite_specifier {
            None => RedirectPath::Keep,
            Some(P::PathRedirect(p)) if p.is_empty() => RedirectPath::Keep,
            Some(P::PathRedirect(p)) => RedirectPath::Replace(p.into()),
            Some(P::PrefixRewrite(p)) => RedirectPath::Prefix(p.into()),
            Some(P::RegexRewrite(r)) => {
                RedirectPath::Regex(matcher::rewrite(&ctx.field("regex_rewrite"), r)?)
            }
            Some(P::PathRewrite(p)) => {
                return ctx.bad(
                    "path_rewrite",
                    format!("{p:?} is not served; path_redirect, prefix_rewrite, regex_rewrite are accepted"),
                );
            }
        },
        code: match ctx.enumeration("response_code", response_code)? {
            C::MovedPermanently => 301,
            C::Found => 302,
            C::SeeOther => 303,
            C::TemporaryRedirect => 307,
            C::PermanentRedirect => 308,
        },
        strip_query,
    })
}

pub(super) fn direct_response(
    ctx: &Ctx<'_>,
    m: pb::DirectResponseAction,
    scope: Scope,
) -> Result<DirectResponse> {
    take!(ctx, m, pb::DirectResponseAction { status, body, body_format });
    let Ok(status @ 200..600) = u16::try_from(status) else {
        return ctx.bad("status", format!("{status} is not accepted; 200 to 599 is"));
    };
    let body = match body {
        None => None,
        Some(b) => {
            let ctx = ctx.field("body");
            let (bytes, _) = core::data_source(&ctx, b)?;
            if bytes.len() > scope.max_body {
                return Err(ctx.err(format!(
                    "is {} bytes; maximum is {} (max_direct_response_body_size_bytes)",
                    bytes.len(),
                    scope.max_body
                )));
            }
            Some(bytes)
        }
    };
    let body_format = match body_format {
        None => None,
        Some(f) => {
            let ctx = ctx.field("body_format");
            let f = format::substitution(&ctx, f)?;
            match (f.format, f.content_type) {
                (LogFormat::Text(t), None) => Some(t),
                _ => return Err(ctx.err("only a text_format without content_type is served")),
            }
        }
    };
    Ok(DirectResponse { status, body, body_format })
}
