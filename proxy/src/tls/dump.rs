//! What `/certs` of the admin interface tells of a certificate. Follows `envoy.admin.v3.CertificateDetails`.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::peer::CertFacts;

/// One certificate of a PEM text.
#[derive(Clone, Debug)]
pub struct CertDetails {
    pub facts: CertFacts,
    /// Whole days from now to the end of validity; 0 once it has passed.
    pub days_until_expiration: u64,
}

/// Reads every certificate of a PEM text, leaf first; what cannot be read is left out.
pub fn describe(pem: &[u8], now_unix: i64) -> Vec<CertDetails> {
    CertificateDer::pem_slice_iter(pem)
        .filter_map(|der| CertFacts::read(&der.ok()?))
        .map(|facts| {
            let left = facts.not_after.saturating_sub(now_unix) / 86_400;
            CertDetails { days_until_expiration: u64::try_from(left).unwrap_or(0), facts }
        })
        .collect()
}
