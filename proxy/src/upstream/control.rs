//! Connections of the control side (trace export and the like) to a cluster's hosts, without pools or breakers.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rand::seq::IteratorRandom as _;
use tokio::net::{TcpStream, UnixStream};

use super::ClusterManager;
use super::host::Health;
use super::transport::TransportKind;
use crate::config::address::Address;
use crate::net::{Io, Raw};

impl ClusterManager {
    /// Connects to a random healthy host of `name`, with the cluster's TLS, within its connect timeout.
    ///
    /// # Errors
    /// No such cluster, no healthy host, or what the connection failed of.
    pub async fn connect(self: Arc<Self>, name: Arc<str>) -> io::Result<Io> {
        let snapshot = self.snapshot();
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("no cluster {name}"));
        let cluster = self.cluster(&name, &snapshot).ok_or_else(missing)?;
        let hosts = cluster.hosts();
        let healthy = hosts.hosts().filter(|h| h.health() == Health::Healthy).choose(&mut rand::rng());
        let none = || io::Error::new(io::ErrorKind::NotFound, format!("cluster {name} has no healthy host"));
        let host = healthy.cloned().ok_or_else(none)?;
        let (_, transport) = cluster.transports.select(&host);
        let work = async {
            let raw: Raw = match &host.address {
                Address::Socket(a) => TcpStream::connect(a).await?.into(),
                Address::Pipe(p) => UnixStream::connect(&**p).await?.into(),
                other @ (Address::Name(..) | Address::Internal(_)) => {
                    return Err(io::Error::other(format!("{other} is no address to connect to")));
                }
            };
            match &transport.kind {
                TransportKind::Raw => Ok(raw.into()),
                TransportKind::Tls(context, _) => {
                    let done = context.connect_uncounted(raw, &snapshot.secrets).await;
                    done.map_err(|e| io::Error::other(e.to_string()))
                }
                TransportKind::Broken(why) => Err(io::Error::other(why.to_string())),
            }
        };
        let limit = cluster.info().connect_timeout;
        let limit = if limit.is_zero() { Duration::from_secs(5) } else { limit };
        tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}
