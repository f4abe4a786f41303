//! A certificate authority in memory, for the demo and for tests: signs requests to SPIFFE leafs. Not a CA for a mesh.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams,
    CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::identity::WorkloadCertificate;
use crate::key::{KeyAlgorithm, PrivateKey};
use crate::spiffe::SpiffeId;

/// How far back a leaf's validity starts: istiod's allowance for clocks that differ.
const BACKDATE: Duration = Duration::from_secs(120);
/// The root's validity.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The request does not parse, or its signature is of another key.
    #[error("certificate request: {0}")]
    Request(String),
    /// The crypto library failed.
    #[error("signing: {0}")]
    Signing(String),
}

/// A root that signs leafs.
pub struct CertificateAuthority {
    root: CertifiedIssuer<'static, KeyPair>,
    backdate: Duration,
}

impl CertificateAuthority {
    /// Makes a root for an organization.
    ///
    /// # Errors
    /// The crypto library failed.
    pub fn generate(organization: &str) -> Result<Self, SignError> {
        let signing = |error: rcgen::Error| SignError::Signing(error.to_string());
        let now = SystemTime::now();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, organization);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = OffsetDateTime::from(now - BACKDATE);
        params.not_after = OffsetDateTime::from(now + ROOT_LIFETIME);
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(signing)?;
        Ok(Self { root: CertifiedIssuer::self_signed(params, key).map_err(signing)?, backdate: BACKDATE })
    }

    /// Sets how far back leafs start; tests of validity use zero.
    #[must_use]
    pub fn with_backdate(mut self, backdate: Duration) -> Self {
        self.backdate = backdate;
        self
    }

    /// The root, PEM.
    #[must_use]
    pub fn root_pem(&self) -> String {
        self.root.pem()
    }

    /// The root.
    #[must_use]
    pub fn root_der(&self) -> CertificateDer<'static> {
        self.root.der().clone()
    }

    /// Signs a PEM request for `id`, whatever names the request has: as istiod, the authority decides by who asks. Returns the leaf and the
    /// root, PEM.
    ///
    /// # Errors
    /// A request that does not parse.
    pub fn sign(
        &self,
        csr: &str,
        id: &SpiffeId,
        start: SystemTime,
        ttl: Duration,
    ) -> Result<Vec<String>, SignError> {
        let request = CertificateSigningRequestParams::from_pem(csr)
            .map_err(|error| SignError::Request(error.to_string()))?;
        let params = self.leaf(vec![uri(id)?], start, ttl);
        let leaf = params
            .signed_by(&request.public_key, &self.root)
            .map_err(|error| SignError::Signing(error.to_string()))?;
        Ok(vec![leaf.pem(), self.root_pem()])
    }

    /// The first URI name that a request asks for.
    ///
    /// # Errors
    /// A request that does not parse or has no SPIFFE id.
    pub fn requested_id(csr: &str) -> Result<SpiffeId, SignError> {
        let request = CertificateSigningRequestParams::from_pem(csr)
            .map_err(|error| SignError::Request(error.to_string()))?;
        request
            .params
            .subject_alt_names
            .iter()
            .find_map(|name| match name {
                SanType::URI(uri) => uri.as_str().parse().ok(),
                _ => None,
            })
            .ok_or_else(|| SignError::Request("it has no SPIFFE id".to_owned()))
    }

    /// A certificate with its key for `id`, valid from now.
    ///
    /// # Errors
    /// The crypto library failed.
    pub fn issue(&self, id: &SpiffeId, ttl: Duration) -> Result<WorkloadCertificate, SignError> {
        self.issue_names(vec![uri(id)?], SystemTime::now(), ttl)
    }

    /// A certificate with its key for DNS names, as a control plane serves with.
    ///
    /// # Errors
    /// A name that is not ASCII; the crypto library failed.
    pub fn issue_dns(&self, names: &[&str], ttl: Duration) -> Result<WorkloadCertificate, SignError> {
        let names = names
            .iter()
            .map(|name| (*name).try_into().map(SanType::DnsName))
            .collect::<Result<_, rcgen::Error>>()
            .map_err(|error| SignError::Signing(error.to_string()))?;
        self.issue_names(names, SystemTime::now(), ttl)
    }

    /// [`Self::issue`] from any start.
    ///
    /// # Errors
    /// The crypto library failed.
    pub fn issue_from(
        &self,
        id: &SpiffeId,
        start: SystemTime,
        ttl: Duration,
    ) -> Result<WorkloadCertificate, SignError> {
        self.issue_names(vec![uri(id)?], start, ttl)
    }

    /// A revocation list that names these certificates, PEM.
    ///
    /// # Errors
    /// The crypto library failed.
    pub fn revocation_list(&self, revoked: &[&WorkloadCertificate]) -> Result<String, SignError> {
        let now = OffsetDateTime::now_utc();
        let revoked_certs = revoked
            .iter()
            .map(|certificate| RevokedCertParams {
                serial_number: SerialNumber::from_slice(&certificate.serial_bytes()),
                revocation_time: now,
                reason_code: None,
                invalidity_date: None,
            })
            .collect();
        let params = CertificateRevocationListParams {
            this_update: now,
            next_update: now + ROOT_LIFETIME,
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params
            .signed_by(&self.root)
            .and_then(|list| list.pem())
            .map_err(|error| SignError::Signing(error.to_string()))
    }

    fn issue_names(
        &self,
        names: Vec<SanType>,
        start: SystemTime,
        ttl: Duration,
    ) -> Result<WorkloadCertificate, SignError> {
        let signing = |error: String| SignError::Signing(error);
        let key =
            PrivateKey::generate(KeyAlgorithm::EcdsaP256).map_err(|error| signing(error.to_string()))?;
        let leaf = self
            .leaf(names, start, ttl)
            .signed_by(key.pair(), &self.root)
            .map_err(|error| signing(error.to_string()))?;
        WorkloadCertificate::new("authority", vec![leaf.der().clone(), self.root_der()], key.to_der())
            .map_err(|error| signing(error.to_string()))
    }

    fn leaf(&self, names: Vec<SanType>, start: SystemTime, ttl: Duration) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.not_before = OffsetDateTime::from(start - self.backdate);
        params.not_after = OffsetDateTime::from(start + ttl);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params
    }
}

fn uri(id: &SpiffeId) -> Result<SanType, SignError> {
    let text =
        id.to_string().try_into().map_err(|error: rcgen::Error| SignError::Signing(error.to_string()))?;
    Ok(SanType::URI(text))
}
