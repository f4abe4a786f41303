//! gRPC connections to a control plane: where it is, how it is trusted, and the token that each stream carries. Roots and
//! token are read again for each connection and stream, because both are renewed on disk under a running process.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// istiod pings after 30 s of silence; so does istio-agent towards it.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long a ping may stay unanswered (istio-agent: 10 s).
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long connecting may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// gRPC's flow-control window: configuration comes in megabytes.
const WINDOW_BYTES: u32 = 1 << 20;

/// Gives the TLS configuration for the next connection, or says what is wrong with the roots.
pub type TlsSource = Arc<dyn Fn() -> Result<Arc<rustls::ClientConfig>, String> + Send + Sync>;
/// Gives the bearer token for the next stream or call, or says why there is none.
pub type TokenSource = Arc<dyn Fn() -> Result<String, String> + Send + Sync>;

/// Where the control plane is.
#[derive(Clone)]
pub enum Target {
    /// `host:port`, in plaintext.
    Plain {
        /// What to connect to.
        address: String,
    },
    /// `host:port`, over TLS with ALPN `h2`.
    Tls {
        /// What to connect to.
        address: String,
        /// The name in SNI, which the certificate must have.
        server_name: String,
        /// Roots and, where the control plane asks for one, the client certificate.
        tls: TlsSource,
    },
    /// A Unix socket.
    Unix {
        /// Its path.
        path: PathBuf,
    },
}

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is not one.
    #[error("`{address}` is not a host:port: {reason}")]
    Address {
        /// The address as configured.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No connection, or no handshake.
    #[error("connecting failed: {0}")]
    Transport(String),
}

/// Opens connections to one control plane.
#[derive(Clone)]
pub struct Connector {
    target: Target,
    token: Option<TokenSource>,
    metadata: Vec<(AsciiMetadataKey, AsciiMetadataValue)>,
}

impl Connector {
    /// A connector without token.
    #[must_use]
    pub fn new(target: Target) -> Self {
        Self { target, token: None, metadata: Vec::new() }
    }

    /// Plaintext to `host:port`.
    #[must_use]
    pub fn plain(address: impl Into<String>) -> Self {
        Self::new(Target::Plain { address: address.into() })
    }

    /// Sends `authorization: Bearer …` with each stream.
    #[must_use]
    pub fn with_token(mut self, token: TokenSource) -> Self {
        self.token = Some(token);
        self
    }

    /// Sends a header with each stream (`clusterid`).
    ///
    /// # Errors
    /// A name or value that HTTP does not allow.
    pub fn with_metadata(mut self, name: &str, value: &str) -> Result<Self, ConnectError> {
        let bad = |reason: String| ConnectError::Address { address: format!("{name}: {value}"), reason };
        let key = AsciiMetadataKey::from_bytes(name.to_ascii_lowercase().as_bytes())
            .map_err(|error| bad(error.to_string()))?;
        let value = value.parse().map_err(|_| bad("not a header value".to_owned()))?;
        self.metadata.push((key, value));
        Ok(self)
    }

    /// The peer's name, for messages.
    #[must_use]
    pub fn authority(&self) -> String {
        match &self.target {
            Target::Plain { address } | Target::Tls { address, .. } => address.clone(),
            Target::Unix { path } => format!("unix:{}", path.display()),
        }
    }

    /// Connects now.
    ///
    /// # Errors
    /// A bad address, or a connection that did not come about; the text has the cause.
    pub async fn connect(&self) -> Result<Channel, ConnectError> {
        let target = self.target.clone();
        self.endpoint()?
            .connect_with_connector(service_fn(move |_: Uri| dial(target.clone())))
            .await
            .map_err(|error| ConnectError::Transport(causes(&error)))
    }

    /// A channel that connects at the first call, and again whenever its connection is gone.
    ///
    /// # Errors
    /// A bad address.
    pub fn connect_lazy(&self) -> Result<Channel, ConnectError> {
        let target = self.target.clone();
        Ok(self.endpoint()?.connect_with_connector_lazy(service_fn(move |_: Uri| dial(target.clone()))))
    }

    /// Puts the token and the other headers into a request.
    ///
    /// # Errors
    /// No token, or one that is not a header value.
    pub fn authorize(&self, metadata: &mut MetadataMap) -> Result<(), String> {
        for (key, value) in &self.metadata {
            metadata.insert(key.clone(), value.clone());
        }
        if let Some(token) = &self.token {
            let value = format!("Bearer {}", token()?.trim());
            let mut value: AsciiMetadataValue =
                value.parse().map_err(|_| "the token has characters that no header may have".to_owned())?;
            value.set_sensitive(true);
            metadata.insert("authorization", value);
        }
        Ok(())
    }

    fn endpoint(&self) -> Result<Endpoint, ConnectError> {
        let (scheme, authority) = match &self.target {
            Target::Plain { address } => ("http", address.as_str()),
            Target::Tls { address, .. } => ("https", address.as_str()),
            Target::Unix { .. } => ("http", "localhost"),
        };
        let bad = |reason: String| ConnectError::Address { address: authority.to_owned(), reason };
        let uri: Uri = format!("{scheme}://{authority}")
            .parse()
            .map_err(|error: http::uri::InvalidUri| bad(error.to_string()))?;
        if !matches!(self.target, Target::Unix { .. }) && uri.port_u16().is_none() {
            return Err(bad("the port is missing".to_owned()));
        }
        // The connector speaks TLS itself; an https endpoint would make tonic ask for its own.
        let plain: Uri = format!("http://{authority}")
            .parse()
            .map_err(|error: http::uri::InvalidUri| bad(error.to_string()))?;
        Ok(Endpoint::from(plain)
            .origin(uri)
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .tcp_nodelay(true))
    }
}

/// A byte stream of any kind.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

async fn dial(target: Target) -> io::Result<TokioIo<Box<dyn Io>>> {
    let stream: Box<dyn Io> = match target {
        Target::Plain { address } => Box::new(dial_tcp(&address).await?),
        Target::Unix { path } => Box::new(
            UnixStream::connect(&path)
                .await
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?,
        ),
        Target::Tls { address, server_name, tls } => {
            let config = tls().map_err(io::Error::other)?;
            let name = ServerName::try_from(server_name.clone())
                .map_err(|error| io::Error::other(format!("server name `{server_name}`: {error}")))?;
            let tcp = dial_tcp(&address).await?;
            let stream =
                tokio_rustls::TlsConnector::from(config).connect(name, tcp).await.map_err(|error| {
                    io::Error::new(error.kind(), format!("TLS with {server_name} at {address}: {error}"))
                })?;
            Box::new(stream)
        }
    };
    Ok(TokioIo::new(stream))
}

async fn dial_tcp(address: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}")))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// An error with its causes: tonic's own text is only "transport error".
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut parts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
        source = cause.source();
    }
    if parts.len() > 1 && parts.first().is_some_and(|first| first == "transport error") {
        parts.remove(0);
    }
    parts.join(": ")
}

/// A TLS configuration for a control plane: the roots of `pem`, no client certificate, ALPN `h2`, TLS 1.2 and 1.3.
///
/// # Errors
/// PEM without a certificate, or with one that cannot be a root.
pub fn tls_from_roots(pem: &[u8]) -> Result<Arc<rustls::ClientConfig>, String> {
    use rustls_pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    for (index, certificate) in rustls_pki_types::CertificateDer::pem_slice_iter(pem).enumerate() {
        let certificate = certificate.map_err(|error| format!("root certificate {index}: {error}"))?;
        roots.add(certificate).map_err(|error| format!("root certificate {index}: {error}"))?;
    }
    if roots.is_empty() {
        return Err("no certificate among the roots".to_owned());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// [`tls_from_roots`] with a file that is read for each connection.
#[must_use]
pub fn tls_from_roots_file(path: PathBuf) -> TlsSource {
    Arc::new(move || {
        let pem = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        tls_from_roots(&pem).map_err(|error| format!("{}: {error}", path.display()))
    })
}

/// A token that is read from a file for each stream or call.
#[must_use]
pub fn token_from_file(path: PathBuf) -> TokenSource {
    Arc::new(move || {
        std::fs::read_to_string(&path).map_err(|error| format!("token {}: {error}", path.display()))
    })
}
