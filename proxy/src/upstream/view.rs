//! What the admin's `/clusters` shows, in Envoy's order and words. A cluster that never carried traffic is shown from its
//! configuration.

use std::fmt::Write;
use std::sync::Arc;

use tokio::time::Instant;

use super::breaker::Priority;
use super::host::{HealthFlags, Host, HostState, Locality};
use super::manager::ClusterManager;
use super::shared::SharedCluster;
use crate::config::address::Address;
use crate::config::cluster::{Breaker, Cluster, Discovery, Endpoints};
use crate::config::snapshot::Snapshot;

/// One cluster.
#[derive(Clone, Debug)]
pub struct ClusterView {
    pub name: Arc<str>,
    /// `alt_stat_name` or the name.
    pub observability_name: Arc<str>,
    pub eds_service_name: Option<Arc<str>>,
    pub added_via_api: bool,
    /// DEFAULT, HIGH.
    pub breakers: [Breaker; 2],
    pub outlier: Option<OutlierView>,
    pub hosts: Vec<HostView>,
}

/// Success rate average and ejection threshold, percent; -1: unknown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutlierView {
    pub external: (f64, f64),
    pub local_origin: (f64, f64),
}

/// One host.
#[derive(Clone, Debug)]
pub struct HostView {
    pub address: Address,
    pub hostname: Arc<str>,
    /// Name and value, in the order of `/clusters`; `_active` ones are gauges.
    pub stats: [(&'static str, u64); 9],
    pub flags: HealthFlags,
    pub weight: u32,
    pub locality: Arc<Locality>,
    pub canary: bool,
    pub priority: u32,
    /// Percent; -1: unknown.
    pub success_rate: f64,
    pub local_origin_success_rate: f64,
}

impl HostView {
    fn of(h: &Host) -> HostView {
        let s = &h.state.stats;
        let (success_rate, local_origin_success_rate) = h.state.monitor.success_rates();
        HostView {
            address: h.address.clone(),
            hostname: h.hostname.clone(),
            stats: [
                ("cx_active", s.cx_active.get()),
                ("cx_connect_fail", s.cx_connect_fail.get()),
                ("cx_total", s.cx_total.get()),
                ("rq_active", s.rq_active.get()),
                ("rq_error", s.rq_error.get()),
                ("rq_pending_active", s.rq_pending_active.get()),
                ("rq_success", s.rq_success.get()),
                ("rq_timeout", s.rq_timeout.get()),
                ("rq_total", s.rq_total.get()),
            ],
            flags: h.state.flags(),
            weight: h.weight,
            locality: h.locality.clone(),
            canary: h.canary,
            priority: h.priority,
            success_rate,
            local_origin_success_rate,
        }
    }
}

impl ClusterView {
    fn of(info: &Cluster, snapshot: &Snapshot, built: Option<&SharedCluster>) -> ClusterView {
        let hosts = match (built, &info.discovery) {
            (Some(s), _) => s.all_hosts().iter().map(|h| HostView::of(h)).collect(),
            (None, Discovery::Static(e) | Discovery::StrictDns(e) | Discovery::LogicalDns(e)) => from_ir(e),
            (None, Discovery::Eds { service_name }) => {
                snapshot.endpoints.get(service_name).map(|e| from_ir(e)).unwrap_or_default()
            }
            (None, Discovery::OriginalDst { .. } | Discovery::Aggregate(_)) => Vec::new(),
        };
        let outlier = info.outlier.as_ref().map(|_| {
            let known = built.and_then(SharedCluster::outlier_averages);
            let [external, local_origin] = known.unwrap_or([(-1.0, -1.0); 2]);
            OutlierView { external, local_origin }
        });
        let eds_service_name = match &info.discovery {
            Discovery::Eds { service_name } if *service_name != info.name => Some(service_name.clone()),
            _ => None,
        };
        ClusterView {
            name: info.name.clone(),
            observability_name: info.stat_name.clone(),
            eds_service_name,
            added_via_api: !info.is_static,
            breakers: info.breakers.clone(),
            outlier,
            hosts,
        }
    }

    /// The cluster's lines of `/clusters` in text form.
    pub fn write_text(&self, out: &mut String) {
        let name = &self.name;
        // Writing to a string does not fail.
        let mut line = |rest: std::fmt::Arguments<'_>| {
            let _ = writeln!(out, "{name}::{rest}");
        };
        line(format_args!("observability_name::{}", self.observability_name));
        if let Some(o) = &self.outlier {
            line(format_args!("outlier::success_rate_average::{}", o.external.0));
            line(format_args!("outlier::success_rate_ejection_threshold::{}", o.external.1));
            line(format_args!("outlier::local_origin_success_rate_average::{}", o.local_origin.0));
            line(format_args!("outlier::local_origin_success_rate_ejection_threshold::{}", o.local_origin.1));
        }
        for p in Priority::ALL {
            let (b, p_name) = (&self.breakers[p as usize], p.as_str());
            line(format_args!("{p_name}_priority::max_connections::{}", b.max_connections));
            line(format_args!("{p_name}_priority::max_pending_requests::{}", b.max_pending));
            line(format_args!("{p_name}_priority::max_requests::{}", b.max_requests));
            line(format_args!("{p_name}_priority::max_retries::{}", b.max_retries));
        }
        line(format_args!("added_via_api::{}", self.added_via_api));
        if let Some(eds) = &self.eds_service_name {
            line(format_args!("eds_service_name::{eds}"));
        }
        for h in &self.hosts {
            let a = &h.address;
            for (stat, value) in h.stats {
                line(format_args!("{a}::{stat}::{value}"));
            }
            line(format_args!("{a}::hostname::{}", h.hostname));
            line(format_args!("{a}::health_flags::{}", h.flags.text()));
            line(format_args!("{a}::weight::{}", h.weight));
            line(format_args!("{a}::region::{}", h.locality.region));
            line(format_args!("{a}::zone::{}", h.locality.zone));
            line(format_args!("{a}::sub_zone::{}", h.locality.sub_zone));
            line(format_args!("{a}::canary::{}", h.canary));
            line(format_args!("{a}::priority::{}", h.priority));
            line(format_args!("{a}::success_rate::{}", h.success_rate));
            line(format_args!("{a}::local_origin_success_rate::{}", h.local_origin_success_rate));
        }
    }
}

impl ClusterManager {
    /// Every cluster of the snapshot, by name.
    pub fn view(&self) -> Vec<ClusterView> {
        let snapshot = self.snapshot();
        let mut all: Vec<&Arc<Cluster>> = snapshot.clusters.values().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all.into_iter().map(|c| ClusterView::of(c, &snapshot, self.built(&c.name).as_deref())).collect()
    }
}

/// Hosts as they would be if the cluster were built now.
fn from_ir(endpoints: &Endpoints) -> Vec<HostView> {
    let now = Instant::now();
    let mut all = Vec::new();
    for group in &endpoints.localities {
        let locality = Arc::new(Locality::of(group));
        for e in group.endpoints.iter().filter(|e| !matches!(e.address, Address::Name(..))) {
            let host = Host::new(e, group, locality.clone(), e.address.clone(), HostState::new(now));
            all.push(HostView::of(&host));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use crate::upstream::LbContext;
    use crate::upstream::testing::{Rig, addresses, cluster, endpoints};

    #[tokio::test]
    async fn a_cluster_reads_the_same_before_and_after_its_first_use() {
        let rig = Rig::new(cluster(endpoints(&[(addresses(1)[0], 3)])));
        let text = || {
            let mut out = String::new();
            rig.local.manager().view().iter().for_each(|c| c.write_text(&mut out));
            out
        };
        let before = text();
        for line in [
            "c::observability_name::c",
            "c::default_priority::max_connections::1024",
            "c::high_priority::max_retries::3",
            "c::added_via_api::false",
            "c::10.0.0.1:80::cx_active::0",
            "c::10.0.0.1:80::hostname::",
            "c::10.0.0.1:80::health_flags::healthy",
            "c::10.0.0.1:80::weight::3",
            "c::10.0.0.1:80::canary::false",
            "c::10.0.0.1:80::success_rate::-1",
        ] {
            assert!(before.lines().any(|l| l == line), "{line} is not in\n{before}");
        }
        rig.local.get("c").unwrap().pick(&LbContext::default()).unwrap();
        assert_eq!(text(), before);
    }
}
