//! Handshake failures in the words of `%DOWNSTREAM_TRANSPORT_FAILURE_REASON%` and `%UPSTREAM_TRANSPORT_FAILURE_REASON%`:
//! BoringSSL's error strings between `TLS_error:` and `:TLS_error_end`.

use std::io;
use std::sync::Arc;

use rustls::{AlertDescription, Error, InvalidMessage, PeerIncompatible};

use super::certificate::CertificateError;
use super::outcome::Outcome;

/// Why a context cannot be built from its configuration; part of a NACK's text.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum ContextError {
    #[error(
        "Failed to initialize cipher suites {0}. The following ciphers were rejected when tried individually: {0}"
    )]
    Ciphers(Arc<str>),
    #[error("Failed to initialize ECDH curves {0}")]
    Curves(Arc<str>),
    #[error("{0}")]
    Certificate(Arc<CertificateError>),
    #[error("TLS configuration: {0}")]
    Rustls(String),
}

impl From<CertificateError> for ContextError {
    fn from(e: CertificateError) -> ContextError {
        ContextError::Certificate(Arc::new(e))
    }
}

/// A failed handshake.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{reason}")]
pub struct TlsError {
    /// The transport failure reason, as Envoy logs it.
    pub reason: Arc<str>,
    pub(super) kind: ErrorKind,
}

/// What stats tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorKind {
    NotReady,
    Verify,
    NoCertificate,
    Connection,
    /// The peer went away: an end, not an error.
    Closed,
}

/// Library number of SSL in BoringSSL's packed codes.
const LIB_SSL: u32 = 16 << 24;
/// Alerts have reason codes from here on.
const ALERTS: u32 = 1000;

impl TlsError {
    /// A context whose secrets have not come yet.
    pub(super) fn not_ready() -> TlsError {
        TlsError { reason: "TLS error: Secret is not supplied by SDS".into(), kind: ErrorKind::NotReady }
    }

    /// A configuration that rustls refuses at the last moment (an impossible server name, say).
    pub(super) fn internal(text: &str) -> TlsError {
        TlsError { reason: text.into(), kind: ErrorKind::Connection }
    }

    /// What the peer sent is plain HTTP.
    pub(super) fn http_request() -> TlsError {
        TlsError { reason: boring(156, "HTTP_REQUEST", None), kind: ErrorKind::Connection }
    }

    /// Whether the peer's certificate was refused.
    pub fn is_verify_failure(&self) -> bool {
        self.kind == ErrorKind::Verify
    }

    pub(super) fn new(e: &io::Error, outcome: &Outcome) -> TlsError {
        let Some(tls) = e.get_ref().and_then(|e| e.downcast_ref::<Error>()) else {
            // The peer went away: BoringSSL has no error to tell of.
            return TlsError { reason: closed(e), kind: ErrorKind::Closed };
        };
        let connection =
            |code, name| TlsError { reason: boring(code, name, None), kind: ErrorKind::Connection };
        match tls {
            Error::NoCertificatesPresented => TlsError {
                reason: boring(
                    192,
                    "PEER_DID_NOT_RETURN_A_CERTIFICATE",
                    Some("peer did not provide required client certificate"),
                ),
                kind: ErrorKind::NoCertificate,
            },
            Error::InvalidCertificate(_) => {
                let detail = outcome.refusal.as_ref().map(|(_, text)| format!("verify cert failed: {text}"));
                TlsError {
                    reason: boring(125, "CERTIFICATE_VERIFY_FAILED", detail.as_deref()),
                    kind: ErrorKind::Verify,
                }
            }
            Error::AlertReceived(alert) => {
                let code = ALERTS + u32::from(u8::from(*alert));
                connection(code, alert_name(*alert))
            }
            Error::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
            ) => connection(247, "WRONG_VERSION_NUMBER"),
            Error::PeerIncompatible(p) => match p {
                PeerIncompatible::NoCipherSuitesInCommon => connection(184, "NO_SHARED_CIPHER"),
                PeerIncompatible::NoKxGroupsInCommon => connection(266, "NO_SHARED_GROUP"),
                PeerIncompatible::NoSignatureSchemesInCommon
                | PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon => {
                    connection(253, "NO_COMMON_SIGNATURE_ALGORITHMS")
                }
                _ => connection(240, "UNSUPPORTED_PROTOCOL"),
            },
            Error::DecryptError => connection(139, "DECRYPTION_FAILED_OR_BAD_RECORD_MAC"),
            Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
                connection(223, "UNEXPECTED_MESSAGE")
            }
            _ => connection(137, "DECODE_ERROR"),
        }
    }
}

fn closed(e: &io::Error) -> Arc<str> {
    match e.kind() {
        io::ErrorKind::TimedOut => "TLS handshake timeout".into(),
        _ => "".into(),
    }
}

fn boring(reason: u32, name: &str, detail: Option<&str>) -> Arc<str> {
    let code = LIB_SSL + reason;
    match detail {
        Some(d) => format!("TLS_error:|{code}:SSL routines:OPENSSL_internal:{name}:{d}:TLS_error_end").into(),
        None => format!("TLS_error:|{code}:SSL routines:OPENSSL_internal:{name}:TLS_error_end").into(),
    }
}

fn alert_name(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::CloseNotify => "SSLV3_ALERT_CLOSE_NOTIFY",
        AlertDescription::UnexpectedMessage => "SSLV3_ALERT_UNEXPECTED_MESSAGE",
        AlertDescription::BadRecordMac => "SSLV3_ALERT_BAD_RECORD_MAC",
        AlertDescription::DecryptionFailed => "TLSV1_ALERT_DECRYPTION_FAILED",
        AlertDescription::RecordOverflow => "TLSV1_ALERT_RECORD_OVERFLOW",
        AlertDescription::HandshakeFailure => "SSLV3_ALERT_HANDSHAKE_FAILURE",
        AlertDescription::NoCertificate => "SSLV3_ALERT_NO_CERTIFICATE",
        AlertDescription::BadCertificate => "SSLV3_ALERT_BAD_CERTIFICATE",
        AlertDescription::UnsupportedCertificate => "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        AlertDescription::CertificateRevoked => "SSLV3_ALERT_CERTIFICATE_REVOKED",
        AlertDescription::CertificateExpired => "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        AlertDescription::CertificateUnknown => "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        AlertDescription::IllegalParameter => "SSLV3_ALERT_ILLEGAL_PARAMETER",
        AlertDescription::UnknownCA => "TLSV1_ALERT_UNKNOWN_CA",
        AlertDescription::AccessDenied => "TLSV1_ALERT_ACCESS_DENIED",
        AlertDescription::DecodeError => "TLSV1_ALERT_DECODE_ERROR",
        AlertDescription::DecryptError => "TLSV1_ALERT_DECRYPT_ERROR",
        AlertDescription::ProtocolVersion => "TLSV1_ALERT_PROTOCOL_VERSION",
        AlertDescription::InsufficientSecurity => "TLSV1_ALERT_INSUFFICIENT_SECURITY",
        AlertDescription::InternalError => "TLSV1_ALERT_INTERNAL_ERROR",
        AlertDescription::InappropriateFallback => "TLSV1_ALERT_INAPPROPRIATE_FALLBACK",
        AlertDescription::UserCanceled => "TLSV1_ALERT_USER_CANCELLED",
        AlertDescription::NoRenegotiation => "TLSV1_ALERT_NO_RENEGOTIATION",
        AlertDescription::UnsupportedExtension => "TLSV1_ALERT_UNSUPPORTED_EXTENSION",
        AlertDescription::CertificateUnobtainable => "TLSV1_ALERT_CERTIFICATE_UNOBTAINABLE",
        AlertDescription::UnrecognisedName => "TLSV1_ALERT_UNRECOGNIZED_NAME",
        AlertDescription::BadCertificateStatusResponse => "TLSV1_ALERT_BAD_CERTIFICATE_STATUS_RESPONSE",
        AlertDescription::BadCertificateHashValue => "TLSV1_ALERT_BAD_CERTIFICATE_HASH_VALUE",
        AlertDescription::UnknownPSKIdentity => "TLSV1_ALERT_UNKNOWN_PSK_IDENTITY",
        AlertDescription::CertificateRequired => "TLSV1_ALERT_CERTIFICATE_REQUIRED",
        AlertDescription::NoApplicationProtocol => "TLSV1_ALERT_NO_APPLICATION_PROTOCOL",
        _ => "UNKNOWN_ALERT_TYPE",
    }
}
