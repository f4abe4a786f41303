//! Obtains the workload certificate and renews it before it ends. The rule is istio-agent's (`rotateTime`): a grace period of
//! `ratio` of the lifetime, moved by up to `jitter` either way, before the end; with a ratio of 0.25 that is at 75 % of its life. While renewal fails
//! the certificate stays in use, and renewal is tried again with growing waits.

use std::time::{Duration, SystemTime};

use rand::Rng as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::ca_client::Issue;
use crate::clock::Clock;
use crate::csr::certificate_request;
use crate::identity::{WorkloadCertificate, certificates_from_pem};
use crate::key::{KeyAlgorithm, PrivateKey};
use crate::spiffe::SpiffeId;
use crate::store::{ROOT, Secret, SecretStore, WORKLOAD};
use crate::verify::{TrustBundle, Usage};

/// The longest sleep without a look at the wall clock, which may have been set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// What to ask for, and when.
#[derive(Clone, Debug)]
pub struct RotationConfig {
    /// Who the workload is.
    pub id: SpiffeId,
    /// The kind of key, a new one for each certificate.
    pub key_algorithm: KeyAlgorithm,
    /// The validity to ask for (`SECRET_TTL`).
    pub ttl: Duration,
    /// The part of the lifetime before its end at which to renew (`SECRET_GRACE_PERIOD_RATIO`).
    pub grace_ratio: f64,
    /// The most by which the ratio is moved, either way (`SECRET_GRACE_PERIOD_RATIO_JITTER`).
    pub grace_jitter: f64,
    /// The first wait after a failure.
    pub retry_base: Duration,
    /// The longest wait after a failure.
    pub retry_max: Duration,
    /// Roots beside the one that comes with the certificate: those of other trust domains, or of the mounted `root-cert.pem`.
    pub extra_roots: Vec<rustls_pki_types::CertificateDer<'static>>,
    /// The wall clock.
    pub clock: Clock,
}

impl RotationConfig {
    /// A day's validity, renewed at 75 %.
    #[must_use]
    pub fn new(id: SpiffeId) -> Self {
        Self {
            id,
            key_algorithm: KeyAlgorithm::default(),
            ttl: Duration::from_secs(24 * 3600),
            grace_ratio: 0.25,
            grace_jitter: 0.01,
            retry_base: Duration::from_millis(500),
            retry_max: Duration::from_secs(30),
            extra_roots: Vec::new(),
            clock: Clock::system(),
        }
    }
}

/// What rotation has done and will do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RotationStatus {
    /// Certificates obtained.
    pub successes: u64,
    /// Failed attempts.
    pub failures: u64,
    /// Why the last attempt failed; `None` after a success.
    pub last_error: Option<String>,
    /// When the next certificate is asked for.
    pub next_renewal: Option<SystemTime>,
    /// The end of the present certificate.
    pub not_after: Option<SystemTime>,
}

/// A running rotation. It ends when this is dropped.
pub struct Rotation {
    task: JoinHandle<()>,
    renew: mpsc::Sender<()>,
    status: watch::Receiver<RotationStatus>,
}

impl Drop for Rotation {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Rotation {
    /// Starts on the current runtime. The certificate appears in `store` as `default`, its roots as `ROOTCA`, both in one step.
    #[must_use]
    pub fn spawn<I: Issue + 'static>(config: RotationConfig, issuer: I, store: SecretStore) -> Self {
        let (renew, wanted) = mpsc::channel(1);
        let (sender, status) = watch::channel(RotationStatus::default());
        let task = tokio::spawn(run(config, issuer, store, wanted, sender));
        Self { task, renew, status }
    }

    /// Renews now, whatever the time: the trust bundle has changed, or an operator wants it.
    pub fn renew_now(&self) {
        // A full channel holds the same wish already.
        let _ = self.renew.try_send(());
    }

    /// What has been done, now and on each change.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<RotationStatus> {
        self.status.clone()
    }
}

/// When to renew a certificate that was obtained at `obtained`: `ratio` of the lifetime before its end, moved by `jitter`, a
/// signed part of the lifetime; never before `now`.
#[must_use]
pub fn next_renewal(
    now: SystemTime,
    obtained: SystemTime,
    not_after: SystemTime,
    ratio: f64,
    jitter: f64,
) -> SystemTime {
    let lifetime = not_after.duration_since(obtained).unwrap_or_default();
    let part = ratio + jitter;
    let grace = lifetime.mul_f64(if part.is_finite() { part.clamp(0.0, 1.0) } else { 1.0 });
    (not_after - grace).max(now)
}

async fn run<I: Issue>(
    config: RotationConfig,
    issuer: I,
    store: SecretStore,
    mut wanted: mpsc::Receiver<()>,
    status: watch::Sender<RotationStatus>,
) {
    let mut wait = config.retry_base;
    loop {
        let due = match obtain(&config, &issuer).await {
            Ok((certificate, roots)) => {
                wait = config.retry_base;
                let now = config.clock.now();
                let jitter = config.grace_jitter * rand::rng().random_range(-1.0..=1.0);
                let due = next_renewal(now, now, certificate.not_after, config.grace_ratio, jitter);
                tracing::info!(serial = %certificate.serial, "workload certificate obtained");
                let not_after = certificate.not_after;
                store.set_all(&[
                    (WORKLOAD, Secret::Certificate(certificate.into())),
                    (ROOT, Secret::Roots(roots.into())),
                ]);
                status.send_modify(|status| {
                    status.successes += 1;
                    status.last_error = None;
                    status.next_renewal = Some(due);
                    status.not_after = Some(not_after);
                });
                due
            }
            Err(error) => {
                tracing::warn!(%error, "workload certificate not obtained");
                // Between half of the wait and all of it: a fleet that lost its control plane comes back spread out.
                let due = config.clock.now() + wait.mul_f64(rand::rng().random_range(0.5..=1.0));
                wait = (wait * 2).min(config.retry_max);
                status.send_modify(|status| {
                    status.failures += 1;
                    status.last_error = Some(error);
                    status.next_renewal = Some(due);
                });
                due
            }
        };
        while let Ok(left) = due.duration_since(config.clock.now()) {
            if left.is_zero() {
                break;
            }
            tokio::select! {
                () = tokio::time::sleep(left.min(LONGEST_SLEEP)) => {}
                wish = wanted.recv() => {
                    if wish.is_none() {
                        return;
                    }
                    break;
                }
            }
        }
    }
}

/// One certificate: key, request, answer, and the check that a peer would make.
async fn obtain<I: Issue>(
    config: &RotationConfig,
    issuer: &I,
) -> Result<(WorkloadCertificate, TrustBundle), String> {
    let key = PrivateKey::generate(config.key_algorithm).map_err(|error| error.to_string())?;
    let csr = certificate_request(&key, &config.id).map_err(|error| error.to_string())?;
    let pem = issuer.issue(&csr, config.ttl).await.map_err(|error| error.to_string())?;
    let origin = "certificate service";
    let mut chain = Vec::new();
    for part in &pem {
        chain.extend(certificates_from_pem(origin, part.as_bytes()).map_err(|error| error.to_string())?);
    }
    // As istio-agent: the last certificate is the root.
    let root = chain.last().cloned();
    let roots = root.into_iter().chain(config.extra_roots.iter().cloned()).collect();
    let roots = TrustBundle::new(origin, roots).map_err(|error| error.to_string())?;
    let certificate =
        WorkloadCertificate::new(origin, chain, key.to_der()).map_err(|error| error.to_string())?;
    if certificate.spiffe_id.as_ref() != Some(&config.id) {
        return Err(format!(
            "{origin}: the certificate is for {}, {} was asked for",
            certificate.spiffe_id.as_ref().map_or_else(|| "nobody".to_owned(), ToString::to_string),
            config.id
        ));
    }
    let (leaf, intermediates) = certificate.chain.split_first().ok_or("no certificate")?;
    roots
        .verify(leaf, intermediates, Usage::Server, config.clock.now())
        .map_err(|error| format!("{origin}: its own root does not verify the certificate: {error}"))?;
    Ok((certificate, roots))
}

#[cfg(test)]
mod tests;
