//! PEM of a `TlsCertificate` or of trusted roots to what rustls uses, with Envoy's wording of what is wrong with it.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::peer::CertFacts;
use crate::config::tls::TlsCertificate;

/// Why a certificate, key or set of roots cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CertificateError {
    #[error("Failed to load certificate chain from {0}")]
    Chain(String),
    #[error("Failed to load private key from {0}")]
    Key(String),
    #[error(
        "Failed to load private key from {0}, Cause: error:0b000074:X.509 certificate routines:OPENSSL_internal:KEY_VALUES_MISMATCH"
    )]
    Mismatch(String),
    #[error("Failed to load trusted CA certificates from {0}")]
    Roots(String),
    #[error("Failed to load CRL from {0}")]
    Crl(String),
}

/// A certificate chain ready to present, with its leaf's facts.
#[derive(Debug)]
pub(super) struct Identity {
    pub key: Arc<CertifiedKey>,
    pub facts: Arc<CertFacts>,
}

/// Trusted roots, in the forms that webpki and the error texts need.
#[derive(Debug)]
pub(super) struct Roots {
    pub ders: Vec<CertificateDer<'static>>,
    pub store: Arc<RootCertStore>,
}

fn place(path: Option<&Arc<str>>) -> String {
    path.map_or_else(|| "<inline>".into(), ToString::to_string)
}

impl Identity {
    pub(super) fn load(
        cert: &TlsCertificate,
        provider: &CryptoProvider,
    ) -> Result<Identity, CertificateError> {
        let chain_place = || place(cert.chain_path.as_ref());
        let key_place = || place(cert.key_path.as_ref());
        let chain = CertificateDer::pem_slice_iter(&cert.chain_pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| CertificateError::Chain(chain_place()))?;
        let leaf = chain.first().ok_or_else(|| CertificateError::Chain(chain_place()))?;
        let facts = CertFacts::read(leaf).ok_or_else(|| CertificateError::Chain(chain_place()))?;
        let key =
            PrivateKeyDer::from_pem_slice(&cert.key_pem).map_err(|_| CertificateError::Key(key_place()))?;
        let mut key = CertifiedKey::from_der(chain, key, provider).map_err(|e| match e {
            rustls::Error::InconsistentKeys(_) => CertificateError::Mismatch(key_place()),
            _ => CertificateError::Key(key_place()),
        })?;
        key.ocsp = cert.ocsp.as_ref().map(|o| o.to_vec());
        Ok(Identity { key: Arc::new(key), facts: Arc::new(facts) })
    }
}

impl Roots {
    pub(super) fn load(pem: &[u8], path: Option<&Arc<str>>) -> Result<Roots, CertificateError> {
        let mut store = RootCertStore::empty();
        let mut ders = Vec::new();
        for der in CertificateDer::pem_slice_iter(pem) {
            let der = der.map_err(|_| CertificateError::Roots(place(path)))?;
            // A certificate that webpki cannot read (a version 1 root, say) trusts nothing; Envoy loads it, so others stay.
            if store.add(der.clone()).is_err() && CertFacts::read(&der).is_none() {
                return Err(CertificateError::Roots(place(path)));
            }
            ders.push(der);
        }
        if ders.is_empty() {
            return Err(CertificateError::Roots(place(path)));
        }
        Ok(Roots { ders, store: Arc::new(store) })
    }

    /// The system's roots (`system_root_certs`).
    pub(super) fn system() -> Roots {
        let ders = rustls_native_certs::load_native_certs().certs;
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(ders.iter().cloned());
        Roots { ders, store: Arc::new(store) }
    }
}

/// Checks a certificate and its key, for the NACK.
///
/// # Errors
/// Says which of the two is bad, or that they do not belong together.
pub fn check_certificate(cert: &TlsCertificate) -> Result<(), CertificateError> {
    Identity::load(cert, &rustls::crypto::aws_lc_rs::default_provider()).map(|_| ())
}

/// Checks PEM of trusted roots, for the NACK.
///
/// # Errors
/// When no certificate can be read from it.
pub fn check_roots(pem: &[u8], path: Option<&Arc<str>>) -> Result<(), CertificateError> {
    Roots::load(pem, path).map(|_| ())
}
