//! Route configurations, virtual hosts, routes and their matches. Source: envoy/config/route/v3.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3 as uri_match;

use super::{
    Ctx, Env, Result, Root, any, core, flag, http_filter, matcher, retry, route_action, take, text, uint,
};
use crate::config::route::{
    Action, Decorator, DomainTable, PathMatch, RequireTls, Route, RouteConfig, RouteMatch, VirtualHost,
};

/// A route configuration from RDS.
///
/// # Errors
/// What is not served or not valid.
pub fn route_config(env: &Env, m: pb::RouteConfiguration) -> Result<RouteConfig> {
    let root = Root::new("route configuration", &m.name, env);
    inline(&root.ctx(), m, false)
}

/// What a route configuration tells its routes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope {
    /// `max_direct_response_body_size_bytes`.
    pub(super) max_body: usize,
    /// The virtual host's `hedge_policy.hedge_on_per_try_timeout`.
    pub(super) hedge: bool,
}

/// A route configuration; `validate_clusters` by default where it stands in the connection manager itself.
pub fn inline(ctx: &Ctx<'_>, m: pb::RouteConfiguration, validate: bool) -> Result<RouteConfig> {
    take!(ctx, m, pb::RouteConfiguration {
        name, virtual_hosts, internal_only_headers, response_headers_to_add, response_headers_to_remove, request_headers_to_add,
        request_headers_to_remove, most_specific_header_mutations_wins, validate_clusters, max_direct_response_body_size_bytes,
        request_mirror_policies, ignore_port_in_host_matching, ignore_path_parameters_in_path_matching, typed_per_filter_config;
        refuse vhds = "virtual_hosts in the route configuration are accepted",
            cluster_specifier_plugins = "cluster, cluster_header and weighted_clusters are accepted",
            vhost_header = "the host header chooses the virtual host",
            route_specifiers = "none is accepted";
        harmless metadata = "of a route configuration, which no served format prints"
    });
    let scope =
        Scope { max_body: uint(max_direct_response_body_size_bytes).unwrap_or(4096) as usize, hedge: false };
    let domain_lists: Vec<Vec<String>> = virtual_hosts.iter().map(|v| v.domains.clone()).collect();
    let virtual_hosts =
        ctx.each("virtual_hosts", virtual_hosts, |c, v| virtual_host(c, v, scope).map(Arc::new))?;
    let domains = domain_table(ctx, &domain_lists)?;
    Ok(RouteConfig {
        name: name.into(),
        virtual_hosts,
        domains,
        mutations: core::mutations(
            ctx,
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
        )?,
        most_specific_wins: most_specific_header_mutations_wins,
        internal_only_headers: ctx
            .each("internal_only_headers", internal_only_headers, |c, n| c.header_name("", &n))?,
        ignore_port: ignore_port_in_host_matching,
        ignore_path_parameters: ignore_path_parameters_in_path_matching,
        validate_clusters: flag(validate_clusters, validate),
        mirrors: ctx.each("request_mirror_policies", request_mirror_policies, route_action::mirror)?,
        overrides: http_filter::overrides(ctx, typed_per_filter_config)?,
    })
}

/// The lookup table. A domain may stand once in a whole route configuration.
fn domain_table(ctx: &Ctx<'_>, lists: &[Vec<String>]) -> Result<DomainTable> {
    let mut table = DomainTable::default();
    let mut suffix: HashMap<usize, HashMap<Box<str>, usize>> = HashMap::new();
    let mut prefix: HashMap<usize, HashMap<Box<str>, usize>> = HashMap::new();
    for (i, domains) in lists.iter().enumerate() {
        let host = ctx.index("virtual_hosts", i);
        if domains.is_empty() {
            return host.bad("domains", "at least one domain is required");
        }
        for (j, domain) in domains.iter().enumerate() {
            let place = host.index("domains", j);
            let lower = domain.to_ascii_lowercase();
            if lower.is_empty() {
                return Err(place.err("must not be empty"));
            }
            if lower == "*" {
                if table.any.replace(i).is_some() {
                    return Err(place.err("only a single wildcard domain '*' is permitted"));
                }
                continue;
            }
            let (map, key) = if let Some(rest) = lower.strip_prefix('*') {
                (suffix.entry(rest.len()).or_default(), rest)
            } else if let Some(rest) = lower.strip_suffix('*') {
                (prefix.entry(rest.len()).or_default(), rest)
            } else {
                (&mut table.exact, lower.as_str())
            };
            match map.entry(key.into()) {
                Entry::Vacant(v) => {
                    v.insert(i);
                }
                Entry::Occupied(_) => {
                    return Err(place.err(format!(
                        "duplicate entry of domain {domain}; only unique values for domains are permitted"
                    )));
                }
            }
        }
    }
    let sorted = |map: HashMap<usize, HashMap<Box<str>, usize>>| {
        let mut list: Vec<_> = map.into_iter().collect();
        list.sort_by_key(|(len, _)| std::cmp::Reverse(*len));
        list
    };
    table.suffix = sorted(suffix);
    table.prefix = sorted(prefix);
    Ok(table)
}

fn virtual_host(ctx: &Ctx<'_>, m: pb::VirtualHost, scope: Scope) -> Result<VirtualHost> {
    use pb::virtual_host::TlsRequirementType as T;
    take!(ctx, m, pb::VirtualHost {
        name, routes, require_tls, request_headers_to_add, request_headers_to_remove, response_headers_to_add,
        response_headers_to_remove, typed_per_filter_config, include_request_attempt_count, include_attempt_count_in_response,
        retry_policy, hedge_policy, include_is_timeout_retry_header, per_request_buffer_limit_bytes, request_body_buffer_limit,
        request_mirror_policies, metadata;
        refuse matcher = "routes is accepted",
            virtual_clusters = "none is accepted",
            cors = "typed_per_filter_config for envoy.filters.http.cors is accepted",
            retry_policy_typed_config = "retry_policy is accepted",
            route_specifiers = "none is accepted";
        harmless rate_limits = "read by the rate limit filter, which is refused where it stands",
            domains = "read by `domain_table`"
    });
    if name.is_empty() {
        return ctx.bad("name", "is required");
    }
    let scope = Scope {
        hedge: hedge_policy
            .map(|h| route_action::hedge(&ctx.field("hedge_policy"), h))
            .transpose()?
            .unwrap_or(false),
        ..scope
    };
    Ok(VirtualHost {
        name: name.into(),
        routes: ctx.each("routes", routes, |c, r| route(c, r, scope).map(Arc::new))?,
        require_tls: match ctx.enumeration("require_tls", require_tls)? {
            T::None => RequireTls::None,
            T::ExternalOnly => RequireTls::ExternalOnly,
            T::All => RequireTls::All,
        },
        mutations: core::mutations(
            ctx,
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
        )?,
        attempt_count_in_request: include_request_attempt_count,
        attempt_count_in_response: include_attempt_count_in_response,
        is_timeout_retry_header: include_is_timeout_retry_header,
        retry: retry_policy
            .map(|r| retry::retry_policy(&ctx.field("retry_policy"), r).map(Arc::new))
            .transpose()?,
        mirrors: ctx.each("request_mirror_policies", request_mirror_policies, route_action::mirror)?,
        overrides: http_filter::overrides(ctx, typed_per_filter_config)?,
        retry_buffer_limit: request_body_buffer_limit
            .map(|v| v.value)
            .or(uint(per_request_buffer_limit_bytes).map(u64::from)),
        metadata: core::metadata(&ctx.field("metadata"), metadata)?,
    })
}

fn route(ctx: &Ctx<'_>, m: pb::Route, scope: Scope) -> Result<Route> {
    use pb::route::Action as A;
    take!(ctx, m, pb::Route {
        name, r#match, metadata, decorator, typed_per_filter_config, request_headers_to_add, request_headers_to_remove,
        response_headers_to_add, response_headers_to_remove, tracing, per_request_buffer_limit_bytes, stat_prefix,
        request_body_buffer_limit, action;
        refuse route_specifiers = "none is accepted"
    });
    let matcher = route_match(&ctx.field("match"), ctx.required("match", r#match)?)?;
    let action = match ctx.required("action", action)? {
        A::Route(r) => Action::Forward(Box::new(route_action::forward(&ctx.field("route"), r, scope)?)),
        A::Redirect(r) => Action::Redirect(Box::new(route_action::redirect(&ctx.field("redirect"), r)?)),
        A::DirectResponse(d) => {
            Action::Direct(Box::new(route_action::direct_response(&ctx.field("direct_response"), d, scope)?))
        }
        A::FilterAction(_) => {
            return ctx.bad(
                "filter_action",
                "is not served; route, redirect, direct_response, non_forwarding_action are accepted",
            );
        }
        A::NonForwardingAction(pb::NonForwardingAction {}) => Action::NonForwarding,
    };
    let decorator = match decorator {
        None => None,
        Some(d) => {
            let ctx = ctx.field("decorator");
            take!(ctx, d, pb::Decorator { operation, propagate });
            if operation.is_empty() {
                return ctx.bad("operation", "is required");
            }
            Some(Decorator { operation: operation.into(), propagate: flag(propagate, true) })
        }
    };
    let tracing = match tracing {
        None => None,
        Some(t) => {
            let ctx = ctx.field("tracing");
            take!(ctx, t, pb::Tracing {
                client_sampling, random_sampling, overall_sampling;
                refuse custom_tags = "the connection manager's custom_tags are accepted",
                    operation = "decorator is accepted", upstream_operation = "decorator is accepted"
            });
            let share = |field: &str, v| match v {
                None => Ok(crate::config::matcher::Fraction::ALL),
                Some(f) => core::fractional(&ctx.field(field), f),
            };
            Some([
                share("client_sampling", client_sampling)?,
                share("random_sampling", random_sampling)?,
                share("overall_sampling", overall_sampling)?,
            ])
        }
    };
    Ok(Route {
        name: name.into(),
        matcher,
        action,
        mutations: core::mutations(
            ctx,
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
        )?,
        decorator,
        metadata: core::metadata(&ctx.field("metadata"), metadata)?,
        overrides: http_filter::overrides(ctx, typed_per_filter_config)?,
        tracing,
        retry_buffer_limit: request_body_buffer_limit
            .map(|v| v.value)
            .or(uint(per_request_buffer_limit_bytes).map(u64::from)),
        stat_prefix: text(stat_prefix),
    })
}

fn route_match(ctx: &Ctx<'_>, m: pb::RouteMatch) -> Result<RouteMatch> {
    use pb::route_match::PathSpecifier as P;
    take!(ctx, m, pb::RouteMatch {
        case_sensitive, runtime_fraction, headers, query_parameters, cookies, grpc, tls_context, path_specifier;
        refuse dynamic_metadata = "none is accepted", filter_state = "none is accepted"
    });
    let case_sensitive = flag(case_sensitive, true);
    let fold =
        |s: String| -> Arc<str> { if case_sensitive { s.into() } else { s.to_ascii_lowercase().into() } };
    let path = match ctx.required("path_specifier", path_specifier)? {
        P::Prefix(p) => PathMatch::Prefix(fold(p)),
        P::Path(p) => PathMatch::Exact(fold(p)),
        P::SafeRegex(r) => PathMatch::Regex(matcher::regex_full(&ctx.field("safe_regex"), r)?),
        P::ConnectMatcher(pb::route_match::ConnectMatcher {}) => PathMatch::Connect,
        P::PathSeparatedPrefix(p) => {
            if !p.starts_with('/') || p.ends_with('/') || p.contains(['?', '#']) {
                return ctx.bad(
                    "path_separated_prefix",
                    format!("{p:?} must begin with /, must not end with /, and has no ? or #"),
                );
            }
            PathMatch::SeparatedPrefix(fold(p))
        }
        P::PathMatchPolicy(t) => {
            let ctx = ctx.field("path_match_policy");
            let (_, extension) = any::typed(&ctx, t)?;
            if extension.message != "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig" {
                return extension.unknown(
                    &ctx,
                    "path match policy",
                    "envoy.path.match.uri_template.uri_template_matcher",
                );
            }
            take!(ctx, extension.decode(&ctx)?, uri_match::UriTemplateMatchConfig { path_template });
            PathMatch::UriTemplate(Arc::new(uri_template(&ctx.field("path_template"), &path_template)?))
        }
    };
    let (tls_presented, tls_validated) = match tls_context {
        None => (None, None),
        Some(pb::route_match::TlsContextMatchOptions { presented, validated }) => {
            (presented.map(|v| v.value), validated.map(|v| v.value))
        }
    };
    Ok(RouteMatch {
        path,
        case_sensitive,
        headers: matcher::headers(ctx, "headers", headers)?,
        query: ctx.each("query_parameters", query_parameters, matcher::query)?,
        cookies: ctx.each("cookies", cookies, |c, m| {
            take!(c, m, pb::CookieMatcher { name, string_match, invert_match });
            let m = matcher::string(&c.field("string_match"), c.required("string_match", string_match)?)?;
            Ok((Arc::from(name), m, invert_match))
        })?,
        grpc: grpc.is_some(),
        tls_presented,
        tls_validated,
        fraction: runtime_fraction
            .map(|f| core::runtime_fraction(&ctx.field("runtime_fraction"), f))
            .transpose()?,
    })
}

/// A URI template (`/a/{x}/{y=**}`) as a regex over the whole path, one named group a variable.
pub fn uri_template(ctx: &Ctx<'_>, template: &str) -> Result<regex::Regex> {
    fn glob(text: &str, out: &mut String) -> bool {
        for (i, segment) in text.split('/').enumerate() {
            if i > 0 {
                out.push('/');
            }
            match segment {
                "*" => out.push_str("[^/]+"),
                "**" => out.push_str(".*"),
                literal if literal.contains(['*', '{', '}']) => return false,
                literal => out.push_str(&regex::escape(literal)),
            }
        }
        true
    }
    let wrong = |why: &str| Err(ctx.err(format!("{template:?}: {why}")));
    if !template.starts_with('/') {
        return wrong("must begin with /");
    }
    let mut out = String::from("^");
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        if !glob(&rest[..open], &mut out) {
            return wrong("a wildcard must be a whole segment");
        }
        let Some(close) = rest[open..].find('}') else { return wrong("a { is not closed") };
        let inner = &rest[open + 1..open + close];
        let (name, pattern) = inner.split_once('=').unwrap_or((inner, "*"));
        let valid = name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !valid {
            return wrong("a variable's name is a letter followed by letters, digits and _");
        }
        out.push_str(&format!("(?P<{name}>"));
        if !glob(pattern, &mut out) {
            return wrong("a wildcard must be a whole segment");
        }
        out.push(')');
        rest = &rest[open + close + 1..];
    }
    if !glob(rest, &mut out) {
        return wrong("a wildcard must be a whole segment");
    }
    out.push('$');
    regex::Regex::new(&out)
        .map_err(|_| ctx.err(format!("{template:?}: is not a URI template with distinct variables")))
}
