//! A host of a cluster: what discovery says of it, and the state that outlives discovery updates: health flags, counters,
//! outlier monitor. Follows `Upstream::Host` of Envoy.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use tokio::time::Instant;

use super::outlier::Monitor;
use crate::config::address::Address;
use crate::config::cluster::{EdsHealth, Endpoint, LocalityEndpoints};
use crate::config::route::Metadata;

/// Region, zone, sub-zone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Locality {
    pub region: Arc<str>,
    pub zone: Arc<str>,
    pub sub_zone: Arc<str>,
}

impl Locality {
    /// That of a group of endpoints.
    pub fn of(group: &LocalityEndpoints) -> Locality {
        Locality { region: group.region.clone(), zone: group.zone.clone(), sub_zone: group.sub_zone.clone() }
    }
}

/// A host as one discovery update describes it. Immutable: an update makes a new one around the same state.
#[derive(Debug)]
pub struct Host {
    /// Where to connect: an IP address or a pipe, never a name.
    pub address: Address,
    /// The endpoint's `hostname`, or the DNS name that it was resolved from; empty otherwise.
    pub hostname: Arc<str>,
    pub weight: u32,
    pub metadata: Metadata,
    /// `envoy.lb` `canary: true` in the metadata.
    pub canary: bool,
    pub locality: Arc<Locality>,
    pub priority: u32,
    /// Where active health checks go, if not to `address`.
    pub health_check: Option<Address>,
    pub health_check_hostname: Option<Arc<str>>,
    pub disable_active_health_check: bool,
    pub state: Arc<HostState>,
}

/// What stays with an address while discovery updates come and go. Shared by all workers.
#[derive(Debug)]
pub struct HostState {
    flags: AtomicU32,
    pub stats: HostStats,
    pub monitor: Monitor,
    /// Since when the host takes traffic, for slow start.
    pub since: Instant,
}

macro_rules! health_flags {
    ($($konst:ident = $bit:literal, $text:literal;)+) => {
        impl HealthFlags {
            $(#[doc = concat!("`", $text, "`")] pub const $konst: HealthFlags = HealthFlags(1 << $bit);)+
            const TEXTS: &'static [(HealthFlags, &'static str)] = &[$((HealthFlags::$konst, $text)),+];
        }
    };
}

/// Envoy's health flags as a bit set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HealthFlags(pub u32);

health_flags! {
    FAILED_ACTIVE_HC = 0, "/failed_active_hc";
    FAILED_OUTLIER_CHECK = 1, "/failed_outlier_check";
    FAILED_EDS_HEALTH = 2, "/failed_eds_health";
    DEGRADED_ACTIVE_HC = 3, "/degraded_active_hc";
    DEGRADED_EDS_HEALTH = 4, "/degraded_eds_health";
    PENDING_DYNAMIC_REMOVAL = 5, "/pending_dynamic_removal";
    PENDING_ACTIVE_HC = 6, "/pending_active_hc";
    EXCLUDED_VIA_IMMEDIATE_HC_FAIL = 7, "/excluded_via_immediate_hc_fail";
    ACTIVE_HC_TIMEOUT = 8, "/active_hc_timeout";
    EDS_STATUS_DRAINING = 9, "/eds_status_draining";
}

/// What the balancer makes of the flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    Healthy,
    Degraded,
    Unhealthy,
}

impl HealthFlags {
    const UNHEALTHY: u32 = HealthFlags::FAILED_ACTIVE_HC.0
        | HealthFlags::FAILED_OUTLIER_CHECK.0
        | HealthFlags::FAILED_EDS_HEALTH.0
        | HealthFlags::EDS_STATUS_DRAINING.0;
    const DEGRADED: u32 = HealthFlags::DEGRADED_ACTIVE_HC.0 | HealthFlags::DEGRADED_EDS_HEALTH.0;
    const EDS: u32 = HealthFlags::FAILED_EDS_HEALTH.0
        | HealthFlags::DEGRADED_EDS_HEALTH.0
        | HealthFlags::EDS_STATUS_DRAINING.0;

    /// Whether any bit of `other` is set.
    pub fn has(self, other: HealthFlags) -> bool {
        self.0 & other.0 != 0
    }

    /// `Host::coarseHealth`.
    pub fn health(self) -> Health {
        if self.0 & HealthFlags::UNHEALTHY != 0 {
            Health::Unhealthy
        } else if self.0 & HealthFlags::DEGRADED != 0 {
            Health::Degraded
        } else {
            Health::Healthy
        }
    }

    /// As `/clusters` prints it: `healthy`, or the flags' names one after the other.
    pub fn text(self) -> String {
        if self.0 == 0 {
            return "healthy".to_owned();
        }
        HealthFlags::TEXTS.iter().filter(|(f, _)| self.has(*f)).map(|(_, t)| *t).collect()
    }

    fn from_eds(health: EdsHealth) -> HealthFlags {
        match health {
            EdsHealth::Unknown | EdsHealth::Healthy => HealthFlags::default(),
            EdsHealth::Unhealthy | EdsHealth::Timeout => HealthFlags::FAILED_EDS_HEALTH,
            EdsHealth::Draining => HealthFlags::EDS_STATUS_DRAINING,
            EdsHealth::Degraded => HealthFlags::DEGRADED_EDS_HEALTH,
        }
    }
}

/// A counter or gauge of a host: one atomic, all workers.
#[derive(Debug, Default)]
pub struct Tally(AtomicU64);

impl Tally {
    /// Adds one.
    pub fn inc(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// Takes one away.
    pub fn dec(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// `ALL_HOST_STATS`, as `/clusters` prints them.
#[derive(Debug, Default)]
pub struct HostStats {
    pub cx_active: Tally,
    pub cx_connect_fail: Tally,
    pub cx_total: Tally,
    pub rq_active: Tally,
    pub rq_error: Tally,
    pub rq_pending_active: Tally,
    pub rq_success: Tally,
    pub rq_timeout: Tally,
    pub rq_total: Tally,
}

impl HostState {
    /// The state of a host first seen now.
    pub fn new(now: Instant) -> Arc<HostState> {
        Arc::new(HostState {
            flags: AtomicU32::new(0),
            stats: HostStats::default(),
            monitor: Monitor::default(),
            since: now,
        })
    }

    /// The flags now.
    pub fn flags(&self) -> HealthFlags {
        HealthFlags(self.flags.load(Relaxed))
    }

    /// Sets flags. Returns whether any was not set before.
    pub fn set(&self, f: HealthFlags) -> bool {
        self.flags.fetch_or(f.0, Relaxed) & f.0 != f.0
    }

    /// Clears flags. Returns whether any was set before.
    pub fn clear(&self, f: HealthFlags) -> bool {
        self.flags.fetch_and(!f.0, Relaxed) & f.0 != 0
    }
}

impl Host {
    /// A host from an endpoint of discovery, at `address` (the endpoint's own, or one that its name resolved to).
    pub fn new(
        endpoint: &Endpoint,
        group: &LocalityEndpoints,
        locality: Arc<Locality>,
        address: Address,
        state: Arc<HostState>,
    ) -> Host {
        let hostname = match (&endpoint.hostname, &endpoint.address) {
            (Some(h), _) if !h.is_empty() => h.clone(),
            (_, Address::Name(n, _)) => n.clone(),
            _ => Arc::default(),
        };
        let lb = endpoint.metadata.as_ref().and_then(|m| m.get("envoy.lb"));
        let canary = lb.and_then(|m| m.get("canary")).and_then(serde_json::Value::as_bool).unwrap_or(false);
        state.flags.fetch_and(!HealthFlags::EDS, Relaxed);
        state.set(HealthFlags::from_eds(endpoint.health));
        let health_check = endpoint.health_check_address.clone().or_else(|| {
            let port = endpoint.health_check_port.filter(|p| *p != 0)?;
            Some(Address::Socket(SocketAddr::new(address.socket()?.ip(), port)))
        });
        Host {
            address,
            hostname,
            weight: endpoint.weight.max(1),
            metadata: endpoint.metadata.clone(),
            canary,
            locality,
            priority: group.priority,
            health_check,
            health_check_hostname: endpoint.health_check_hostname.clone(),
            disable_active_health_check: endpoint.disable_active_health_check,
            state,
        }
    }

    /// A host that no discovery knows: the original destination of a connection.
    pub fn bare(address: Address, now: Instant) -> Host {
        Host {
            address,
            hostname: Arc::default(),
            weight: 1,
            metadata: None,
            canary: false,
            locality: Arc::default(),
            priority: 0,
            health_check: None,
            health_check_hostname: None,
            disable_active_health_check: false,
            state: HostState::new(now),
        }
    }

    /// The IP address and port, where it is one.
    pub fn socket(&self) -> Option<SocketAddr> {
        self.address.socket()
    }

    /// Health as the balancer sees it.
    pub fn health(&self) -> Health {
        self.state.flags().health()
    }

    /// Whether both are one host, maybe before and after an update.
    pub fn same(&self, other: &Host) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_read_as_in_clusters() {
        let state = HostState::new(Instant::now());
        assert_eq!(state.flags().text(), "healthy");
        assert!(state.set(HealthFlags::FAILED_OUTLIER_CHECK));
        assert!(!state.set(HealthFlags::FAILED_OUTLIER_CHECK));
        assert!(state.set(HealthFlags::FAILED_EDS_HEALTH));
        assert_eq!(state.flags().text(), "/failed_outlier_check/failed_eds_health");
        assert_eq!(state.flags().health(), Health::Unhealthy);
        state.clear(HealthFlags(u32::MAX));
        state.set(HealthFlags::DEGRADED_EDS_HEALTH);
        assert_eq!(state.flags().health(), Health::Degraded);
    }
}
