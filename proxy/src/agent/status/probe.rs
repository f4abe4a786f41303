//! The application's probes. istiod rewrites them to `/app-health/CONTAINER/KIND` of this page and passes the originals in
//! ISTIO_KUBE_APP_PROBERS, since kubelet has no certificate for a port that only takes mutual TLS.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{HOST, HeaderName, HeaderValue};
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};

use super::{Answer, text, tls};

/// Source of connections to the application: the rules let it through without capture. See `iptables::rules`.
const SOURCE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6));
const SOURCE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6));
/// kubelet's own limit of what it reads of an answer.
const BODY_LIMIT: usize = 10 << 10;
/// Of the connection kubelet has with this page; not for the application.
const OWN_HEADERS: [&str; 6] =
    ["host", "connection", "content-length", "transfer-encoding", "accept-encoding", "upgrade"];

/// ISTIO_KUBE_APP_PROBERS, by path.
#[derive(Debug, Default)]
pub struct Probers {
    by_path: HashMap<String, Prober>,
    application: Option<IpAddr>,
}

/// The variable does not hold what istiod writes.
#[derive(Debug, thiserror::Error)]
#[error("ISTIO_KUBE_APP_PROBERS: {0}")]
pub struct ProbeError(#[from] serde_json::Error);

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Prober {
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpTarget>,
    grpc: Option<Grpc>,
    /// Zero and absent mean Kubernetes' default of one second.
    #[serde(default)]
    timeout_seconds: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HttpGet {
    #[serde(default)]
    path: String,
    /// istiod has resolved names of ports.
    port: u16,
    #[serde(default)]
    host: String,
    #[serde(default)]
    scheme: String,
    #[serde(default)]
    http_headers: Vec<Header>,
}

#[derive(Debug, Clone, Deserialize)]
struct Header {
    name: String,
    value: String,
}

#[derive(Debug, Clone, Deserialize)]
struct TcpTarget {
    port: u16,
    #[serde(default)]
    host: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Grpc {
    port: u16,
    #[serde(default)]
    service: Option<String>,
}

#[derive(Debug, thiserror::Error)]
enum Unhealthy {
    #[error("{0}: {1}")]
    Connect(SocketAddr, std::io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Request(#[from] http::Error),
    #[error("TLS: {0}")]
    Tls(std::io::Error),
    #[error("body: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("host {0:?} is not an address")]
    Host(String),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("gRPC: HTTP status {0}")]
    GrpcStatus(StatusCode),
    #[error("gRPC: not SERVING (status {0})")]
    NotServing(u8),
    #[error("the probe names no way to probe")]
    Nothing,
}

impl Probers {
    /// Takes the variable's text, and the pod's own address, where the application is asked.
    ///
    /// # Errors
    /// When the text is not what istiod writes.
    pub fn parse(json: &str, application: Option<IpAddr>) -> Result<Self, ProbeError> {
        let by_path = if json.trim().is_empty() { HashMap::new() } else { serde_json::from_str(json)? };
        Ok(Self { by_path, application })
    }

    /// Asks the application what kubelet asked, and hands its answer on.
    pub(super) async fn relay(&self, path: &str, headers: &HeaderMap) -> Answer {
        let Some(prober) = self.by_path.get(path) else {
            return text(StatusCode::NOT_FOUND, format!("no probe for {path}\n"));
        };
        let timeout = Duration::from_secs(prober.timeout_seconds.max(1));
        let asked = tokio::time::timeout(timeout, self.ask(prober, headers)).await;
        match asked.unwrap_or(Err(Unhealthy::Timeout(timeout))) {
            Ok((status, body)) => text(status, body),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    async fn ask(&self, prober: &Prober, headers: &HeaderMap) -> Result<(StatusCode, Bytes), Unhealthy> {
        if let Some(http) = &prober.http_get {
            self.http(http, headers).await
        } else if let Some(tcp) = &prober.tcp_socket {
            self.connect(&tcp.host, tcp.port).await.map(|_| (StatusCode::OK, Bytes::new()))
        } else if let Some(grpc) = &prober.grpc {
            self.grpc(grpc).await.map(|()| (StatusCode::OK, Bytes::new()))
        } else {
            Err(Unhealthy::Nothing)
        }
    }

    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, Unhealthy> {
        let named = match host {
            "" => None,
            "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            host => Some(host.parse().map_err(|_| Unhealthy::Host(host.to_owned()))?),
        };
        let address =
            SocketAddr::new(named.or(self.application).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), port);
        let failed = |error| Unhealthy::Connect(address, error);
        // From the loopback to the loopback nothing is captured, so there no source is needed.
        let (socket, source) = match address.ip() {
            ip if ip.is_loopback() => return TcpStream::connect(address).await.map_err(failed),
            IpAddr::V4(_) => (TcpSocket::new_v4().map_err(failed)?, SOURCE_V4),
            IpAddr::V6(_) => (TcpSocket::new_v6().map_err(failed)?, SOURCE_V6),
        };
        socket.bind(SocketAddr::new(source, 0)).map_err(failed)?;
        socket.connect(address).await.map_err(failed)
    }

    async fn http(&self, probe: &HttpGet, headers: &HeaderMap) -> Result<(StatusCode, Bytes), Unhealthy> {
        let stream = self.connect(&probe.host, probe.port).await?;
        if probe.scheme.eq_ignore_ascii_case("https") {
            send(tls::unverified(stream).await.map_err(Unhealthy::Tls)?, probe, headers).await
        } else {
            send(stream, probe, headers).await
        }
    }

    /// `grpc.health.v1.Health/Check`. The messages have one field each: not worth generated code.
    async fn grpc(&self, probe: &Grpc) -> Result<(), Unhealthy> {
        let stream = self.connect("", probe.port).await?;
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let service = probe.service.as_deref().unwrap_or_default();
        let mut message = BytesMut::new();
        if let Some(length) = u8::try_from(service.len()).ok().filter(|length| (1..0x80).contains(length)) {
            // Field 1, a string. Names of 128 bytes and more do not occur in Kubernetes' API.
            message.put_slice(&[0x0a, length]);
            message.put_slice(service.as_bytes());
        }
        let mut frame = BytesMut::new();
        frame.put_u8(0);
        frame.put_u32(u32::try_from(message.len()).unwrap_or(0));
        frame.put(message);
        let request = Request::post(format!("http://localhost:{}/grpc.health.v1.Health/Check", probe.port))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(frame.freeze()))?;
        let response = sender.send_request(request).await?;
        if response.status() != StatusCode::OK {
            return Err(Unhealthy::GrpcStatus(response.status()));
        }
        let body = Limited::new(response.into_body(), BODY_LIMIT)
            .collect()
            .await
            .map_err(Unhealthy::Body)?
            .to_bytes();
        // Frame head 5, then field 1, a varint: SERVING is 1.
        match body.get(5..7) {
            Some([0x08, 1]) => Ok(()),
            Some([0x08, status]) => Err(Unhealthy::NotServing(*status)),
            _ => Err(Unhealthy::NotServing(0)),
        }
    }
}

async fn send<S>(stream: S, probe: &HttpGet, headers: &HeaderMap) -> Result<(StatusCode, Bytes), Unhealthy>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let path = format!("/{}", probe.path.trim_start_matches('/'));
    let mut request =
        Request::get(path.parse::<Uri>().map_err(http::Error::from)?).body(Empty::<Bytes>::new())?;
    for (name, value) in headers.iter().filter(|(name, _)| !OWN_HEADERS.contains(&name.as_str())) {
        request.headers_mut().append(name, value.clone());
    }
    let host = if probe.host.is_empty() { "localhost" } else { &probe.host };
    let authority = HeaderValue::try_from(format!("{host}:{}", probe.port)).map_err(http::Error::from)?;
    request.headers_mut().insert(HOST, authority);
    for header in &probe.http_headers {
        let name = HeaderName::try_from(&header.name).map_err(http::Error::from)?;
        request.headers_mut().insert(name, HeaderValue::try_from(&header.value).map_err(http::Error::from)?);
    }
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    // A body that is too long is left out, not an error: the status is what counts.
    let body = Limited::new(response.into_body(), BODY_LIMIT).collect().await;
    Ok((status, body.map(http_body_util::Collected::to_bytes).unwrap_or_default()))
}
