//! Facts of an X.509 certificate in Envoy's notation: subject and issuer after RFC 2253 with OpenSSL's escapes, SANs by kind,
//! serial and fingerprints. Follows Envoy's `SSL connection properties` (attributes and `%DOWNSTREAM_PEER_…%`).

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::{CommonState, HandshakeKind};
use x509_parser::prelude::*;

use super::outcome::Outcome;
use super::suites;
use crate::stream_info::TlsInfo;

/// Facts of one certificate.
#[derive(Clone, Debug, Default)]
pub struct CertFacts {
    pub uri_sans: Vec<Arc<str>>,
    pub dns_sans: Vec<Arc<str>>,
    pub ip_sans: Vec<Arc<str>>,
    pub email_sans: Vec<Arc<str>>,
    /// All of them, in the certificate's order.
    pub sans: Vec<Arc<str>>,
    pub subject: Arc<str>,
    pub issuer: Arc<str>,
    /// Lower-case hex without leading zero bytes.
    pub serial: Arc<str>,
    /// SHA-256 of the DER, lower-case hex.
    pub fingerprint: Arc<str>,
    /// SHA-256 of the public key info.
    pub spki_sha256: Vec<u8>,
    /// Unix seconds.
    pub not_before: i64,
    pub not_after: i64,
    pub self_issued: bool,
}

impl CertFacts {
    /// Reads a certificate. `None`: not X.509.
    pub fn read(der: &[u8]) -> Option<CertFacts> {
        let (_, cert) = X509Certificate::from_der(der).ok()?;
        let mut facts = CertFacts {
            subject: rfc2253(cert.subject()).into(),
            issuer: rfc2253(cert.issuer()).into(),
            serial: serial_hex(cert.raw_serial()).into(),
            fingerprint: hex(digest::digest(&digest::SHA256, der).as_ref()).into(),
            spki_sha256: digest::digest(&digest::SHA256, cert.public_key().raw).as_ref().to_vec(),
            not_before: cert.validity().not_before.timestamp(),
            not_after: cert.validity().not_after.timestamp(),
            self_issued: cert.subject().as_raw() == cert.issuer().as_raw(),
            ..CertFacts::default()
        };
        if let Ok(Some(san)) = cert.subject_alternative_name() {
            for name in &san.value.general_names {
                let (list, text) = match name {
                    GeneralName::URI(u) => (&mut facts.uri_sans, Some((*u).into())),
                    GeneralName::DNSName(d) => (&mut facts.dns_sans, Some((*d).into())),
                    GeneralName::RFC822Name(m) => (&mut facts.email_sans, Some((*m).into())),
                    GeneralName::IPAddress(ip) => (&mut facts.ip_sans, ip_text(ip)),
                    _ => continue,
                };
                list.extend(text.clone());
                facts.sans.extend(text);
            }
        }
        Some(facts)
    }
}

fn ip_text(octets: &[u8]) -> Option<Arc<str>> {
    if let Ok(v4) = <[u8; 4]>::try_from(octets) {
        return Some(Ipv4Addr::from(v4).to_string().into());
    }
    <[u8; 16]>::try_from(octets).ok().map(|v6| Ipv6Addr::from(v6).to_string().into())
}

fn serial_hex(raw: &[u8]) -> String {
    let start = raw.iter().position(|b| *b != 0).unwrap_or(raw.len().saturating_sub(1));
    hex(&raw[start..])
}

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2);
    for b in bytes {
        // Writing to a String cannot fail.
        let _ = write!(out, "{b:02x}");
    }
    out
}

/// OpenSSL's `XN_FLAG_RFC2253`: last relative name first, known types by short name.
fn rfc2253(name: &X509Name<'_>) -> String {
    let mut out = String::new();
    let rdns: Vec<_> = name.iter_rdn().collect();
    for (i, rdn) in rdns.iter().rev().enumerate() {
        if i > 0 {
            out.push(',');
        }
        for (j, attr) in rdn.iter().enumerate() {
            if j > 0 {
                out.push('+');
            }
            let oid = attr.attr_type().to_id_string();
            let (label, known) = short_name(&oid).map_or((&*oid, false), |n| (n, true));
            out.push_str(label);
            out.push('=');
            match attr.as_str() {
                Ok(text) if known => escape(text, &mut out),
                _ => {
                    out.push('#');
                    out.push_str(&hex(attr.attr_value().data));
                }
            }
        }
    }
    out
}

fn escape(text: &str, out: &mut String) {
    let last = text.len().saturating_sub(1);
    for (i, b) in text.bytes().enumerate() {
        match b {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => {
                out.push('\\');
                out.push(char::from(b));
            }
            b' ' if i == 0 || i == last => out.push_str("\\ "),
            b'#' if i == 0 => out.push_str("\\#"),
            0x20..=0x7e => out.push(char::from(b)),
            _ => {
                let _ = write!(out, "\\{b:02X}");
            }
        }
    }
}

fn short_name(oid: &str) -> Option<&'static str> {
    Some(match oid {
        "2.5.4.3" => "CN",
        "2.5.4.4" => "SN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "street",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.12" => "title",
        "2.5.4.42" => "GN",
        "2.5.4.43" => "initials",
        "2.5.4.46" => "dnQualifier",
        "1.2.840.113549.1.9.1" => "emailAddress",
        "0.9.2342.19200300.100.1.25" => "DC",
        "0.9.2342.19200300.100.1.1" => "UID",
        _ => return None,
    })
}

/// The session's facts for logs, headers and policies.
pub(super) fn tls_info(session: &CommonState, sni: Option<Arc<str>>, outcome: &Outcome) -> TlsInfo {
    let chain: Vec<Vec<u8>> =
        session.peer_certificates().unwrap_or_default().iter().map(|c| c.as_ref().to_vec()).collect();
    let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
    // A resumed session brings its certificates along but asks no verifier.
    let peer = outcome.peer.clone().or_else(|| chain.first().and_then(|d| CertFacts::read(d)).map(Arc::new));
    let mut info = TlsInfo {
        version: suites::version_name(session.protocol_version()),
        cipher: session.negotiated_cipher_suite().map_or("", |s| suites::cipher_name(s.suite())),
        alpn: session.alpn_protocol().map(|p| String::from_utf8_lossy(p).as_ref().into()),
        sni,
        peer_validated: outcome.validated || (resumed && !chain.is_empty()),
        peer_chain: chain,
        ..TlsInfo::default()
    };
    if let Some(p) = peer {
        info.peer_uri_sans.clone_from(&p.uri_sans);
        info.peer_dns_sans.clone_from(&p.dns_sans);
        info.peer_ip_sans.clone_from(&p.ip_sans);
        info.peer_subject = p.subject.clone();
        info.peer_issuer = p.issuer.clone();
        info.peer_serial = p.serial.clone();
        info.peer_fingerprint_256 = p.fingerprint.clone();
        info.peer_not_before = p.not_before;
        info.peer_not_after = p.not_after;
    }
    if let Some(l) = &outcome.local {
        info.local_uri_sans.clone_from(&l.uri_sans);
        info.local_dns_sans.clone_from(&l.dns_sans);
        info.local_subject = l.subject.clone();
    }
    info
}
