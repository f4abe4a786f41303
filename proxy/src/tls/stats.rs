//! `ssl.*` stats of a listener or cluster, one owner each. Follows "TLS statistics" of listeners and clusters.

use std::cell::RefCell;
use std::collections::HashMap;

use rustls::{CommonState, HandshakeKind};

use super::error::{ErrorKind, TlsError};
use super::outcome::{Outcome, Refusal};
use super::suites;
use crate::stats_struct;
use crate::telemetry::stats::{Counter, Stats};

stats_struct! {
    /// The fixed ones.
    #[allow(dead_code, reason = "the OCSP and key usage counters stand in /stats as in Envoy's and never count")]
    struct Fixed {
        counter connection_error,
        counter handshake,
        counter session_reused,
        counter no_certificate,
        counter fail_verify_no_cert,
        counter fail_verify_error,
        counter fail_verify_san,
        counter fail_verify_cert_hash,
        counter ocsp_staple_failed,
        counter ocsp_staple_omitted,
        counter ocsp_staple_responses,
        counter ocsp_staple_requests,
        counter was_key_usage_invalid,
    }
}

/// Stats of one worker's handshakes under one scope.
#[derive(Debug)]
pub struct TlsStats {
    stats: Stats,
    /// `listener.0.0.0.0_443.ssl.`
    prefix: String,
    fixed: Fixed,
    /// `ciphers.X`, `versions.X`, `curves.X`, `sigalgs.X`, as they come up.
    named: RefCell<HashMap<(&'static str, &'static str), Counter>>,
}

impl TlsStats {
    /// Under `scope`, which ends in a dot (`listener.127.0.0.1_80.`, `cluster.x.`).
    pub fn new(stats: &Stats, scope: &str) -> TlsStats {
        let prefix = format!("{scope}ssl.");
        TlsStats {
            fixed: Fixed::new(stats, &prefix),
            stats: stats.clone(),
            prefix,
            named: RefCell::default(),
        }
    }

    pub(super) fn succeeded(&self, session: &CommonState, outcome: &Outcome) {
        self.fixed.handshake.inc();
        self.refused(outcome);
        if session.handshake_kind() == Some(HandshakeKind::Resumed) {
            self.fixed.session_reused.inc();
        }
        if let Some(suite) = session.negotiated_cipher_suite() {
            self.named("ciphers", suites::cipher_name(suite.suite()));
        }
        self.named("versions", suites::version_name(session.protocol_version()));
        if let Some(group) = session.negotiated_key_exchange_group() {
            self.named("curves", suites::curve_name(group.name()));
        }
        if let Some(scheme) = outcome.sigalg {
            self.named("sigalgs", suites::sigalg_name(scheme));
        }
        if session.peer_certificates().is_none_or(<[_]>::is_empty) {
            self.fixed.no_certificate.inc();
        }
    }

    pub(super) fn failed(&self, error: &TlsError, outcome: &Outcome) {
        self.refused(outcome);
        match error.kind {
            ErrorKind::NoCertificate => self.fixed.fail_verify_no_cert.inc(),
            ErrorKind::Connection => self.fixed.connection_error.inc(),
            ErrorKind::Verify | ErrorKind::NotReady | ErrorKind::Closed => {}
        }
    }

    fn refused(&self, outcome: &Outcome) {
        match outcome.refusal {
            Some((Refusal::Chain, _)) => self.fixed.fail_verify_error.inc(),
            Some((Refusal::San, _)) => self.fixed.fail_verify_san.inc(),
            Some((Refusal::Hash, _)) => self.fixed.fail_verify_cert_hash.inc(),
            None => {}
        }
    }

    fn named(&self, group: &'static str, name: &'static str) {
        if name.is_empty() {
            return;
        }
        self.named
            .borrow_mut()
            .entry((group, name))
            .or_insert_with(|| self.stats.counter(&format!("{}{group}.{name}", self.prefix)))
            .inc();
    }
}
