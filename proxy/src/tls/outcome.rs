//! What rustls' callbacks (verifiers, resolvers) learn during a handshake step, carried to the task that drives it. Contexts
//! are shared by workers and rustls' errors hold no text of ours, so a step's findings travel in a thread-local that the
//! driver empties right after each poll: callbacks run inside the poll, so it can only hold findings of that connection.

use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use rustls::SignatureScheme;

use super::peer::CertFacts;

/// Why a peer's certificate was refused, as Envoy's stats tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// `fail_verify_error`.
    Chain,
    /// `fail_verify_san`.
    San,
    /// `fail_verify_cert_hash`.
    Hash,
}

/// Findings of one handshake.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    pub refusal: Option<(Refusal, String)>,
    /// The scheme of the peer's signature.
    pub sigalg: Option<SignatureScheme>,
    /// Facts of the peer's leaf, where the verifier read them.
    pub peer: Option<Arc<CertFacts>>,
    /// The chain led to a trusted root.
    pub validated: bool,
    /// Facts of our own certificate that was presented.
    pub local: Option<Arc<CertFacts>>,
}

thread_local! {
    static STEP: RefCell<Outcome> = RefCell::default();
}

/// Notes a finding from inside a callback.
pub(super) fn note(f: impl FnOnce(&mut Outcome)) {
    STEP.with(|s| f(&mut s.borrow_mut()));
}

/// Runs a handshake future and gathers its findings.
pub(super) async fn observe<F: Future>(future: F) -> (F::Output, Outcome) {
    let mut future = pin!(future);
    let mut all = Outcome::default();
    let out = std::future::poll_fn(|cx| {
        let polled = future.as_mut().poll(cx);
        let step = STEP.with(RefCell::take);
        all.refusal = step.refusal.or(all.refusal.take());
        all.sigalg = step.sigalg.or(all.sigalg);
        all.peer = step.peer.or(all.peer.take());
        all.local = step.local.or(all.local.take());
        all.validated |= step.validated;
        match polled {
            Poll::Ready(out) => Poll::Ready(out),
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
    (out, all)
}
