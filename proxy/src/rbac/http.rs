//! `envoy.filters.http.rbac`: 403 `RBAC: access denied` unless the rules allow.

use std::sync::Arc;

use super::{RbacStats, ShadowStats, engine, record};
use crate::config::filter::{FilterOverride, Rbac, RbacAction};
use crate::head::Head;
use crate::http::filters::{Ctx, Flow};
use crate::http::local_reply::LocalReply;
use crate::telemetry::stats::Stats;

/// The filter.
#[derive(Debug)]
pub struct HttpRbac {
    config: Arc<Rbac>,
    stats: RbacStats,
    shadow: ShadowStats,
}

const NAMESPACE: &str = "envoy.filters.http.rbac";

impl HttpRbac {
    /// The filter of a connection manager.
    pub fn new(config: &Arc<Rbac>, stat_prefix: &str, stats: &Stats) -> HttpRbac {
        let prefix = format!("http.{stat_prefix}.rbac.");
        HttpRbac {
            config: config.clone(),
            stats: RbacStats::new(stats, &format!("{prefix}{}", config.rules_stat_prefix)),
            shadow: ShadowStats::new(stats, &format!("{prefix}{}", config.shadow_stat_prefix)),
        }
    }

    /// The request hook.
    pub fn request_head(&self, name: &str, head: &Head, ctx: &mut Ctx<'_>) -> Flow {
        let config = match ctx.override_for(name) {
            Some(FilterOverride::Rbac(None)) => return Flow::Continue,
            Some(FilterOverride::Rbac(Some(c))) => c.clone(),
            _ => self.config.clone(),
        };
        if let Some(rules) = &config.shadow {
            let d = engine::decide(rules, Some(head), ctx.info);
            if d.allowed {
                self.shadow.shadow_allowed.inc();
            } else {
                self.shadow.shadow_denied.inc();
            }
            record(ctx.info, NAMESPACE, &config.shadow_stat_prefix, d.allowed, d.policy, true);
        }
        let Some(rules) = &config.rules else { return Flow::Continue };
        let d = engine::decide(rules, Some(head), ctx.info);
        if rules.action == RbacAction::Log {
            if d.policy.is_some() {
                self.stats.logged.inc();
            } else {
                self.stats.not_logged.inc();
            }
            let metadata = ctx.info.metadata.get_or_insert_default();
            metadata
                .insert("envoy.common".into(), serde_json::json!({ "access_log_hint": d.policy.is_some() }));
            return Flow::Continue;
        }
        record(ctx.info, NAMESPACE, &config.rules_stat_prefix, d.allowed, d.policy, false);
        if d.allowed {
            self.stats.allowed.inc();
            return Flow::Continue;
        }
        self.stats.denied.inc();
        // Details carry the policy's name, spaces as underscores (Envoy's `rbac_access_denied_matched_policy[…]`).
        let policy: String =
            d.policy.unwrap_or("none").chars().map(|c| if c.is_whitespace() { '_' } else { c }).collect();
        let details = format!("rbac_access_denied_matched_policy[{policy}]");
        Flow::Local(Box::new(LocalReply::new(403, "RBAC: access denied", details)))
    }
}
