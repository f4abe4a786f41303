//! Addresses and CIDR ranges, as `envoy.config.core.v3.Address` and `CidrRange` give them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Where to listen or connect.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// An IP address and port.
    Socket(SocketAddr),
    /// A host name to be resolved (STRICT_DNS and LOGICAL_DNS endpoints), and a port.
    Name(Arc<str>, u16),
    /// A Unix domain socket.
    Pipe(Arc<str>),
    /// `envoy_internal_address`: the name of an internal listener.
    Internal(Arc<str>),
}

impl Address {
    /// The IP address and port, where this is one.
    pub fn socket(&self) -> Option<SocketAddr> {
        match self {
            Address::Socket(a) => Some(*a),
            _ => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Socket(a) => a.fmt(f),
            Address::Name(n, p) => write!(f, "{n}:{p}"),
            Address::Pipe(p) => f.write_str(p),
            Address::Internal(n) => write!(f, "envoy://{n}"),
        }
    }
}

/// An address prefix. Bits past `len` are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    /// The network's address, masked.
    pub addr: IpAddr,
    /// Prefix length in bits.
    pub len: u8,
}

impl Cidr {
    /// Masks `addr` to `len` bits; a length past the address's own is cut to it.
    pub fn new(addr: IpAddr, len: u8) -> Cidr {
        match addr {
            IpAddr::V4(a) => {
                let len = len.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
                Cidr { addr: IpAddr::V4((u32::from(a) & mask).into()), len }
            }
            IpAddr::V6(a) => {
                let len = len.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
                Cidr { addr: IpAddr::V6((u128::from(a) & mask).into()), len }
            }
        }
    }

    /// Whether `ip` lies in the range. Families never match each other; an IPv4-mapped IPv6 address counts as IPv4.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        matches!((self.addr, ip), (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)))
            && Cidr::new(ip, self.len).addr == self.addr
    }
}
