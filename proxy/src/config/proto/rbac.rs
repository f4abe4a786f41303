//! Role-based access control, HTTP and network. Source: envoy/config/rbac/v3, envoy/extensions/filters/{http,network}/rbac/v3.

use std::sync::Arc;

use envoy_types::pb::envoy::config::rbac::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3 as http;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3 as network;
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3 as uri_match;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher_pb;
use envoy_types::pb::envoy::r#type::v3 as ty;

use super::{Ctx, Result, any, core, matcher, route, take};
use crate::config::filter::{
    MetadataMatcher, Permission, Principal, Rbac, RbacAction, RbacPolicy, RbacRules,
};

pub fn http(ctx: &Ctx<'_>, m: http::Rbac) -> Result<Rbac> {
    take!(ctx, m, http::Rbac {
        rules, rules_stat_prefix, shadow_rules, shadow_rules_stat_prefix;
        refuse matcher = "rules is accepted", shadow_matcher = "shadow_rules is accepted", track_per_rule_stats = "stats of the whole filter are kept"
    });
    Ok(Rbac {
        rules: rules.map(|r| self::rules(&ctx.field("rules"), r)).transpose()?,
        shadow: shadow_rules.map(|r| self::rules(&ctx.field("shadow_rules"), r)).transpose()?,
        stat_prefix: "".into(),
        rules_stat_prefix: rules_stat_prefix.into(),
        shadow_stat_prefix: shadow_rules_stat_prefix.into(),
    })
}

pub fn network(ctx: &Ctx<'_>, m: network::Rbac) -> Result<Rbac> {
    take!(ctx, m, network::Rbac {
        rules, shadow_rules, shadow_rules_stat_prefix, stat_prefix;
        refuse enforcement_type = "a connection is judged once, when it comes", delay_deny = "a denied connection is closed at once", matcher = "rules is accepted", shadow_matcher = "shadow_rules is accepted"
    });
    Ok(Rbac {
        rules: rules.map(|r| self::rules(&ctx.field("rules"), r)).transpose()?,
        shadow: shadow_rules.map(|r| self::rules(&ctx.field("shadow_rules"), r)).transpose()?,
        stat_prefix: stat_prefix.into(),
        rules_stat_prefix: "".into(),
        shadow_stat_prefix: shadow_rules_stat_prefix.into(),
    })
}

fn rules(ctx: &Ctx<'_>, m: pb::Rbac) -> Result<RbacRules> {
    take!(ctx, m, pb::Rbac { action, policies; refuse audit_logging_options = "none is accepted" });
    let action = match ctx.enumeration("action", action)? {
        pb::rbac::Action::Allow => RbacAction::Allow,
        pb::rbac::Action::Deny => RbacAction::Deny,
        pb::rbac::Action::Log => RbacAction::Log,
    };
    let mut policies: Vec<_> = policies.into_iter().collect();
    policies.sort_by(|a, b| a.0.cmp(&b.0));
    let policies = policies
        .into_iter()
        .map(|(name, p)| Ok((Arc::from(name.as_str()), policy(&ctx.key("policies", &name), p)?)))
        .collect::<Result<_>>()?;
    Ok(RbacRules { action, policies })
}

fn policy(ctx: &Ctx<'_>, m: pb::Policy) -> Result<RbacPolicy> {
    take!(ctx, m, pb::Policy {
        permissions, principals;
        refuse condition = "permissions and principals are accepted", checked_condition = "permissions and principals are accepted";
        harmless cel_config = "for condition alone"
    });
    if permissions.is_empty() || principals.is_empty() {
        return Err(ctx.err("at least one permission and one principal are required"));
    }
    Ok(RbacPolicy {
        permissions: ctx.each("permissions", permissions, permission)?,
        principals: ctx.each("principals", principals, principal)?,
        condition: None,
    })
}

fn sourced(ctx: &Ctx<'_>, m: pb::SourcedMetadata) -> Result<MetadataMatcher> {
    take!(ctx, m, pb::SourcedMetadata { metadata_matcher, metadata_source });
    if ctx.enumeration::<pb::MetadataSource>("metadata_source", metadata_source)?
        != pb::MetadataSource::Dynamic
    {
        return ctx.bad("metadata_source", "ROUTE is not served; DYNAMIC is accepted");
    }
    matcher::metadata(&ctx.field("metadata_matcher"), ctx.required("metadata_matcher", metadata_matcher)?)
}

fn permission(ctx: &Ctx<'_>, m: pb::Permission) -> Result<Permission> {
    use pb::permission::Rule as R;
    take!(ctx, m, pb::Permission { rule });
    Ok(match ctx.required("rule", rule)? {
        R::AndRules(pb::permission::Set { rules }) => {
            Permission::And(ctx.field("and_rules").each("rules", rules, permission)?)
        }
        R::OrRules(pb::permission::Set { rules }) => {
            Permission::Or(ctx.field("or_rules").each("rules", rules, permission)?)
        }
        R::Any(b) => Permission::Any(b),
        R::Header(h) => Permission::Header(matcher::header(&ctx.field("header"), h)?),
        R::UrlPath(p) => Permission::UrlPath(matcher::path(&ctx.field("url_path"), p)?),
        R::DestinationIp(c) => Permission::DestinationIp(core::cidr(&ctx.field("destination_ip"), c)?),
        R::DestinationPort(p) => Permission::DestinationPort(ctx.port("destination_port", p)?),
        R::DestinationPortRange(ty::Int32Range { start, end }) => {
            match (u32::try_from(start), u32::try_from(end)) {
                (Ok(s), Ok(e)) if s < e && e <= 65_536 => Permission::DestinationPortRange(s, e),
                _ => {
                    return ctx
                        .bad("destination_port_range", format!("[{start}, {end}) is not a range of ports"));
                }
            }
        }
        R::Metadata(m) => Permission::Metadata(matcher::metadata(&ctx.field("metadata"), m)?),
        R::NotRule(r) => Permission::Not(Box::new(permission(&ctx.field("not_rule"), *r)?)),
        R::RequestedServerName(s) => {
            Permission::ServerName(matcher::string(&ctx.field("requested_server_name"), s)?)
        }
        R::SourcedMetadata(s) => Permission::Metadata(sourced(&ctx.field("sourced_metadata"), s)?),
        R::UriTemplate(t) => {
            let ctx = ctx.field("uri_template");
            let (_, extension) = any::typed(&ctx, t)?;
            if extension.message != "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig" {
                return extension.unknown(
                    &ctx,
                    "URI template",
                    "envoy.path.match.uri_template.uri_template_matcher",
                );
            }
            take!(ctx, extension.decode(&ctx)?, uri_match::UriTemplateMatchConfig { path_template });
            Permission::UriTemplate(Arc::new(route::uri_template(
                &ctx.field("path_template"),
                &path_template,
            )?))
        }
        R::Matcher(m) => {
            return ctx
                .bad("matcher", format!("'{}' is not served; the built-in rules are accepted", m.name));
        }
    })
}

fn principal(ctx: &Ctx<'_>, m: pb::Principal) -> Result<Principal> {
    use pb::principal::Identifier as I;
    take!(ctx, m, pb::Principal { identifier });
    Ok(match ctx.required("identifier", identifier)? {
        I::AndIds(pb::principal::Set { ids }) => {
            Principal::And(ctx.field("and_ids").each("ids", ids, principal)?)
        }
        I::OrIds(pb::principal::Set { ids }) => {
            Principal::Or(ctx.field("or_ids").each("ids", ids, principal)?)
        }
        I::Any(b) => Principal::Any(b),
        I::Authenticated(pb::principal::Authenticated { principal_name }) => Principal::Authenticated(
            principal_name
                .map(|p| matcher::string(&ctx.field("authenticated").field("principal_name"), p))
                .transpose()?,
        ),
        I::SourceIp(c) => Principal::SourceIp(core::cidr(&ctx.field("source_ip"), c)?),
        I::DirectRemoteIp(c) => Principal::DirectRemoteIp(core::cidr(&ctx.field("direct_remote_ip"), c)?),
        I::RemoteIp(c) => Principal::RemoteIp(core::cidr(&ctx.field("remote_ip"), c)?),
        I::Header(h) => Principal::Header(matcher::header(&ctx.field("header"), h)?),
        I::UrlPath(p) => Principal::UrlPath(matcher::path(&ctx.field("url_path"), p)?),
        I::Metadata(m) => Principal::Metadata(matcher::metadata(&ctx.field("metadata"), m)?),
        I::FilterState(f) => {
            use matcher_pb::filter_state_matcher::Matcher as M;
            let ctx = ctx.field("filter_state");
            take!(ctx, f, matcher_pb::FilterStateMatcher { key, matcher });
            match ctx.required("string_match", matcher)? {
                M::StringMatch(s) => {
                    Principal::FilterState(key.into(), matcher::string(&ctx.field("string_match"), s)?)
                }
                M::AddressMatch(_) => {
                    return ctx.bad("address_match", "is not served; string_match is accepted");
                }
            }
        }
        I::NotId(p) => Principal::Not(Box::new(principal(&ctx.field("not_id"), *p)?)),
        I::SourcedMetadata(s) => Principal::Metadata(sourced(&ctx.field("sourced_metadata"), s)?),
        I::Custom(c) => {
            return ctx
                .bad("custom", format!("'{}' is not served; the built-in identifiers are accepted", c.name));
        }
    })
}
