//! A certificate with its key, checked: the key belongs to the leaf, each certificate parses, validity is known.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::spiffe::{self, SpiffeId};

/// What is wrong with a certificate, a chain or a key; `origin` names the file or the peer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdentityError {
    /// PEM or DER that does not parse.
    #[error("{origin}: certificate {index}: {reason}")]
    Certificate {
        /// File or peer.
        origin: String,
        /// Position in the chain, from 0.
        index: usize,
        /// What is wrong.
        reason: String,
    },
    /// Nothing there.
    #[error("{0}: no certificate")]
    Empty(String),
    /// A key that is none, or of a kind that cannot be used.
    #[error("{origin}: private key: {reason}")]
    Key {
        /// File or peer.
        origin: String,
        /// What is wrong.
        reason: String,
    },
    /// Key and leaf do not belong together.
    #[error("{0}: the private key does not match the certificate")]
    Mismatch(String),
}

/// A chain with its key, ready to serve.
#[derive(Clone)]
pub struct WorkloadCertificate {
    /// Key and chain in rustls' form.
    pub certified: Arc<CertifiedKey>,
    /// The private key.
    pub key: Arc<PrivateKeyDer<'static>>,
    /// Leaf first; a self-signed root at the end is left out.
    pub chain: Vec<CertificateDer<'static>>,
    /// Start of the leaf's validity.
    pub not_before: SystemTime,
    /// End of the leaf's validity.
    pub not_after: SystemTime,
    /// The leaf's SPIFFE id, if it has one.
    pub spiffe_id: Option<SpiffeId>,
    /// The leaf's serial number, hexadecimal.
    pub serial: String,
}

impl fmt::Debug for WorkloadCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadCertificate")
            .field("spiffe_id", &self.spiffe_id)
            .field("serial", &self.serial)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl WorkloadCertificate {
    /// Checks a chain and its key. `origin` goes into errors.
    ///
    /// # Errors
    /// An empty chain, a certificate or key that does not parse, a key of another certificate.
    pub fn new(
        origin: &str,
        mut chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, IdentityError> {
        let described = chain
            .iter()
            .enumerate()
            .map(|(index, certificate)| {
                describe(certificate).map_err(|reason| IdentityError::Certificate {
                    origin: origin.to_owned(),
                    index,
                    reason,
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let Some(leaf) = described.first() else { return Err(IdentityError::Empty(origin.to_owned())) };
        let (not_before, not_after, serial) = (leaf.not_before, leaf.not_after, leaf.serial.clone());
        // The peer has the root already, or would not trust it from here.
        if chain.len() > 1 && described.last().is_some_and(|last| last.self_issued) {
            chain.pop();
        }
        let spiffe_id = chain.first().and_then(|leaf| spiffe::identity(leaf).ok().flatten());
        let key_error = |error: &rustls::Error| IdentityError::Key {
            origin: origin.to_owned(),
            reason: error.to_string(),
        };
        let signer =
            rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(|error| key_error(&error))?;
        let certified = CertifiedKey::new(chain.clone(), signer);
        match certified.keys_match() {
            // A key type that cannot tell its public half is taken as it is.
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(IdentityError::Mismatch(origin.to_owned()));
            }
            Err(error) => return Err(key_error(&error)),
        }
        Ok(Self {
            certified: Arc::new(certified),
            key: Arc::new(key),
            chain,
            not_before,
            not_after,
            spiffe_id,
            serial,
        })
    }

    /// [`Self::new`] from PEM texts. PKCS#8, PKCS#1 and SEC 1 keys are read.
    ///
    /// # Errors
    /// As [`Self::new`]; PEM without certificate or key.
    pub fn from_pem(origin: &str, chain: &[u8], key: &[u8]) -> Result<Self, IdentityError> {
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| IdentityError::Key { origin: origin.to_owned(), reason: error.to_string() })?;
        Self::new(origin, certificates_from_pem(origin, chain)?, key)
    }

    /// The key as PEM.
    #[must_use]
    pub fn key_pem(&self) -> String {
        let label = match self.key.as_ref() {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        pem(label, self.key.secret_der())
    }

    /// The chain as PEM, leaf first.
    #[must_use]
    pub fn chain_pem(&self) -> String {
        to_pem(&self.chain)
    }

    /// The leaf's serial number as bytes.
    #[must_use]
    pub fn serial_bytes(&self) -> Vec<u8> {
        let digits = self.serial.as_bytes();
        digits
            .chunks(2)
            .filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
            .collect()
    }

    /// What is left of the validity; zero if it is over.
    #[must_use]
    pub fn remaining(&self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or_default()
    }
}

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// Hexadecimal, as Envoy's `/certs` prints it.
    pub serial: String,
    /// The subject, as text.
    pub subject: String,
    /// The issuer, as text.
    pub issuer: String,
    /// Whether subject and issuer are the same: a root.
    pub self_issued: bool,
}

/// Reads a certificate's own words.
///
/// # Errors
/// Bytes that are not a certificate.
pub fn describe(certificate: &CertificateDer<'_>) -> Result<Description, String> {
    let (rest, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| format!("not a certificate: {error}"))?;
    if !rest.is_empty() {
        return Err("bytes after the certificate".to_owned());
    }
    let time = |time: x509_parser::time::ASN1Time| SystemTime::from(time.to_datetime());
    Ok(Description {
        not_before: time(parsed.validity().not_before),
        not_after: time(parsed.validity().not_after),
        serial: parsed.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
        subject: parsed.subject().to_string(),
        issuer: parsed.issuer().to_string(),
        self_issued: parsed.subject().as_raw() == parsed.issuer().as_raw(),
    })
}

/// The certificates in a PEM text; other sections are skipped.
///
/// # Errors
/// A broken section, or no certificate at all.
pub fn certificates_from_pem(
    origin: &str,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let certificates = CertificateDer::pem_slice_iter(pem)
        .enumerate()
        .map(|(index, certificate)| {
            certificate.map_err(|error| IdentityError::Certificate {
                origin: origin.to_owned(),
                index,
                reason: error.to_string(),
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    if certificates.is_empty() {
        return Err(IdentityError::Empty(origin.to_owned()));
    }
    Ok(certificates)
}

/// Certificates as PEM.
#[must_use]
pub fn to_pem(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|c| pem("CERTIFICATE", c)).collect()
}

fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in base64::engine::general_purpose::STANDARD.encode(der).as_bytes().chunks(64) {
        text.extend(line.iter().map(|&byte| char::from(byte)));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::CertificateAuthority;
    use crate::key::{KeyAlgorithm, PrivateKey};

    #[test]
    fn certificate_survives_pem_without_its_root() {
        let authority = CertificateAuthority::generate("test").unwrap();
        let id = SpiffeId::workload("td", "ns", "sa");
        let made = authority.issue(&id, Duration::from_secs(3600)).unwrap();
        assert_eq!(made.chain.len(), 1);
        assert_eq!(made.spiffe_id, Some(id));
        let remaining = made.remaining(SystemTime::now()).as_secs();
        assert!((3590..=3600).contains(&remaining), "{remaining}");
        let PrivateKeyDer::Pkcs8(key) = made.key.as_ref() else { panic!("PKCS#8") };
        let key = rcgen::KeyPair::try_from(key.secret_pkcs8_der()).unwrap().serialize_pem();
        let read =
            WorkloadCertificate::from_pem("memory", made.chain_pem().as_bytes(), key.as_bytes()).unwrap();
        assert_eq!((read.serial, read.not_after), (made.serial, made.not_after));
    }

    #[test]
    fn foreign_key_is_refused() {
        let authority = CertificateAuthority::generate("test").unwrap();
        let made = authority.issue(&SpiffeId::workload("td", "ns", "sa"), Duration::from_secs(60)).unwrap();
        let other = PrivateKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let error = WorkloadCertificate::new("/etc/certs", made.chain, other.to_der()).unwrap_err();
        assert_eq!(error.to_string(), "/etc/certs: the private key does not match the certificate");
    }

    #[test]
    fn broken_input_names_its_origin() {
        let error = |chain: &str, key: &str| {
            WorkloadCertificate::from_pem("f.pem", chain.as_bytes(), key.as_bytes()).unwrap_err().to_string()
        };
        let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).unwrap().to_pem();
        assert_eq!(error("", &key), "f.pem: no certificate");
        assert!(error("", "nothing").starts_with("f.pem: private key: "));
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(error(broken, &key).starts_with("f.pem: certificate 0: not a certificate"));
    }

    #[test]
    fn rsa_key_signs_a_request_that_is_served() {
        let authority = CertificateAuthority::generate("test").unwrap();
        let id = SpiffeId::workload("td", "ns", "sa");
        let key = PrivateKey::generate(KeyAlgorithm::Rsa2048).unwrap();
        let csr = crate::csr::certificate_request(&key, &id).unwrap();
        assert_eq!(CertificateAuthority::requested_id(&csr).unwrap(), id);
        let pem = authority.sign(&csr, &id, SystemTime::now(), Duration::from_secs(60)).unwrap();
        let chain = certificates_from_pem("ca", pem.concat().as_bytes()).unwrap();
        assert!(WorkloadCertificate::new("ca", chain, key.to_der()).is_ok());
    }
}
