//! STRICT_DNS and LOGICAL_DNS: names resolved on the control runtime, again and again. Follows Envoy's "Service discovery"
//! and "DNS resolution" pages. `localhost` and other names of the hosts file are answered from it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;

use super::shared::SharedCluster;
use crate::config::address::Address;
use crate::config::cluster::{Discovery, DnsFamily, Endpoints};

/// One resolver per set of servers and family, made on first use.
#[derive(Default)]
pub struct Resolvers(Mutex<Vec<(ResolverKey, TokioResolver)>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct ResolverKey {
    servers: Vec<SocketAddr>,
    family: DnsFamily,
}

/// Why a name did not resolve.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// No usable resolver configuration.
    #[error("no DNS resolver: {0}")]
    Resolver(String),
    /// The servers' answer, or the lack of one.
    #[error("{0}")]
    Lookup(String),
    /// The name does not exist or has no address: an answer, not a failure.
    #[error("no such name")]
    Empty,
}

impl Resolvers {
    fn resolver(&self, key: &ResolverKey) -> Result<TokioResolver, DnsError> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, r)) = all.iter().find(|(k, _)| k == key) {
            return Ok(r.clone());
        }
        let fail = |e: &dyn std::fmt::Display| DnsError::Resolver(e.to_string());
        let mut builder = if key.servers.is_empty() {
            TokioResolver::builder_tokio().map_err(|e| fail(&e))?
        } else {
            let servers = key.servers.iter().map(|s| {
                let mut config = NameServerConfig::udp_and_tcp(s.ip());
                config.connections.iter_mut().for_each(|c| c.port = s.port());
                config
            });
            let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        let options = builder.options_mut();
        options.ip_strategy = strategy(key.family);
        // Each refresh asks the servers, as Envoy does.
        options.cache_size = 0;
        let resolver = builder.build().map_err(|e| fail(&e))?;
        all.push((key.clone(), resolver.clone()));
        Ok(resolver)
    }

    /// Resolves a name: the addresses, sorted, and how long they hold.
    ///
    /// # Errors
    /// `Empty` for a name without addresses; otherwise the servers failed.
    pub async fn resolve(
        &self,
        name: &str,
        servers: &[SocketAddr],
        family: DnsFamily,
    ) -> Result<(Vec<IpAddr>, Duration), DnsError> {
        let resolver = self.resolver(&ResolverKey { servers: servers.to_vec(), family })?;
        let lookup = resolver.lookup_ip(name).await.map_err(|e| {
            if e.is_no_records_found() || e.is_nx_domain() {
                DnsError::Empty
            } else {
                DnsError::Lookup(e.to_string())
            }
        })?;
        let ttl = lookup.as_lookup().answers().iter().map(|r| r.ttl).min().unwrap_or(0);
        let all: BTreeSet<IpAddr> = lookup.iter().collect();
        let kept = prefer(all, family);
        if kept.is_empty() { Err(DnsError::Empty) } else { Ok((kept, Duration::from_secs(u64::from(ttl)))) }
    }
}

fn strategy(family: DnsFamily) -> LookupIpStrategy {
    match family {
        DnsFamily::Auto => LookupIpStrategy::Ipv6thenIpv4,
        DnsFamily::V4Only => LookupIpStrategy::Ipv4Only,
        DnsFamily::V6Only => LookupIpStrategy::Ipv6Only,
        DnsFamily::V4Preferred => LookupIpStrategy::Ipv4thenIpv6,
        DnsFamily::All => LookupIpStrategy::Ipv4AndIpv6,
    }
}

/// One family where the policy wants one: the hosts file answers with both.
fn prefer(all: BTreeSet<IpAddr>, family: DnsFamily) -> Vec<IpAddr> {
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = all.into_iter().partition(IpAddr::is_ipv4);
    match family {
        DnsFamily::V4Only => v4,
        DnsFamily::V6Only => v6,
        DnsFamily::V4Preferred => [v4, v6].into_iter().find(|v| !v.is_empty()).unwrap_or_default(),
        DnsFamily::Auto => [v6, v4].into_iter().find(|v| !v.is_empty()).unwrap_or_default(),
        DnsFamily::All => [v4, v6].concat(),
    }
}

/// Starts resolving where the cluster wants it: one task for each name.
pub(super) fn start(cluster: &Arc<SharedCluster>) {
    let endpoints = match &cluster.info.discovery {
        Discovery::StrictDns(e) | Discovery::LogicalDns(e) => e,
        Discovery::Static(_)
        | Discovery::Eds { .. }
        | Discovery::OriginalDst { .. }
        | Discovery::Aggregate(_) => return,
    };
    for name in names(endpoints) {
        let task = follow(Arc::downgrade(cluster), name);
        cluster.own(cluster.common.control.spawn(task).abort_handle());
    }
}

fn names(endpoints: &Endpoints) -> BTreeSet<Arc<str>> {
    let all = endpoints.localities.iter().flat_map(|l| &l.endpoints);
    all.filter_map(|e| match &e.address {
        Address::Name(n, _) => Some(n.clone()),
        Address::Socket(_) | Address::Pipe(_) | Address::Internal(_) => None,
    })
    .collect()
}

async fn follow(cluster: Weak<SharedCluster>, name: Arc<str>) {
    let mut failures = 0;
    loop {
        let Some(c) = cluster.upgrade() else { return };
        let info = c.info.clone();
        c.membership.update_attempt.inc();
        let common = c.common.clone();
        drop(c);
        let result = common.resolvers.resolve(&name, &info.dns_resolvers, info.dns_family).await;
        let Some(c) = cluster.upgrade() else { return };
        let wait = match result {
            Ok((addresses, ttl)) => {
                failures = 0;
                c.membership.update_success.inc();
                if !c.resolved(&name, addresses) {
                    c.membership.update_no_rebuild.inc();
                }
                let respected = info.respect_dns_ttl && !ttl.is_zero();
                if respected { ttl } else { info.dns_refresh }
            }
            Err(DnsError::Empty) => {
                failures = 0;
                c.membership.update_success.inc();
                c.membership.update_empty.inc();
                c.resolved(&name, Vec::new());
                info.dns_refresh
            }
            Err(e) => {
                // The last good addresses stay.
                tracing::debug!(cluster = %info.name, %name, "DNS: {e}");
                c.membership.update_failure.inc();
                failures += 1;
                failure_wait(info.dns_failure_refresh, failures, rand::random())
            }
        };
        drop(c);
        tokio::time::sleep(wait + jitter(info.dns_jitter, rand::random())).await;
    }
}

/// A fully jittered back-off between the base and the maximum interval.
fn failure_wait((base, max): (Duration, Duration), failures: u32, random: u64) -> Duration {
    let top = base.saturating_mul(1 << failures.min(16).saturating_sub(1)).min(max.max(base));
    jitter(top, random).max(Duration::from_millis(1))
}

fn jitter(max: Duration, random: u64) -> Duration {
    let ms = u64::try_from(max.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(random.checked_rem(ms).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_chosen_as_configured() {
        let v4: IpAddr = [127, 0, 0, 1].into();
        let v6: IpAddr = std::net::Ipv6Addr::LOCALHOST.into();
        for (family, want) in [
            (DnsFamily::V4Only, vec![v4]),
            (DnsFamily::V6Only, vec![v6]),
            (DnsFamily::V4Preferred, vec![v4]),
            (DnsFamily::Auto, vec![v6]),
            (DnsFamily::All, vec![v4, v6]),
        ] {
            assert_eq!(prefer([v4, v6].into(), family), want, "{family:?}");
        }
        assert_eq!(prefer([v4].into(), DnsFamily::Auto), [v4]);
        assert!(prefer([v4].into(), DnsFamily::V6Only).is_empty());
    }

    #[test]
    fn failures_back_off_up_to_the_maximum() {
        let limits = (Duration::from_secs(2), Duration::from_secs(10));
        for (failures, top) in [(1, 2000), (2, 4000), (3, 8000), (4, 10_000), (40, 10_000)] {
            assert_eq!(failure_wait(limits, failures, top - 1), Duration::from_millis(top - 1));
            assert_eq!(failure_wait(limits, failures, top), Duration::from_millis(1));
        }
    }

    #[tokio::test]
    async fn localhost_comes_from_the_hosts_file() {
        let (ips, _) = Resolvers::default().resolve("localhost", &[], DnsFamily::V4Only).await.unwrap();
        assert_eq!(ips, [IpAddr::from([127, 0, 0, 1])]);
    }
}
