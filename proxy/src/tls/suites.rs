//! Cipher suites, curves, protocol versions and signature schemes under the names of BoringSSL, which Envoy's configuration,
//! logs and stats use. Follows `TlsParameters`.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs::{self, cipher_suite as cs, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{
    CipherSuite, NamedGroup, ProtocolVersion, SignatureScheme, SupportedCipherSuite, SupportedProtocolVersion,
};

use super::ContextError;
use crate::config::tls::{CommonTls, TlsVersion};

/// TLS 1.3 suites cannot be configured in BoringSSL: they are always on, in its order for hardware with AES.
const TLS13: [SupportedCipherSuite; 3] =
    [cs::TLS13_AES_128_GCM_SHA256, cs::TLS13_AES_256_GCM_SHA384, cs::TLS13_CHACHA20_POLY1305_SHA256];

/// TLS 1.2 suites in Envoy's default order.
const TLS12: [(&str, SupportedCipherSuite); 6] = [
    ("ECDHE-ECDSA-AES128-GCM-SHA256", cs::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-ECDSA-CHACHA20-POLY1305", cs::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("ECDHE-RSA-AES128-GCM-SHA256", cs::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-RSA-CHACHA20-POLY1305", cs::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
    ("ECDHE-ECDSA-AES256-GCM-SHA384", cs::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-RSA-AES256-GCM-SHA384", cs::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
];

/// Suites BoringSSL knows and rustls leaves out (CBC, static RSA): skipped where they stand beside others.
const KNOWN_UNSUPPORTED: [&str; 12] = [
    "AES128-GCM-SHA256",
    "AES128-SHA",
    "AES128-SHA256",
    "AES256-GCM-SHA384",
    "AES256-SHA",
    "AES256-SHA256",
    "DES-CBC3-SHA",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-RSA-AES256-SHA",
    "ECDHE-RSA-AES128-SHA256",
];

/// The provider with the configured suites and curves.
pub(super) fn provider(tls: &CommonTls) -> Result<Arc<CryptoProvider>, ContextError> {
    let mut cipher_suites = TLS13.to_vec();
    cipher_suites.extend(tls12_suites(&tls.ciphers)?);
    Ok(Arc::new(CryptoProvider {
        cipher_suites,
        kx_groups: groups(&tls.curves)?,
        ..aws_lc_rs::default_provider()
    }))
}

/// Checks configured cipher suites, for the NACK.
///
/// # Errors
/// Names the suite that is unknown, or says that none is left.
pub fn check_ciphers(names: &[Arc<str>]) -> Result<(), ContextError> {
    tls12_suites(names).map(|_| ())
}

/// Checks configured curves, for the NACK.
///
/// # Errors
/// Names the curve that is unknown.
pub fn check_curves(names: &[Arc<str>]) -> Result<(), ContextError> {
    groups(names).map(|_| ())
}

fn tls12_suites(names: &[Arc<str>]) -> Result<Vec<SupportedCipherSuite>, ContextError> {
    if names.is_empty() {
        return Ok(TLS12.iter().map(|(_, s)| *s).collect());
    }
    let mut out = Vec::new();
    // `[A|B]` is BoringSSL's equal-preference group.
    for name in names.iter().flat_map(|n| n.trim_matches(['[', ']']).split('|').collect::<Vec<_>>()) {
        match TLS12.iter().find(|(n, _)| *n == name) {
            Some((_, suite)) => out.push(*suite),
            None if KNOWN_UNSUPPORTED.contains(&name)
                || TLS13.iter().any(|s| cipher_name(s.suite()) == name) =>
            {
                tracing::debug!("cipher suite {name} is not offered");
            }
            None => return Err(ContextError::Ciphers(name.into())),
        }
    }
    if out.is_empty() {
        return Err(ContextError::Ciphers(names.join(":").into()));
    }
    Ok(out)
}

fn groups(names: &[Arc<str>]) -> Result<Vec<&'static dyn SupportedKxGroup>, ContextError> {
    if names.is_empty() {
        // Envoy's default: X25519, P-256.
        return Ok(vec![kx_group::X25519, kx_group::SECP256R1]);
    }
    names
        .iter()
        .map(|name| match &**name {
            "X25519" => Ok(kx_group::X25519),
            "P-256" | "prime256v1" => Ok(kx_group::SECP256R1),
            "P-384" | "secp384r1" => Ok(kx_group::SECP384R1),
            "X25519MLKEM768" => Ok(kx_group::X25519MLKEM768),
            "MLKEM1024" => Ok(kx_group::MLKEM1024),
            _ => Err(ContextError::Curves(name.clone())),
        })
        .collect()
}

/// The versions from minimum to maximum.
pub(super) fn versions(tls: &CommonTls) -> Vec<&'static SupportedProtocolVersion> {
    let mut out = Vec::new();
    if tls.max_version >= TlsVersion::V1_3 {
        out.push(&rustls::version::TLS13);
    }
    if tls.min_version <= TlsVersion::V1_2 {
        out.push(&rustls::version::TLS12);
    }
    out
}

/// BoringSSL's name of a negotiated version.
pub(super) fn version_name(v: Option<ProtocolVersion>) -> &'static str {
    match v {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "",
    }
}

/// Whether a suite belongs to TLS 1.3: a client that offers one speaks it.
pub(super) fn is_tls13(suite: CipherSuite) -> bool {
    TLS13.iter().any(|s| s.suite() == suite)
}

/// OpenSSL's name of a negotiated suite.
pub(super) fn cipher_name(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        other => TLS12.iter().find(|(_, s)| s.suite() == other).map_or("", |(n, _)| n),
    }
}

/// BoringSSL's name of a key exchange group.
pub(super) fn curve_name(group: NamedGroup) -> &'static str {
    match group {
        NamedGroup::X25519 => "X25519",
        NamedGroup::secp256r1 => "P-256",
        NamedGroup::secp384r1 => "P-384",
        NamedGroup::X25519MLKEM768 => "X25519MLKEM768",
        NamedGroup::MLKEM1024 => "MLKEM1024",
        _ => "",
    }
}

/// BoringSSL's name of the signature scheme the peer signed with.
pub(super) fn sigalg_name(scheme: SignatureScheme) -> &'static str {
    match scheme {
        SignatureScheme::RSA_PKCS1_SHA256 => "rsa_pkcs1_sha256",
        SignatureScheme::RSA_PKCS1_SHA384 => "rsa_pkcs1_sha384",
        SignatureScheme::RSA_PKCS1_SHA512 => "rsa_pkcs1_sha512",
        SignatureScheme::RSA_PSS_SHA256 => "rsa_pss_rsae_sha256",
        SignatureScheme::RSA_PSS_SHA384 => "rsa_pss_rsae_sha384",
        SignatureScheme::RSA_PSS_SHA512 => "rsa_pss_rsae_sha512",
        SignatureScheme::ECDSA_NISTP256_SHA256 => "ecdsa_secp256r1_sha256",
        SignatureScheme::ECDSA_NISTP384_SHA384 => "ecdsa_secp384r1_sha384",
        SignatureScheme::ECDSA_NISTP521_SHA512 => "ecdsa_secp521r1_sha512",
        SignatureScheme::ED25519 => "ed25519",
        _ => "",
    }
}
