//! Opens listening sockets: options, bind, listen. Follows `Listener`'s socket fields.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};

use super::chain_match::ChainTable;
use super::shared::tls_config;
use crate::config::address::Address;
use crate::config::listener::{Listener, SocketOption};
use crate::tls::{Secrets, ServerContext};

/// A listening socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("error adding listener '{listener}': cannot bind '{address}': {cause}")]
    Bind { listener: Arc<str>, address: String, cause: String },
    #[error("error adding listener: '{listener}' has duplicate address '{address}' as existing listener")]
    Duplicate { listener: Arc<str>, address: String },
    #[error("error adding listener '{listener}': cannot listen on '{address}'")]
    Unsupported { listener: Arc<str>, address: String },
    #[error("error adding listener '{listener}': {cause}")]
    Chains { listener: Arc<str>, cause: String },
    #[error("error adding listener '{listener}', filter chain '{chain}': {cause}")]
    Tls { listener: Arc<str>, chain: Arc<str>, cause: String },
}

/// A socket ready for `accept`.
#[derive(Debug)]
pub(super) enum Bound {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl Bound {
    pub(super) fn try_clone(&self) -> io::Result<Bound> {
        Ok(match self {
            Bound::Tcp(l) => Bound::Tcp(l.try_clone()?),
            Bound::Unix(l) => Bound::Unix(l.try_clone()?),
        })
    }

    /// The address as bound, where it is one of IP.
    pub(super) fn local(&self) -> Option<SocketAddr> {
        match self {
            Bound::Tcp(l) => l.local_addr().ok(),
            Bound::Unix(_) => None,
        }
    }
}

/// Tries whether a listener's addresses can be bound, for the NACK; the sockets are closed again.
///
/// # Errors
/// Names listener and address.
pub fn check_bind(listener: &Listener) -> Result<(), BindError> {
    // Where workers share one socket, a listener that is served already could not be bound once more.
    if listener.bind_to_port && listener.reuse_port {
        for address in listener.addresses.iter().filter(|a| matches!(a, Address::Socket(_))) {
            open(listener, address)?;
        }
    }
    Ok(())
}

/// Checks what conversion cannot see: that filter chains are told apart, that certificates, keys, roots and parameters of
/// their TLS contexts can be used, and that the addresses can be bound.
///
/// # Errors
/// Names the listener and the chain or address.
pub fn check(listener: &Listener) -> Result<(), BindError> {
    ChainTable::new(&listener.filter_chains)
        .map_err(|e| BindError::Chains { listener: listener.name.clone(), cause: e.to_string() })?;
    for chain in listener.filter_chains.iter().chain(&listener.default_chain) {
        if let Some(ir) = tls_config(&chain.transport) {
            ServerContext::new(ir.clone(), &Secrets::default()).map_err(|e| BindError::Tls {
                listener: listener.name.clone(),
                chain: chain.name.clone(),
                cause: e.to_string(),
            })?;
        }
    }
    check_bind(listener)
}

/// Opens one socket of `listener` at `address`.
pub(super) fn open(listener: &Listener, address: &Address) -> Result<Bound, BindError> {
    let opened = match address {
        Address::Socket(a) => tcp(listener, *a).map(Bound::Tcp),
        Address::Pipe(path) => unix(path).map(Bound::Unix),
        Address::Name(..) | Address::Internal(_) => {
            let (listener, address) = (listener.name.clone(), address.to_string());
            return Err(BindError::Unsupported { listener, address });
        }
    };
    opened.map_err(|e| BindError::Bind {
        listener: listener.name.clone(),
        address: address.to_string(),
        cause: reason(&e),
    })
}

fn tcp(listener: &Listener, address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let v6 = address.is_ipv6();
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if listener.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if v6 {
        socket.set_only_v6(!listener.ipv4_compat)?;
    }
    if listener.freebind {
        if v6 { socket.set_freebind_v6(true)? } else { socket.set_freebind_v4(true)? }
    }
    if listener.transparent {
        if v6 { socket.set_ip_transparent_v6(true)? } else { socket.set_ip_transparent_v4(true)? }
    }
    for option in &listener.socket_options {
        // Accepted connections inherit them.
        match option {
            SocketOption::KeepAlive(on) => socket.set_keepalive(*on)?,
            SocketOption::KeepAliveIdle(t) => socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(*t))?,
            SocketOption::KeepAliveInterval(t) => {
                socket.set_tcp_keepalive(&TcpKeepalive::new().with_interval(*t))?;
            }
            SocketOption::KeepAliveProbes(n) => {
                socket.set_tcp_keepalive(&TcpKeepalive::new().with_retries(*n))?;
            }
        }
    }
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(listener.backlog).unwrap_or(i32::MAX))?;
    Ok(socket.into())
}

fn unix(path: &str) -> io::Result<std::os::unix::net::UnixListener> {
    // A leading `@` is Envoy's notation of the abstract namespace.
    let name = path.strip_prefix('@').map_or_else(|| path.to_owned(), |rest| format!("\0{rest}"));
    if !path.starts_with('@') {
        // A stale file of an earlier run would make bind fail; Envoy removes it, too.
        let _ = std::fs::remove_file(path);
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(name)?)?;
    socket.listen(1024)?;
    Ok(socket.into())
}

/// The system's words without Rust's `(os error N)`, as Envoy prints them.
fn reason(e: &io::Error) -> String {
    let text = e.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}
