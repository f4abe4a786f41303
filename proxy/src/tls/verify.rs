//! Verification of a peer's certificate as Envoy's default validator does it: chain to the roots without looking at names,
//! then SAN matchers, then pins. Follows `CertificateValidationContext`.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime, pem::PemObject};
use webpki::{
    BorrowedCertRevocationList, CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage,
    OwnedCertRevocationList, RevocationCheckDepth, RevocationOptionsBuilder,
};

use super::certificate::{self, Roots};
use super::outcome::{self, Refusal};
use super::peer::CertFacts;
use crate::config::matcher::StringMatcher;
use crate::config::tls::{SanKind, SanMatcher, Validation};

/// Which end we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// We verify a client's certificate.
    Server { required: bool },
    /// We verify a server's certificate.
    Client,
}

/// The verifier of one context.
#[derive(Debug)]
pub(super) struct Verifier {
    algorithms: WebPkiSupportedAlgorithms,
    roots: Option<Arc<Roots>>,
    crls: Vec<CertRevocationList<'static>>,
    validation: Arc<Validation>,
    /// DNS names of which one must be among the SANs (`auto_sni_san_validation`, `auto_san_validation`); empty: no demand.
    names: Vec<Arc<str>>,
    role: Role,
}

impl Verifier {
    pub(super) fn new(
        algorithms: WebPkiSupportedAlgorithms,
        roots: Option<Arc<Roots>>,
        crl: Option<&[u8]>,
        validation: Arc<Validation>,
        role: Role,
    ) -> Result<Verifier, certificate::CertificateError> {
        let crls = read_crls(crl.unwrap_or_default())
            .ok_or_else(|| certificate::CertificateError::Crl("<inline>".into()))?;
        Ok(Verifier { algorithms, roots, crls, validation, names: Vec::new(), role })
    }

    /// The same verifier with a demand for one of `names`.
    pub(super) fn with_names(&self, names: &[Arc<str>]) -> Result<Verifier, certificate::CertificateError> {
        let crl = self.validation.crl.as_deref();
        let mut v =
            Verifier::new(self.algorithms, self.roots.clone(), crl, self.validation.clone(), self.role)?;
        v.names = names.to_vec();
        Ok(v)
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let Some(facts) = CertFacts::read(leaf).map(Arc::new) else {
            return Err(Error::InvalidCertificate(CertificateError::BadEncoding));
        };
        outcome::note(|o| o.peer = Some(facts.clone()));
        let checked = self.check_chain(leaf, rest, &facts, now).and_then(|()| self.check_identity(&facts));
        match checked {
            Ok(()) => {
                outcome::note(|o| o.validated = self.roots.is_some() || self.has_pins());
                Ok(())
            }
            // ACCEPT_UNTRUSTED: the failure counts, the connection goes on.
            Err(refused) if self.validation.accept_untrusted => {
                outcome::note(|o| o.refusal = Some((refused.kind, refused.text)));
                Ok(())
            }
            Err(refused) => {
                outcome::note(|o| o.refusal = Some((refused.kind, refused.text)));
                Err(Error::InvalidCertificate(refused.error))
            }
        }
    }

    fn has_pins(&self) -> bool {
        !self.validation.cert_hashes.is_empty() || !self.validation.spki_hashes.is_empty()
    }

    fn check_chain(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        facts: &CertFacts,
        now: UnixTime,
    ) -> Result<(), Refused> {
        let Some(roots) = &self.roots else { return Ok(()) };
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        // BoringSSL trusts a leaf that is itself among the roots (partial chains are on in Envoy).
        if roots.ders.iter().any(|r| r.as_ref() == leaf.as_ref()) {
            if seconds < facts.not_before {
                return Err(chain(CertificateError::NotValidYet, 0, "certificate is not yet valid"));
            }
            if seconds > facts.not_after && !self.validation.allow_expired {
                return Err(chain(CertificateError::Expired, 0, "certificate has expired"));
            }
            return Ok(());
        }
        match self.build_path(roots, leaf, rest, now) {
            Ok(()) => Ok(()),
            Err(webpki::Error::CertExpired { .. }) if self.validation.allow_expired => {
                let then = u64::try_from(facts.not_after).unwrap_or(0);
                let then = UnixTime::since_unix_epoch(std::time::Duration::from_secs(then));
                self.build_path(roots, leaf, rest, then).map_err(|e| explain(&e, facts, rest))
            }
            Err(e) => Err(explain(&e, facts, rest)),
        }
    }

    fn build_path(
        &self,
        roots: &Roots,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), webpki::Error> {
        let cert = EndEntityCert::try_from(leaf)?;
        let usage = match self.role {
            Role::Server { .. } => KeyUsage::client_auth(),
            Role::Client => KeyUsage::server_auth(),
        };
        let crls: Vec<&CertRevocationList<'_>> = self.crls.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&crls).ok().map(|b| {
            let depth = if self.validation.only_leaf_crl {
                RevocationCheckDepth::EndEntity
            } else {
                RevocationCheckDepth::Chain
            };
            b.with_depth(depth).with_expiration_policy(ExpirationPolicy::Enforce).build()
        });
        cert.verify_for_usage(self.algorithms.all, &roots.store.roots, rest, now, usage, revocation, None)
            .map(|_| ())
    }

    fn check_identity(&self, facts: &CertFacts) -> Result<(), Refused> {
        let v = &self.validation;
        let by_name =
            |n: &Arc<str>| facts.dns_sans.iter().any(|p| dns_match(n, p)) || facts.ip_sans.contains(n);
        if (!v.sans.is_empty() && !v.sans.iter().any(|m| san_matches(m, facts)))
            || (!self.names.is_empty() && !self.names.iter().any(by_name))
        {
            let text = format!("SAN matcher, certificate SANs are [{}]", facts.sans.join(", "));
            return Err(Refused { kind: Refusal::San, text, error: other("SAN") });
        }
        if self.has_pins() {
            let spki = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &facts.spki_sha256);
            if !v.cert_hashes.contains(&facts.fingerprint) && !v.spki_hashes.iter().any(|h| **h == *spki) {
                return Err(Refused {
                    kind: Refusal::Hash,
                    text: "verify cert hash".into(),
                    error: other("hash"),
                });
            }
        }
        Ok(())
    }
}

struct Refused {
    kind: Refusal,
    text: String,
    error: CertificateError,
}

fn other(what: &str) -> CertificateError {
    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Mismatch(String);
    CertificateError::Other(OtherError(Arc::new(Mismatch(what.into()))))
}

fn chain(error: CertificateError, depth: usize, what: &str) -> Refused {
    let text = format!("X509_verify_cert: certificate verification error at depth {depth}: {what}");
    Refused { kind: Refusal::Chain, text, error }
}

/// webpki's verdict in BoringSSL's words.
fn explain(e: &webpki::Error, facts: &CertFacts, rest: &[CertificateDer<'_>]) -> Refused {
    use CertificateError as C;
    use webpki::Error as W;
    match e {
        W::CertExpired { .. } => chain(C::Expired, 0, "certificate has expired"),
        W::CertNotValidYet { .. } => chain(C::NotValidYet, 0, "certificate is not yet valid"),
        W::CertRevoked => chain(C::Revoked, 0, "certificate revoked"),
        W::CrlExpired { .. } => chain(C::ExpiredRevocationList, 0, "CRL has expired"),
        W::UnknownRevocationStatus => chain(C::UnknownRevocationStatus, 0, "unable to get certificate CRL"),
        W::InvalidSignatureForPublicKey => chain(C::BadSignature, 0, "certificate signature failure"),
        W::RequiredEkuNotFoundContext(_) => chain(C::InvalidPurpose, 0, "unsupported certificate purpose"),
        W::CaUsedAsEndEntity | W::EndEntityUsedAsCa => chain(C::InvalidPurpose, 0, "invalid CA certificate"),
        W::PathLenConstraintViolated => chain(C::UnknownIssuer, 0, "path length constraint exceeded"),
        W::NameConstraintViolation => chain(C::UnknownIssuer, 0, "permitted subtree violation"),
        W::UnsupportedCriticalExtension => {
            chain(C::UnhandledCriticalExtension, 0, "unhandled critical extension")
        }
        _ => {
            let (depth, what) = dead_end(facts, rest);
            chain(C::UnknownIssuer, depth, what)
        }
    }
}

/// Where BoringSSL's path building would have stopped: it climbs by issuer name through what the peer sent.
fn dead_end(leaf: &CertFacts, rest: &[CertificateDer<'_>]) -> (usize, &'static str) {
    if leaf.self_issued {
        return (0, "self-signed certificate");
    }
    let rest: Vec<CertFacts> = rest.iter().filter_map(|d| CertFacts::read(d)).collect();
    let mut issuer = leaf.issuer.clone();
    for depth in 1..=rest.len() {
        let Some(next) = rest.iter().find(|c| c.subject == issuer) else {
            return (depth - 1, "unable to get local issuer certificate");
        };
        if next.self_issued {
            return (depth, "self-signed certificate in certificate chain");
        }
        issuer = next.issuer.clone();
    }
    (rest.len(), "unable to get local issuer certificate")
}

fn read_crls(pem: &[u8]) -> Option<Vec<CertRevocationList<'static>>> {
    CertificateRevocationListDer::pem_slice_iter(pem)
        .map(|der| {
            let der = der.ok()?;
            let crl: OwnedCertRevocationList =
                BorrowedCertRevocationList::from_der(&der).ok()?.to_owned().ok()?;
            Some(CertRevocationList::Owned(crl))
        })
        .collect()
}

fn san_matches(m: &SanMatcher, facts: &CertFacts) -> bool {
    let any = |list: &[Arc<str>]| list.iter().any(|s| m.matcher.matches(s.as_bytes()));
    let dns = || match &m.matcher {
        // An exact DNS name also matches a wildcard in the certificate.
        StringMatcher::Exact { value, .. } => facts.dns_sans.iter().any(|p| dns_match(value, p)),
        _ => any(&facts.dns_sans),
    };
    match m.kind {
        SanKind::Dns => dns(),
        SanKind::Uri => any(&facts.uri_sans),
        SanKind::Ip => any(&facts.ip_sans),
        SanKind::Email => any(&facts.email_sans),
        SanKind::Any => dns() || any(&facts.uri_sans) || any(&facts.ip_sans) || any(&facts.email_sans),
    }
}

/// Whether a DNS SAN covers `name`: equal without case, or `*.` over exactly one label.
pub(super) fn dns_match(name: &str, pattern: &str) -> bool {
    if name.eq_ignore_ascii_case(pattern) {
        return true;
    }
    match (pattern.strip_prefix('*'), name.find('.')) {
        (Some(suffix), Some(dot)) if dot > 0 && suffix.len() > 1 => suffix.eq_ignore_ascii_case(&name[dot..]),
        _ => false,
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, rest, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        outcome::note(|o| o.sigalg = Some(dss.scheme));
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        outcome::note(|o| o.sigalg = Some(dss.scheme));
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.role == Role::Server { required: true }
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Envoy sends the roots' names; clients in meshes ignore them, and leaving them out saves bytes in each handshake.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, rest, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
