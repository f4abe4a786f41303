use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::*;

fn config() -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: 3,
        consecutive_gateway: 3,
        consecutive_local_origin: 2,
        interval: Duration::from_secs(10),
        base_ejection: Duration::from_secs(30),
        max_ejection_time: Duration::from_secs(300),
        max_ejection_jitter: Duration::ZERO,
        max_ejection_percent: 50,
        always_eject_one: false,
        enforcing_5xx: 100,
        enforcing_gateway: 0,
        enforcing_local_origin: 100,
        enforcing_success_rate: 100,
        enforcing_local_success_rate: 100,
        success_rate_minimum_hosts: 5,
        success_rate_request_volume: 100,
        success_rate_stdev_factor: 1900,
        split_external_local: false,
        failure_percentage_threshold: 85,
        enforcing_failure_percentage: 0,
        enforcing_failure_percentage_local: 0,
        failure_percentage_minimum_hosts: 5,
        failure_percentage_request_volume: 50,
        successful_active_hc_uneject: true,
    }
}

struct Rig {
    stats: Stats,
    detector: Detector,
    hosts: Vec<Arc<HostState>>,
    now: Instant,
}

impl Rig {
    fn new(config: &OutlierDetection, hosts: usize) -> Rig {
        let now = Instant::now();
        let stats = Stats::default();
        let detector = Detector::new(config, &stats, "cluster.c.");
        Rig { stats, detector, hosts: (0..hosts).map(|_| HostState::new(now)).collect(), now }
    }

    fn record(&mut self, host: usize, outcome: Outcome) -> Option<Decision> {
        let h = self.hosts[host].clone();
        let met = h.monitor.record(outcome, self.detector.config());
        let hosts = self.hosts.len();
        met.into_iter()
            .flatten()
            .filter_map(|kind| self.detector.on_consecutive(self.now, &h, kind, hosts, &mut || 0))
            .last()
    }

    fn interval(&mut self, after: u64) -> Vec<(usize, Decision)> {
        self.now += Duration::from_secs(after);
        let hosts: Vec<&HostState> = self.hosts.iter().map(|h| &**h).collect();
        self.detector.on_interval(self.now, &hosts, &mut || 0)
    }

    fn ejected(&self) -> Vec<usize> {
        (0..self.hosts.len()).filter(|i| ejected(&self.hosts[*i])).collect()
    }

    fn stat(&self, name: &str) -> u64 {
        self.stats.value(&format!("cluster.c.outlier_detection.{name}")).unwrap_or(0)
    }
}

#[test]
fn consecutive_5xx_eject_and_a_success_starts_anew() {
    let mut rig = Rig::new(&config(), 4);
    for code in [500, 503, 200, 500, 500] {
        assert_eq!(rig.record(0, Outcome::Status(code)), None, "{code}");
    }
    assert!(matches!(rig.record(0, Outcome::Status(500)), Some(Decision::Ejected { enforced: true, .. })));
    assert_eq!(rig.ejected(), [0]);
    assert_eq!(rig.stat("ejections_active"), 1);
    assert_eq!(rig.stat("ejections_enforced_consecutive_5xx"), 1);
    assert_eq!(rig.stat("ejections_enforced_total"), 1);
    // Past the threshold nothing more is detected.
    assert_eq!(rig.record(0, Outcome::Status(500)), None);
}

#[test]
fn max_ejection_percent_overflows_and_one_may_always_go() {
    let mut rig = Rig::new(&config(), 3);
    for host in [0, 1] {
        for _ in 0..3 {
            rig.record(host, Outcome::Status(500));
        }
    }
    assert_eq!((rig.ejected(), rig.stat("ejections_overflow")), (vec![0], 1));

    for (always, ejected) in [(false, vec![]), (true, vec![0])] {
        let mut rig =
            Rig::new(&OutlierDetection { max_ejection_percent: 10, always_eject_one: always, ..config() }, 2);
        for _ in 0..3 {
            rig.record(0, Outcome::Status(500));
        }
        assert_eq!(rig.ejected(), ejected, "{always}");
    }
}

#[test]
fn ejection_time_grows_with_each_ejection_and_decays() {
    let mut rig = Rig::new(&config(), 4);
    let eject = |rig: &mut Rig| {
        for _ in 0..3 {
            rig.record(0, Outcome::Status(500));
        }
        assert_eq!(rig.ejected(), [0]);
    };
    eject(&mut rig);
    rig.interval(29);
    assert_eq!(rig.ejected(), [0]);
    assert!(matches!(rig.interval(1)[..], [(0, Decision::Unejected { ejections: 1, .. })]));
    // The second ejection lasts twice as long.
    eject(&mut rig);
    rig.interval(59);
    assert_eq!(rig.ejected(), [0]);
    rig.interval(1);
    assert!(rig.ejected().is_empty());
    // Two quiet intervals take both steps away.
    rig.interval(10);
    rig.interval(10);
    eject(&mut rig);
    rig.interval(30);
    assert!(rig.ejected().is_empty());
}

#[test]
fn enforcing_percentage_detects_without_ejecting() {
    let mut rig = Rig::new(&OutlierDetection { consecutive_5xx: 100, ..config() }, 4);
    for _ in 0..2 {
        rig.record(0, Outcome::Status(502));
    }
    let d = rig.record(0, Outcome::Status(503));
    assert!(matches!(
        d,
        Some(Decision::Ejected { kind: EjectionKind::ConsecutiveGatewayFailure, enforced: false, .. })
    ));
    assert!(rig.ejected().is_empty());
    assert_eq!(rig.stat("ejections_detected_consecutive_gateway_failure"), 1);
    assert_eq!(rig.stat("ejections_enforced_total"), 0);
}

#[test]
fn local_origin_failures_count_apart_when_split() {
    let mut rig = Rig::new(&OutlierDetection { split_external_local: true, ..config() }, 4);
    rig.record(0, Outcome::ConnectFailed);
    rig.record(0, Outcome::ConnectSuccess);
    rig.record(0, Outcome::ConnectFailed);
    assert!(rig.ejected().is_empty());
    rig.record(0, Outcome::LocalTimeout);
    assert_eq!(rig.ejected(), [0]);
    assert_eq!(rig.stat("ejections_enforced_consecutive_local_origin_failure"), 1);

    // Together, a failed connect is a 503.
    let mut rig = Rig::new(&config(), 4);
    for outcome in [Outcome::ConnectFailed, Outcome::LocalTimeout, Outcome::RequestFailed] {
        rig.record(1, outcome);
    }
    assert_eq!(rig.ejected(), [1]);
}

#[test]
fn success_rate_ejects_below_mean_less_deviations() {
    // Envoy's documented example: rates 50, 100, 100, 100, 100 and factor 1.9 give the threshold 52.
    let (mean, threshold) = rate_threshold(&[(0, 50.0), (1, 100.0), (2, 100.0), (3, 100.0), (4, 100.0)], 1.9);
    assert!((mean - 90.0).abs() < 1e-9 && (threshold - 52.0).abs() < 1e-9);

    let mut rig = Rig::new(&OutlierDetection { consecutive_5xx: 1000, ..config() }, 5);
    for host in 0..5 {
        for n in 0..200 {
            let code = if host == 0 && n % 2 == 0 { 500 } else { 200 };
            rig.record(host, Outcome::Status(code));
        }
    }
    let decisions = rig.interval(10);
    assert_eq!(rig.ejected(), [0]);
    assert!(matches!(decisions[..], [(0, Decision::Ejected { kind: EjectionKind::SuccessRate, .. })]));
    assert!((rig.hosts[1].monitor.success_rates().0 - 100.0).abs() < 1e-9);
    // The next interval had no requests: rates are unknown again.
    rig.interval(10);
    assert!((rig.hosts[1].monitor.success_rates().0 + 1.0).abs() < 1e-9);
}

#[test]
fn failure_percentage_ejects_at_its_threshold() {
    let c = OutlierDetection {
        enforcing_failure_percentage: 100,
        enforcing_success_rate: 0,
        consecutive_5xx: 1000,
        ..config()
    };
    let mut rig = Rig::new(&c, 6);
    for host in 0..6 {
        for n in 0..100 {
            let failed = match host {
                0 => n < 85,
                1 => n < 84,
                _ => false,
            };
            rig.record(host, Outcome::Status(if failed { 500 } else { 200 }));
        }
    }
    rig.interval(10);
    assert_eq!(rig.ejected(), [0]);
    assert_eq!(rig.stat("ejections_enforced_failure_percentage"), 1);
}

#[test]
fn events_are_logged_in_the_message_form() {
    let mut rig = Rig::new(&config(), 4);
    rig.record(0, Outcome::Status(500));
    rig.record(0, Outcome::Status(500));
    let d = rig.record(0, Outcome::Status(500)).unwrap();
    let line = log::event(SystemTime::UNIX_EPOCH, "c", "127.0.0.1:80", &d).to_string();
    assert_eq!(
        line,
        r#"{"type":"CONSECUTIVE_5XX","timestamp":"1970-01-01T00:00:00Z","cluster_name":"c","upstream_url":"127.0.0.1:80","action":"EJECT","num_ejections":1,"enforced":true,"eject_consecutive_event":{}}"#
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    EventLog::open(file.path()).unwrap().write(SystemTime::now(), "c", "u", &d);
    assert!(std::fs::read_to_string(file.path()).unwrap().ends_with("}\n"));
}
