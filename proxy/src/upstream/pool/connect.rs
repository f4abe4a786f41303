//! Opening a connection to a host: bind, TCP or Unix connect, socket options, PROXY protocol header, TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol as IpProtocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream, UnixStream};

use super::super::cluster::Core;
use super::super::transport::{Transport, TransportKind};
use crate::config::address::Address;
use crate::config::cluster::Cluster;
use crate::net::{Io, Raw};
use crate::stream_info::TlsInfo;
use crate::tls::ConnectOptions;

/// Why a connection did not come to stand.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// `connect_timeout` passed.
    #[error("connection timeout")]
    Timeout,
    /// The other side's doing: refused, reset, TLS failure. The text is Envoy's transport failure reason.
    #[error("{0}")]
    Remote(Arc<str>),
    /// Ours: the socket could not be made or bound.
    #[error("{0}")]
    Local(Arc<str>),
}

/// An open connection.
pub(in crate::upstream) struct Opened {
    pub(in crate::upstream) io: Io,
    pub(super) tls: Option<Arc<TlsInfo>>,
    pub(super) local: Option<SocketAddr>,
}

/// Source and destination that a PROXY protocol header names.
pub type ProxyAddresses = (SocketAddr, SocketAddr);

/// Opens a connection within the cluster's `connect_timeout`.
pub(in crate::upstream) async fn open(
    core: &Core,
    address: &Address,
    transport: &Transport,
    options: &ConnectOptions,
    proxied: Option<ProxyAddresses>,
) -> Result<Opened, ConnectError> {
    let info = &core.shared.info;
    let work = Box::pin(open_untimed(core, address, transport, options, proxied));
    if info.connect_timeout == Duration::ZERO {
        return work.await;
    }
    tokio::time::timeout(info.connect_timeout, work).await.unwrap_or(Err(ConnectError::Timeout))
}

async fn open_untimed(
    core: &Core,
    address: &Address,
    transport: &Transport,
    options: &ConnectOptions,
    proxied: Option<ProxyAddresses>,
) -> Result<Opened, ConnectError> {
    let info = &core.shared.info;
    let mut local = None;
    let mut raw: Raw = match address {
        Address::Socket(a) => {
            let s = tcp(core, info, *a).await?;
            local = s.local_addr().ok();
            s.into()
        }
        Address::Pipe(path) => {
            let connected = UnixStream::connect(&**path).await;
            connected.map_err(|e| refused(&e))?.into()
        }
        // Discovery hands out addresses alone.
        Address::Name(..) | Address::Internal(_) => {
            return Err(ConnectError::Local(format!("{address} is no address to connect to").into()));
        }
    };
    if let Some(version) = transport.proxy_protocol {
        let header = proxy_header(version, proxied);
        raw.write_all(&header).await.map_err(|e| refused(&e))?;
    }
    match &transport.kind {
        TransportKind::Raw => Ok(Opened { io: raw.into(), tls: None, local }),
        TransportKind::Tls(context, _) => {
            let secrets = core.ctx.snapshot.borrow().secrets.clone();
            let done = context.connect(raw, options, &secrets, core.tls_stats()).await;
            let (io, tls) = done.map_err(|e| ConnectError::Remote(e.reason))?;
            Ok(Opened { io, tls: Some(Arc::new(tls)), local })
        }
        TransportKind::Broken(why) => Err(ConnectError::Remote(why.clone())),
    }
}

async fn tcp(core: &Core, info: &Cluster, to: SocketAddr) -> Result<TcpStream, ConnectError> {
    let local = |e: io::Error| ConnectError::Local(reason(&e).into());
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(IpProtocol::TCP)).map_err(local)?;
    socket.set_nonblocking(true).map_err(local)?;
    socket.set_tcp_nodelay(true).map_err(local)?;
    // An address of the other family cannot be bound; Envoy picks by family, too.
    if let Some(Address::Socket(from)) = &info.bind
        && from.is_ipv4() == to.is_ipv4()
        && let Err(e) = socket.bind(&(*from).into())
    {
        core.stats.traffic.bind_errors.inc();
        return Err(local(e));
    }
    let stream = TcpSocket::from_std_stream(socket.into()).connect(to).await.map_err(|e| refused(&e))?;
    if let Some(k) = info.tcp_keepalive {
        let mut keepalive = TcpKeepalive::new();
        let seconds = |s: u32| Duration::from_secs(u64::from(s));
        if let Some(t) = k.time {
            keepalive = keepalive.with_time(seconds(t));
        }
        if let Some(t) = k.interval {
            keepalive = keepalive.with_interval(seconds(t));
        }
        if let Some(n) = k.probes {
            keepalive = keepalive.with_retries(n);
        }
        if let Err(e) = SockRef::from(&stream).set_tcp_keepalive(&keepalive) {
            tracing::debug!("tcp keepalive: {e}");
        }
    }
    Ok(stream)
}

fn refused(e: &io::Error) -> ConnectError {
    ConnectError::Remote(format!("delayed connect error: {}", reason(e)).into())
}

/// The system's text of an error, without Rust's "(os error N)".
fn reason(e: &io::Error) -> String {
    let text = e.to_string();
    text.find(" (os error").map_or(text.clone(), |i| text[..i].to_owned())
}

/// The header of version 1 or 2; without addresses, `UNKNOWN` or `LOCAL`.
fn proxy_header(version: u8, addresses: Option<ProxyAddresses>) -> Vec<u8> {
    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    if version == 1 {
        let text = match addresses {
            Some((from, to)) if from.is_ipv4() == to.is_ipv4() => {
                let family = if from.is_ipv4() { 4 } else { 6 };
                format!("PROXY TCP{family} {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port())
            }
            _ => "PROXY UNKNOWN\r\n".to_owned(),
        };
        return text.into_bytes();
    }
    let mut out = SIGNATURE.to_vec();
    match addresses {
        Some((SocketAddr::V4(from), SocketAddr::V4(to))) => {
            out.extend([0x21, 0x11, 0, 12]);
            out.extend(from.ip().octets());
            out.extend(to.ip().octets());
            out.extend(from.port().to_be_bytes());
            out.extend(to.port().to_be_bytes());
        }
        Some((SocketAddr::V6(from), SocketAddr::V6(to))) => {
            out.extend([0x21, 0x21, 0, 36]);
            out.extend(from.ip().octets());
            out.extend(to.ip().octets());
            out.extend(from.port().to_be_bytes());
            out.extend(to.port().to_be_bytes());
        }
        _ => out.extend([0x20, 0, 0, 0]),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_headers_follow_the_specification() {
        let a: SocketAddr = "1.2.3.4:5".parse().unwrap();
        let b: SocketAddr = "6.7.8.9:256".parse().unwrap();
        assert_eq!(proxy_header(1, Some((a, b))), b"PROXY TCP4 1.2.3.4 6.7.8.9 5 256\r\n");
        assert_eq!(proxy_header(1, None), b"PROXY UNKNOWN\r\n");
        let v2 = proxy_header(2, Some((a, b)));
        assert_eq!(v2[12..], [0x21, 0x11, 0, 12, 1, 2, 3, 4, 6, 7, 8, 9, 0, 5, 1, 0]);
        assert_eq!(proxy_header(2, None).len(), 16);
    }

    #[test]
    fn reasons_are_the_system_s_words() {
        let e = io::Error::from_raw_os_error(libc::ECONNREFUSED);
        assert_eq!(reason(&e), "Connection refused");
    }
}
