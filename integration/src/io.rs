//! A TCP connection, plain or with TLS, and the TLS configurations of the scripted clients and upstreams.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::case::{ClientTls, ServerTls};
use crate::certs::Certs;

/// The socket under an HTTP codec or a raw script.
#[derive(Debug)]
pub enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Io {
    /// Makes the close that follows a TCP reset instead of a FIN.
    pub fn reset_on_close(&self) {
        let tcp = match self {
            Self::Plain(s) => s,
            Self::Tls(s) => s.get_ref().0,
        };
        // If it fails, the peer sees a FIN and the comparison says so.
        let _ = tcp.set_zero_linger();
    }

    /// What the handshake agreed on, as the observation shows it; null without TLS.
    #[must_use]
    pub fn tls_facts(&self, certs: &Certs) -> Value {
        let Self::Tls(stream) = self else { return Value::Null };
        let text = |b: Option<&[u8]>| b.map(|b| String::from_utf8_lossy(b).into_owned());
        match &**stream {
            TlsStream::Client(s) => {
                let c = s.get_ref().1;
                json!({
                    "version": c.protocol_version().map(|v| format!("{v:?}")),
                    "alpn": text(c.alpn_protocol()),
                    "server_certificate": c.peer_certificates().and_then(|p| p.first()).map(|c| certs.name_of(c)),
                })
            }
            TlsStream::Server(s) => {
                let c = s.get_ref().1;
                json!({
                    "version": c.protocol_version().map(|v| format!("{v:?}")),
                    "alpn": text(c.alpn_protocol()),
                    "sni": c.server_name(),
                    "client_certificate": c.peer_certificates().and_then(|p| p.first()).map(|c| certs.name_of(c)),
                })
            }
        }
    }

    /// The protocol of ALPN, if TLS agreed on one.
    #[must_use]
    pub fn alpn(&self) -> Option<Vec<u8>> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(s) => s.get_ref().1.alpn_protocol().map(<[u8]>::to_vec),
        }
    }
}

/// The server side of a handshake.
///
/// # Errors
/// A bad certificate name, or the handshake's failure.
pub async fn accept_tls(tcp: TcpStream, tls: &ServerTls, certs: &Certs) -> io::Result<Io> {
    let (chain, key) = certs.load(&tls.certificate)?;
    let builder = ServerConfig::builder();
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(certs.roots(ca)?))
                .build()
                .map_err(io::Error::other)?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(io::Error::other)?;
    config.alpn_protocols = tls.alpn.iter().map(|p| p.clone().into_bytes()).collect();
    let stream = TlsAcceptor::from(Arc::new(config)).accept(tcp).await?;
    Ok(Io::Tls(Box::new(TlsStream::Server(stream))))
}

/// The client side of a handshake. The certificate of the server is taken as it is and named in the observation.
///
/// # Errors
/// A bad certificate name, or the handshake's failure.
pub async fn connect_tls(tcp: TcpStream, tls: &ClientTls, certs: &Certs) -> io::Result<Io> {
    let versions: &[&rustls::SupportedProtocolVersion] = match tls.version.as_deref() {
        Some("1.2") => &[&rustls::version::TLS12],
        Some("1.3") => &[&rustls::version::TLS13],
        _ => rustls::ALL_VERSIONS,
    };
    let builder = ClientConfig::builder_with_protocol_versions(versions)
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut config = match &tls.certificate {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let (chain, key) = certs.load(name)?;
            builder.with_client_auth_cert(chain, key).map_err(io::Error::other)?
        }
    };
    config.alpn_protocols = tls.alpn.iter().map(|p| p.clone().into_bytes()).collect();
    config.enable_sni = tls.sni.is_some();
    let name = ServerName::try_from(tls.sni.clone().unwrap_or_else(|| "127.0.0.1".into()))
        .map_err(io::Error::other)?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    Ok(Io::Tls(Box::new(TlsStream::Client(stream))))
}

#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Self::Tls(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Self::Tls(s) => Pin::new(s).poll_write(cx, buf),
        }
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(s) => Pin::new(s).poll_flush(cx),
            Self::Tls(s) => Pin::new(s).poll_flush(cx),
        }
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Self::Tls(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}
