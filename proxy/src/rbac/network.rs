//! `envoy.filters.network.rbac`: a connection that the rules deny is closed.

use std::sync::Arc;

use super::{RbacStats, ShadowStats, engine, record};
use crate::config::filter::{Rbac, RbacAction};
use crate::stream_info::StreamInfo;
use crate::telemetry::stats::Stats;

/// The filter.
#[derive(Debug)]
pub struct NetworkRbac {
    config: Arc<Rbac>,
    stats: RbacStats,
    shadow: ShadowStats,
}

const NAMESPACE: &str = "envoy.filters.network.rbac";

impl NetworkRbac {
    /// The filter of a chain.
    pub fn new(config: &Arc<Rbac>, stats: &Stats) -> NetworkRbac {
        let prefix = format!("{}rbac.", config.stat_prefix);
        NetworkRbac {
            config: config.clone(),
            stats: RbacStats::new(stats, &format!("{prefix}{}", config.rules_stat_prefix)),
            shadow: ShadowStats::new(stats, &format!("{prefix}{}", config.shadow_stat_prefix)),
        }
    }

    /// Whether the connection may go on. A denial is written into `info` as its termination details.
    pub fn allows(&self, info: &mut StreamInfo) -> bool {
        if let Some(rules) = &self.config.shadow {
            let d = engine::decide(rules, None, info);
            if d.allowed {
                self.shadow.shadow_allowed.inc();
            } else {
                self.shadow.shadow_denied.inc();
            }
            record(info, NAMESPACE, &self.config.shadow_stat_prefix, d.allowed, d.policy, true);
        }
        let Some(rules) = &self.config.rules else { return true };
        let d = engine::decide(rules, None, info);
        if rules.action == RbacAction::Log {
            if d.policy.is_some() {
                self.stats.logged.inc();
            } else {
                self.stats.not_logged.inc();
            }
            return true;
        }
        record(info, NAMESPACE, &self.config.rules_stat_prefix, d.allowed, d.policy, false);
        if d.allowed {
            self.stats.allowed.inc();
            return true;
        }
        self.stats.denied.inc();
        let policy: String =
            d.policy.unwrap_or("none").chars().map(|c| if c.is_whitespace() { '_' } else { c }).collect();
        info.termination_details = Some(format!("rbac_access_denied_matched_policy[{policy}]").into());
        false
    }
}
