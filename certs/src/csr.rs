//! The certificate request, as istio-agent makes it: an empty organization as subject and the SPIFFE id as the only name.
//! Source: `GenCSRTemplate` in security/pkg/pki/util of istio/istio.

use rcgen::{CertificateParams, DistinguishedName, DnType, SanType};

use crate::key::PrivateKey;
use crate::spiffe::SpiffeId;

/// No request came about.
#[derive(Debug, thiserror::Error)]
#[error("certificate request for {id}: {reason}")]
pub struct CsrError {
    id: String,
    reason: String,
}

/// A PEM request for `id`, signed by `key`.
///
/// # Errors
/// An id that is not ASCII, or a failure to sign.
pub fn certificate_request(key: &PrivateKey, id: &SpiffeId) -> Result<String, CsrError> {
    let error = |error: rcgen::Error| CsrError { id: id.to_string(), reason: error.to_string() };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "");
    params.subject_alt_names = vec![SanType::URI(id.to_string().try_into().map_err(error)?)];
    params.serialize_request(key.pair()).and_then(|request| request.pem()).map_err(error)
}
