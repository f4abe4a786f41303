//! Verification of a peer's chain against roots, for either end of a connection and without a DNS name: SPIFFE certificates carry
//! URIs alone, which the caller matches. The texts are those of Envoy's transport failure reason (BoringSSL's words), because dashboards and
//! people look for them.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor, UnixTime};
use webpki::{
    EndEntityCert, KeyUsage, OwnedCertRevocationList, RevocationOptionsBuilder, UnknownStatusPolicy,
};
use x509_parser::extensions::ParsedExtension;

use crate::identity::{IdentityError, certificates_from_pem, describe, to_pem};

/// Roots, and what they have revoked.
#[derive(Clone)]
pub struct TrustBundle {
    roots: Arc<[CertificateDer<'static>]>,
    anchors: Arc<[TrustAnchor<'static>]>,
    crls: Arc<[webpki::CertRevocationList<'static>]>,
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustBundle")
            .field("roots", &self.roots.len())
            .field("crls", &self.crls.len())
            .finish()
    }
}

/// Two bundles with the same roots and lists are equal.
impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        self.roots == other.roots && self.crls.len() == other.crls.len()
    }
}

impl TrustBundle {
    /// Roots as certificates; doubles are dropped. `origin` goes into errors.
    ///
    /// # Errors
    /// No certificate, or one that cannot be a root.
    pub fn new(origin: &str, roots: Vec<CertificateDer<'static>>) -> Result<Self, IdentityError> {
        let mut unique: Vec<CertificateDer<'static>> = Vec::with_capacity(roots.len());
        for root in roots {
            if !unique.contains(&root) {
                unique.push(root);
            }
        }
        if unique.is_empty() {
            return Err(IdentityError::Empty(origin.to_owned()));
        }
        let anchors = unique
            .iter()
            .enumerate()
            .map(|(index, root)| {
                webpki::anchor_from_trusted_cert(root).map(|anchor| anchor.to_owned()).map_err(|error| {
                    IdentityError::Certificate { origin: origin.to_owned(), index, reason: error.to_string() }
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self { roots: unique.into(), anchors: anchors.into(), crls: Arc::new([]) })
    }

    /// Roots from PEM.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn from_pem(origin: &str, pem: &[u8]) -> Result<Self, IdentityError> {
        Self::new(origin, certificates_from_pem(origin, pem)?)
    }

    /// Adds revocation lists in PEM. As in Envoy, a chain is then refused if a list of its issuer names one of its certificates; a
    /// certificate whose issuer has no list passes.
    ///
    /// # Errors
    /// PEM or a list that does not parse.
    pub fn with_crls(mut self, origin: &str, pem: &[u8]) -> Result<Self, IdentityError> {
        use rustls_pki_types::pem::PemObject as _;
        let error =
            |index, reason: String| IdentityError::Certificate { origin: origin.to_owned(), index, reason };
        let mut crls = Vec::new();
        for (index, der) in CertificateRevocationListDer::pem_slice_iter(pem).enumerate() {
            let der = der.map_err(|pem| error(index, format!("revocation list: {pem}")))?;
            let list = OwnedCertRevocationList::from_der(&der)
                .map_err(|bad| error(index, format!("revocation list: {bad}")))?;
            crls.push(list.into());
        }
        self.crls = crls.into();
        Ok(self)
    }

    /// The roots.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The roots as webpki and rustls take them.
    #[must_use]
    pub fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }

    /// The roots as PEM.
    #[must_use]
    pub fn to_pem(&self) -> String {
        to_pem(&self.roots)
    }

    /// Verifies that `leaf` leads over `intermediates` to one of the roots, is valid now and serves for `usage`. Names are not looked at.
    ///
    /// # Errors
    /// What is wrong, in Envoy's words.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: Usage,
        now: SystemTime,
    ) -> Result<(), VerifyError> {
        let certificate = EndEntityCert::try_from(leaf).map_err(|error| VerifyError::from_webpki(&error))?;
        let lists: Vec<&webpki::CertRevocationList<'_>> = self.crls.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&lists)
            .ok()
            .map(|options| options.with_status_policy(UnknownStatusPolicy::Allow).build());
        let time = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
        let verified = certificate.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &self.anchors,
            intermediates,
            time,
            usage.key_usage(),
            revocation,
            None,
        );
        match verified {
            Ok(_) => Ok(()),
            // webpki cannot say of a self-signed leaf more than that it does not know its issuer.
            Err(webpki::Error::UnknownIssuer) if describe(leaf).is_ok_and(|leaf| leaf.self_issued) => {
                Err(VerifyError::SelfSigned)
            }
            // Roots of one name and different keys (a mesh before and after its root changed) are told apart by key id, as BoringSSL does.
            Err(webpki::Error::InvalidSignatureForPublicKey) if !self.has_issuer_key(leaf, intermediates) => {
                Err(VerifyError::UnknownIssuer)
            }
            Err(error) => Err(VerifyError::from_webpki(&error)),
        }
    }

    /// Whether a root or an intermediate has the key that the leaf names as its issuer's; true if it names none.
    fn has_issuer_key(&self, leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> bool {
        let Some(wanted) = key_id(leaf, |extension| match extension {
            ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
            _ => None,
        }) else {
            return true;
        };
        let own = |certificate: &CertificateDer<'_>| {
            key_id(certificate, |extension| match extension {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                _ => None,
            })
        };
        self.roots
            .iter()
            .chain(intermediates)
            .any(|certificate| own(certificate).is_none_or(|id| id == wanted))
    }
}

fn key_id(
    certificate: &CertificateDer<'_>,
    pick: impl Fn(&ParsedExtension<'_>) -> Option<Vec<u8>>,
) -> Option<Vec<u8>> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    parsed.extensions().iter().find_map(|extension| pick(extension.parsed_extension()))
}

/// What the peer uses its certificate for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// The peer is a server: a client verifies.
    Server,
    /// The peer is a client: a server verifies.
    Client,
}

impl Usage {
    fn key_usage(self) -> KeyUsage {
        match self {
            Self::Server => KeyUsage::server_auth(),
            Self::Client => KeyUsage::client_auth(),
        }
    }
}

/// Why a chain was refused. `Display` gives the words behind `verify cert failed: ` in Envoy's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VerifyError {
    /// The validity is over.
    Expired,
    /// The validity has not begun.
    NotYetValid,
    /// No root leads to it.
    UnknownIssuer,
    /// It is its own issuer and no root.
    SelfSigned,
    /// A signature does not hold.
    BadSignature,
    /// A revocation list names it.
    Revoked,
    /// It may not serve for this.
    Purpose,
    /// None of its names is one that is accepted.
    SanMismatch,
    /// The peer sent none.
    NoCertificate,
    /// Anything else, with the verifier's words.
    Other(String),
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self {
            Self::Expired => "certificate has expired",
            Self::NotYetValid => "certificate is not yet valid",
            Self::UnknownIssuer => "unable to get local issuer certificate",
            Self::SelfSigned => "self signed certificate",
            Self::BadSignature => "certificate signature failure",
            Self::Revoked => "certificate revoked",
            Self::Purpose => "unsupported certificate purpose",
            Self::SanMismatch => return f.write_str("verify SAN list"),
            Self::NoCertificate => return f.write_str("no certificate"),
            Self::Other(words) => words,
        };
        write!(f, "X509_verify_cert: certificate verification error at depth 0: {words}")
    }
}

impl std::error::Error for VerifyError {}

impl VerifyError {
    fn from_webpki(error: &webpki::Error) -> Self {
        use webpki::Error as E;
        match error {
            E::CertExpired { .. } => Self::Expired,
            E::CertNotValidYet { .. } => Self::NotYetValid,
            E::UnknownIssuer => Self::UnknownIssuer,
            E::InvalidSignatureForPublicKey => Self::BadSignature,
            E::CertRevoked => Self::Revoked,
            E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension | E::CaUsedAsEndEntity => Self::Purpose,
            E::CertNotValidForName(_) => Self::SanMismatch,
            other => Self::Other(other.to_string()),
        }
    }

    /// The alert that rustls sends for it.
    #[must_use]
    pub fn to_rustls(&self) -> rustls::Error {
        use rustls::CertificateError as E;
        rustls::Error::InvalidCertificate(match self {
            Self::Expired => E::Expired,
            Self::NotYetValid => E::NotValidYet,
            Self::UnknownIssuer | Self::SelfSigned => E::UnknownIssuer,
            Self::BadSignature => E::BadSignature,
            Self::Revoked => E::Revoked,
            Self::Purpose => E::InvalidPurpose,
            Self::SanMismatch => E::NotValidForName,
            Self::NoCertificate => return rustls::Error::NoCertificatesPresented,
            Self::Other(_) => E::Other(rustls::OtherError(Arc::new(self.clone()))),
        })
    }
}

#[cfg(test)]
mod tests;
