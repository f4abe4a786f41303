use std::collections::HashMap;
use std::time::Duration;

use super::*;
use crate::config::cluster::{Cluster as Info, EdsHealth, Endpoints, Subset, SubsetFallback, SubsetSelector};
use crate::upstream::host::HealthFlags;
use crate::upstream::testing::{Rig, addresses, cluster, endpoints, locality};

/// How often each host (last octet) was chosen.
fn spread(rig: &Rig, picks: usize, ctx: &LbContext<'_>) -> HashMap<u8, usize> {
    let c = rig.local.get("c").unwrap();
    let mut counts = HashMap::new();
    for _ in 0..picks {
        *counts.entry(octet(&c.pick(ctx).unwrap())).or_default() += 1;
    }
    counts
}

fn octet(h: &Host) -> u8 {
    match h.socket().unwrap() {
        SocketAddr::V4(a) => a.ip().octets()[3],
        SocketAddr::V6(_) => panic!("IPv6"),
    }
}

fn hosts(weights: &[u32]) -> Endpoints {
    let a = addresses(weights.len() as u8);
    endpoints(&a.into_iter().zip(weights.iter().copied()).collect::<Vec<_>>())
}

fn counts(expected: &[usize]) -> HashMap<u8, usize> {
    (1..).zip(expected.iter().copied()).filter(|(_, n)| *n > 0).collect()
}

#[tokio::test]
async fn round_robin_is_even_and_follows_weights() {
    for (weights, expected) in [(vec![1, 1, 1], vec![10, 10, 10]), (vec![1, 2, 3], vec![5, 10, 15])] {
        let rig = Rig::new(cluster(hosts(&weights)));
        assert_eq!(spread(&rig, 30, &LbContext::default()), counts(&expected), "{weights:?}");
    }
}

#[tokio::test]
async fn least_request_prefers_the_idle_host() {
    let lb = LbPolicy::LeastRequest { choices: 2, bias: 1.0, slow_start: None, full_scan: false };
    let rig = Rig::new(Info { lb, ..cluster(hosts(&[1, 1])) });
    let c = rig.local.get("c").unwrap();
    let busy = c.hosts().hosts().next().unwrap().clone();
    (0..10).for_each(|_| busy.state.stats.rq_active.inc());
    let seen = spread(&rig, 1000, &LbContext::default());
    // Both samples fall on the busy one in a quarter of the choices.
    assert!((150..350).contains(&seen[&1]), "{seen:?}");

    let lb = LbPolicy::LeastRequest { choices: 2, bias: 1.0, slow_start: None, full_scan: true };
    let rig = Rig::new(Info { lb, ..cluster(hosts(&[1, 1])) });
    let c = rig.local.get("c").unwrap();
    c.hosts().hosts().next().unwrap().state.stats.rq_active.inc();
    assert_eq!(spread(&rig, 10, &LbContext::default()), counts(&[0, 10]));
}

#[tokio::test]
async fn weighted_least_request_divides_by_active() {
    let lb = LbPolicy::LeastRequest { choices: 2, bias: 1.0, slow_start: None, full_scan: false };
    let rig = Rig::new(Info { lb, ..cluster(hosts(&[1, 3])) });
    assert_eq!(spread(&rig, 400, &LbContext::default()), counts(&[100, 300]));
    let c = rig.local.get("c").unwrap();
    let heavy = c.hosts().hosts().nth(1).unwrap().clone();
    (0..2).for_each(|_| heavy.state.stats.rq_active.inc());
    // 3 / (2 + 1) is 1: even from the second round on.
    let seen = spread(&rig, 400, &LbContext::default());
    assert!((195..=205).contains(&seen[&1]), "{seen:?}");
}

#[tokio::test]
async fn random_covers_all() {
    let rig = Rig::new(Info { lb: LbPolicy::Random, ..cluster(hosts(&[1, 1, 1, 1])) });
    let seen = spread(&rig, 4000, &LbContext::default());
    assert!(seen.len() == 4 && seen.values().all(|n| (850..1150).contains(n)), "{seen:?}");
}

#[tokio::test]
async fn hashing_sticks_and_a_retry_moves_on() {
    for lb in [
        LbPolicy::RingHash { min: 1024, max: 8_388_608, murmur: false },
        LbPolicy::Maglev { table_size: 65537 },
    ] {
        let rig = Rig::new(Info { lb, ..cluster(hosts(&[1, 1, 1, 1])) });
        let c = rig.local.get("c").unwrap();
        let mut met = HashMap::<u8, usize>::new();
        for key in 0..200u64 {
            let hash = Some(xxhash_rust::xxh64::xxh64(&key.to_le_bytes(), 0));
            let ctx = LbContext { hash, ..LbContext::default() };
            let host = c.pick(&ctx).unwrap();
            assert!(c.pick(&ctx).unwrap().same(&host));
            *met.entry(octet(&host)).or_default() += 1;
            let avoid = [host.clone()];
            let other = c.pick(&LbContext { avoid: &avoid, attempts: 5, ..ctx }).unwrap();
            assert!(!other.same(&host));
        }
        assert!(met.len() == 4 && met.values().all(|n| *n > 20), "{met:?}");
    }
}

/// The hosts that Envoy 1.40 chose for a header hash policy with the values `key-1` to `key-24`; the digit is the host.
#[tokio::test]
async fn a_key_lands_where_envoy_sends_it() {
    let ring = |min, murmur| LbPolicy::RingHash { min, max: 8_388_608, murmur };
    for (lb, weights, expected) in [
        (LbPolicy::Maglev { table_size: 65537 }, vec![1, 1, 1], "321132333213333221123121"),
        (ring(1024, false), vec![1, 1, 1], "121322323122232333122133"),
        (ring(100, true), vec![3, 1], "112211212121222112211211"),
    ] {
        let a = (27011..).map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let e = endpoints(&a.zip(weights).collect::<Vec<_>>());
        let rig = Rig::new(Info { lb: lb.clone(), ..cluster(e) });
        let c = rig.local.get("c").unwrap();
        let chosen: String = (1..=24)
            .map(|i| {
                let hash = Some(xxhash_rust::xxh64::xxh64(format!("key-{i}").as_bytes(), 0));
                let host = c.pick(&LbContext { hash, ..LbContext::default() }).unwrap();
                (host.socket().unwrap().port() - 27010).to_string()
            })
            .collect();
        assert_eq!(chosen, expected, "{lb:?}");
    }
}

#[tokio::test]
async fn bounded_loads_pass_a_busy_host_by() {
    let lb = LbPolicy::RingHash { min: 1024, max: 8_388_608, murmur: false };
    let mut info = Info { lb, ..cluster(hosts(&[1, 1, 1, 1])) };
    info.lb_common.hash_balance_factor = 150;
    let rig = Rig::new(info);
    let c = rig.local.get("c").unwrap();
    let ctx = LbContext { hash: Some(42), ..LbContext::default() };
    let home = c.pick(&ctx).unwrap();
    (0..20).for_each(|_| home.state.stats.rq_active.inc());
    let other = c.pick(&ctx).unwrap();
    assert!(!other.same(&home));
    assert!(c.pick(&ctx).unwrap().same(&other), "the second choice is the hash's, too");
}

#[tokio::test]
async fn unhealthy_hosts_are_left_out_until_panic() {
    let rig = Rig::new(cluster(hosts(&[1, 1, 1, 1])));
    let c = rig.local.get("c").unwrap();
    let all: Vec<_> = c.hosts().hosts().cloned().collect();
    for h in &all[..2] {
        h.state.set(HealthFlags::FAILED_OUTLIER_CHECK);
    }
    c.shared().health_changed();
    assert_eq!(spread(&rig, 20, &LbContext::default()), counts(&[0, 0, 10, 10]));
    rig.expect(&[("membership_healthy", 2), ("lb_healthy_panic", 0)]);
    all[2].state.set(HealthFlags::FAILED_OUTLIER_CHECK);
    c.shared().health_changed();
    assert_eq!(spread(&rig, 20, &LbContext::default()), counts(&[5, 5, 5, 5]));
    rig.expect(&[("membership_healthy", 1), ("lb_healthy_panic", 20)]);
}

#[tokio::test]
async fn without_panic_no_healthy_host_is_none() {
    let mut info = cluster(hosts(&[1]));
    info.lb_common.panic_threshold = 0.0;
    let rig = Rig::new(info);
    let c = rig.local.get("c").unwrap();
    for h in c.hosts().hosts() {
        h.state.set(HealthFlags::FAILED_EDS_HEALTH);
    }
    c.shared().health_changed();
    assert!(c.pick(&LbContext::default()).is_err());
    rig.expect(&[("upstream_cx_none_healthy", 1)]);
}

#[tokio::test]
async fn traffic_fails_over_to_the_next_priority() {
    let a = addresses(4);
    let mut first = locality("a", 0, None, &[(a[0], 1), (a[1], 1)]);
    first.endpoints[0].health = EdsHealth::Unhealthy;
    first.endpoints[1].health = EdsHealth::Draining;
    let second = locality("b", 1, None, &[(a[2], 1), (a[3], 1)]);
    let e = Endpoints { localities: vec![first, second], overprovisioning: 140, ..Endpoints::default() };
    let rig = Rig::new(cluster(e));
    assert_eq!(spread(&rig, 20, &LbContext::default()), counts(&[0, 0, 10, 10]));
}

#[tokio::test]
async fn localities_share_by_weight_less_what_is_down() {
    let a = addresses(4);
    let near = locality("near", 0, Some(3), &[(a[0], 1), (a[1], 1)]);
    let far = locality("far", 0, Some(1), &[(a[2], 1), (a[3], 1)]);
    let e = Endpoints { localities: vec![near, far], overprovisioning: 140, ..Endpoints::default() };
    let mut info = cluster(e);
    info.lb_common.locality_weighted = true;
    let rig = Rig::new(info);
    assert_eq!(spread(&rig, 80, &LbContext::default()), counts(&[30, 30, 10, 10]));
    // Half of `near` is down: it keeps 70 % of its weight, 2.1 to 1.
    let c = rig.local.get("c").unwrap();
    c.hosts().hosts().next().unwrap().state.set(HealthFlags::FAILED_OUTLIER_CHECK);
    c.shared().health_changed();
    let seen = spread(&rig, 310, &LbContext::default());
    assert!((208..=212).contains(&seen[&2]) && !seen.contains_key(&1), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn slow_start_grows_a_new_host_s_share() {
    let slow = SlowStart { window: Duration::from_secs(100), aggression: 1.0, min_weight: 10.0 };
    let mut info = cluster(hosts(&[1]));
    info.lb = LbPolicy::RoundRobin { slow_start: Some(slow) };
    info.discovery = crate::config::cluster::Discovery::Eds { service_name: "c".into() };
    let rig = Rig::new(info);
    let eds = |weights: &[u32]| {
        rig.store.update(|s| {
            Arc::make_mut(&mut s.endpoints).insert("c".into(), Arc::new(hosts(weights)));
        });
        rig.local.sync(&rig.store.load());
        spread(&rig, 1, &LbContext::default());
    };
    eds(&[1]);
    tokio::time::advance(Duration::from_secs(200)).await;
    eds(&[1, 1]);
    for (at, share) in [(0, 91), (50, 333), (100, 500)] {
        let seen = spread(&rig, 1000, &LbContext::default());
        let new = seen[&2] as i64;
        assert!((new - share).abs() <= 15, "after {at} s: {new}");
        tokio::time::advance(Duration::from_secs(50)).await;
    }
}

/// Hosts 1 to 4 with versions and stages in `envoy.lb`.
fn labelled(fallback: SubsetFallback, default: &serde_json::Value) -> Info {
    let mut e = hosts(&[1, 1, 1, 1]);
    let labels = [("v1", "prod"), ("v1", "dev"), ("v2", "prod"), ("v2", "prod")];
    for (endpoint, (version, stage)) in e.localities[0].endpoints.iter_mut().zip(labels) {
        let m = serde_json::json!({ "envoy.lb": { "version": version, "stage": stage } });
        endpoint.metadata = m.as_object().cloned().map(Arc::new);
    }
    let selector = |keys: &[&str], fallback, fallback_keys: &[&str]| SubsetSelector {
        keys: keys.iter().map(|k| Arc::from(*k)).collect(),
        fallback,
        fallback_keys: fallback_keys.iter().map(|k| Arc::from(*k)).collect(),
        single_host: false,
    };
    let mut info = cluster(e);
    info.lb_common.subset = Some(Subset {
        fallback,
        default_subset: default.as_object().cloned().map(Arc::new),
        selectors: vec![
            selector(&["version"], None, &[]),
            selector(&["version", "stage"], Some(SubsetFallback::KeysSubset), &["version"]),
            selector(&["stage"], Some(SubsetFallback::None), &[]),
        ],
        locality_weight_aware: false,
        scale_locality_weight: false,
        panic_mode_any: false,
        list_as_any: false,
    });
    info
}

#[tokio::test]
async fn subsets_choose_among_hosts_that_agree() {
    let none = serde_json::Value::Null;
    let v2 = serde_json::json!({ "version": "v2" });
    // Fallback, the route's metadata, hosts that may be chosen.
    for (fallback, wanted, expected) in [
        (SubsetFallback::None, serde_json::json!({ "version": "v1" }), vec![1, 2]),
        (SubsetFallback::None, serde_json::json!({ "version": "v1", "stage": "dev" }), vec![2]),
        // No such pair: the selector falls back to the version alone.
        (SubsetFallback::None, serde_json::json!({ "version": "v2", "stage": "dev" }), vec![3, 4]),
        (SubsetFallback::None, serde_json::json!({ "version": "v9" }), vec![]),
        (SubsetFallback::AnyEndpoint, serde_json::json!({ "version": "v9" }), vec![1, 2, 3, 4]),
        (SubsetFallback::DefaultSubset, serde_json::json!({ "version": "v9" }), vec![3, 4]),
        // The selector's own fallback wins over the cluster's.
        (SubsetFallback::AnyEndpoint, serde_json::json!({ "stage": "test" }), vec![]),
        // No selector has these keys; and a route without metadata.
        (SubsetFallback::AnyEndpoint, serde_json::json!({ "colour": "red" }), vec![1, 2, 3, 4]),
        (SubsetFallback::DefaultSubset, none.clone(), vec![3, 4]),
        (SubsetFallback::None, none, vec![]),
    ] {
        let rig = Rig::new(labelled(fallback, &v2));
        let c = rig.local.get("c").unwrap();
        let ctx = LbContext { metadata_match: wanted.as_object(), ..LbContext::default() };
        let mut seen: Vec<u8> = (0..20).filter_map(|_| c.pick(&ctx).ok()).map(|h| octet(&h)).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, expected, "{fallback:?} {wanted}");
    }
}

#[tokio::test]
async fn subsets_are_counted() {
    let rig = Rig::new(labelled(SubsetFallback::AnyEndpoint, &serde_json::Value::Null));
    let wanted = serde_json::json!({ "version": "v1" });
    spread(&rig, 3, &LbContext { metadata_match: wanted.as_object(), ..LbContext::default() });
    spread(&rig, 2, &LbContext::default());
    // v1, v2; v1-prod, v1-dev, v2-prod; prod, dev.
    rig.expect(&[("lb_subsets_active", 7), ("lb_subsets_created", 7), ("lb_subsets_selected", 3)]);
    rig.expect(&[("lb_subsets_fallback", 2)]);
}

#[tokio::test]
async fn an_aggregate_cluster_fails_over_to_its_next_member() {
    let a = addresses(2);
    let rig = Rig::new(cluster(endpoints(&[(a[0], 1)])));
    rig.put(Info { name: "d".into(), stat_name: "d".into(), ..cluster(endpoints(&[(a[1], 1)])) });
    let mut aggregate =
        Info { name: "both".into(), stat_name: "both".into(), ..cluster(Endpoints::default()) };
    aggregate.discovery = crate::config::cluster::Discovery::Aggregate(vec!["c".into(), "d".into()]);
    rig.put(aggregate);
    let chosen = || rig.local.get("both").unwrap().info().name.clone();
    assert!((0..20).all(|_| &*chosen() == "c"));
    let c = rig.local.get("c").unwrap();
    c.hosts().hosts().next().unwrap().state.set(HealthFlags::FAILED_OUTLIER_CHECK);
    c.shared().health_changed();
    assert!((0..20).all(|_| &*chosen() == "d"));
}
