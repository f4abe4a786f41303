//! Private keys for a certificate request. Istio's defaults: RSA 2048 unless `ECC_SIGNATURE_ALGORITHM` asks for ECDSA; Outrigger's
//! default is P-256, whose handshakes cost a fraction and which every istiod signs.

use rcgen::KeyPair;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// The kinds of keys that can be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyAlgorithm {
    /// ECDSA on P-256.
    #[default]
    EcdsaP256,
    /// ECDSA on P-384.
    EcdsaP384,
    /// RSA with 2048 bits.
    Rsa2048,
    /// RSA with 3072 bits.
    Rsa3072,
    /// RSA with 4096 bits.
    Rsa4096,
}

/// No key came about.
#[derive(Debug, thiserror::Error)]
#[error("making a {algorithm:?} key: {reason}")]
pub struct KeyError {
    algorithm: KeyAlgorithm,
    reason: String,
}

/// A private key that signs a request and then serves.
pub struct PrivateKey {
    pair: KeyPair,
}

impl PrivateKey {
    /// Makes a key.
    ///
    /// # Errors
    /// The random source or the crypto library failed.
    pub fn generate(algorithm: KeyAlgorithm) -> Result<Self, KeyError> {
        let made = match algorithm {
            KeyAlgorithm::EcdsaP256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
            KeyAlgorithm::EcdsaP384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
            KeyAlgorithm::Rsa2048 => {
                KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)
            }
            KeyAlgorithm::Rsa3072 => {
                KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_3072)
            }
            KeyAlgorithm::Rsa4096 => {
                KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_4096)
            }
        };
        made.map(|pair| Self { pair }).map_err(|error| KeyError { algorithm, reason: error.to_string() })
    }

    /// The key in PKCS#8.
    #[must_use]
    pub fn to_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pair.serialize_der()))
    }

    /// The key in PKCS#8 as PEM.
    #[must_use]
    pub fn to_pem(&self) -> String {
        self.pair.serialize_pem()
    }

    pub(crate) fn pair(&self) -> &KeyPair {
        &self.pair
    }
}
