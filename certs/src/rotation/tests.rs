use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::UNIX_EPOCH;

use super::*;
use crate::ca::CertificateAuthority;
use crate::ca_client::CaError;

/// Signs by the test's clock; fails where the script says so.
#[derive(Clone)]
struct Scripted {
    authority: Arc<CertificateAuthority>,
    clock: Clock,
    /// Answers that fail, by number of the request, from 1.
    failures: fn(u64) -> bool,
    requests: Arc<AtomicU64>,
    times: Arc<Mutex<Vec<u64>>>,
    start: SystemTime,
    answer_for: Option<SpiffeId>,
}

impl Issue for Scripted {
    async fn issue(&self, csr: &str, ttl: Duration) -> Result<Vec<String>, CaError> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let now = self.clock.now();
        self.times.lock().unwrap().push(now.duration_since(self.start).unwrap().as_secs());
        if (self.failures)(number) {
            return Err(CaError::Token(format!("scripted failure {number}")));
        }
        let id = self.answer_for.clone().unwrap_or_else(|| CertificateAuthority::requested_id(csr).unwrap());
        Ok(self.authority.sign(csr, &id, now, ttl).unwrap())
    }
}

fn setup(failures: fn(u64) -> bool) -> (RotationConfig, Scripted, SecretStore) {
    // A whole second, as certificates have it.
    let start =
        UNIX_EPOCH + Duration::from_secs(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs());
    let clock = Clock::from_tokio(start);
    let mut config = RotationConfig::new(SpiffeId::workload("cluster.local", "demo", "web"));
    config.ttl = Duration::from_secs(60);
    config.grace_jitter = 0.0;
    config.clock = clock;
    let issuer = Scripted {
        authority: Arc::new(CertificateAuthority::generate("test").unwrap()),
        clock,
        failures,
        requests: Arc::default(),
        times: Arc::default(),
        start,
        answer_for: None,
    };
    (config, issuer, SecretStore::new())
}

#[test]
fn renewal_is_due_at_the_ratio_before_the_end() {
    let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
    let due = |now, ratio, jitter| next_renewal(at(now), at(1000), at(2000), ratio, jitter);
    assert_eq!(due(1000, 0.25, 0.0), at(1750));
    assert_eq!(due(1000, 0.5, 0.0), at(1500));
    assert_eq!(due(1000, 0.5, 0.1), at(1400));
    assert_eq!(due(1000, 0.5, -0.1), at(1600));
    assert_eq!(due(1000, 0.9, 0.5), at(1000), "a ratio above 1 is 1");
    assert_eq!(due(1000, 0.1, -0.5), at(2000), "a ratio below 0 is 0");
    assert_eq!(due(1800, 0.25, 0.0), at(1800), "what is overdue is due now");
    assert_eq!(due(3000, f64::NAN, 0.0), at(3000));
    assert_eq!(next_renewal(at(5), at(10), at(3), 0.25, 0.0), at(5), "an end before the start");
}

#[tokio::test(start_paused = true)]
async fn certificate_is_renewed_at_three_quarters_of_its_life() {
    let (config, issuer, store) = setup(|_| false);
    let rotation = Rotation::spawn(config, issuer.clone(), store.clone());
    let mut status = rotation.status();
    status.wait_for(|status| status.successes == 4).await.unwrap();
    assert_eq!(*issuer.times.lock().unwrap(), [0, 45, 90, 135]);
    let certificate = store.certificate(WORKLOAD).unwrap();
    assert_eq!(certificate.spiffe_id.as_ref().unwrap().to_string(), "spiffe://cluster.local/ns/demo/sa/web");
    assert_eq!(store.roots(ROOT).unwrap().roots(), [issuer.authority.root_der()]);
}

#[tokio::test(start_paused = true)]
async fn old_certificate_stays_while_renewal_fails() {
    let (config, issuer, store) = setup(|number| (2..=4).contains(&number));
    let rotation = Rotation::spawn(config, issuer.clone(), store.clone());
    let mut status = rotation.status();
    status.wait_for(|status| status.successes == 1).await.unwrap();
    let first = store.certificate(WORKLOAD).unwrap();
    status.wait_for(|status| status.failures == 3).await.unwrap();
    let error = status.borrow().last_error.clone().unwrap();
    assert_eq!(error, "token: scripted failure 4");
    assert_eq!(store.certificate(WORKLOAD).unwrap().serial, first.serial);
    status.wait_for(|status| status.successes == 2).await.unwrap();
    assert_ne!(store.certificate(WORKLOAD).unwrap().serial, first.serial);
    assert_eq!(status.borrow().last_error, None);
    let times = issuer.times.lock().unwrap();
    assert!(times[1] == 45 && times[4] <= 45 + 4, "three waits of at most 0.5, 1, 2 s: {times:?}");
}

#[tokio::test(start_paused = true)]
async fn waits_after_failures_grow_to_the_longest() {
    let (config, issuer, store) = setup(|_| true);
    let rotation = Rotation::spawn(config, issuer.clone(), store.clone());
    rotation.status().wait_for(|status| status.failures == 12).await.unwrap();
    let times = issuer.times.lock().unwrap();
    let last = times[11] - times[10];
    assert!((14..=31).contains(&last), "{times:?}");
    assert!(store.secret(WORKLOAD).is_none());
}

#[tokio::test(start_paused = true)]
async fn renewal_can_be_asked_for() {
    let (config, issuer, store) = setup(|_| false);
    let rotation = Rotation::spawn(config, issuer.clone(), store);
    let mut status = rotation.status();
    status.wait_for(|status| status.successes == 1).await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    rotation.renew_now();
    status.wait_for(|status| status.successes == 2).await.unwrap();
    assert_eq!(*issuer.times.lock().unwrap(), [0, 10]);
}

#[tokio::test(start_paused = true)]
async fn certificate_for_somebody_else_is_refused() {
    let (config, mut issuer, store) = setup(|_| false);
    issuer.answer_for = Some(SpiffeId::workload("cluster.local", "demo", "other"));
    let rotation = Rotation::spawn(config, issuer, store.clone());
    let mut status = rotation.status();
    let seen = status.wait_for(|status| status.failures == 1).await.unwrap().clone();
    assert_eq!(
        seen.last_error.unwrap(),
        "certificate service: the certificate is for spiffe://cluster.local/ns/demo/sa/other, \
         spiffe://cluster.local/ns/demo/sa/web was asked for"
    );
    assert!(store.secret(WORKLOAD).is_none());
}
