//! The transport sockets of a cluster: its own, and those that match an endpoint's metadata (`transport_socket_matches`).

use std::sync::Arc;

use super::host::Host;
use crate::config::cluster::Cluster;
use crate::config::route::Metadata;
use crate::config::tls::{TransportSocket, UpstreamTls};
use crate::tls::{ClientContext, Secrets};

/// What endpoint metadata is matched against.
const MATCH_NAMESPACE: &str = "envoy.transport_socket_match";

/// The transports of a cluster, in the order in which they are tried; the last one matches every host.
#[derive(Debug)]
pub(super) struct Transports(Vec<(Metadata, Transport)>);

/// One transport.
#[derive(Clone, Debug)]
pub(super) struct Transport {
    pub(super) kind: TransportKind,
    /// Version of the PROXY protocol header to send first.
    pub(super) proxy_protocol: Option<u8>,
}

#[derive(Clone, Debug)]
pub(super) enum TransportKind {
    Raw,
    Tls(Arc<ClientContext>, Arc<UpstreamTls>),
    /// The context cannot be built from its configuration: every connection fails with this.
    Broken(Arc<str>),
}

impl Transports {
    pub(super) fn new(info: &Cluster, secrets: &Secrets) -> Transports {
        let mut all: Vec<_> = info
            .transport_matches
            .iter()
            .map(|m| (m.criteria.clone(), Transport::new(&m.transport, secrets)))
            .collect();
        all.push((None, Transport::new(&info.transport, secrets)));
        Transports(all)
    }

    /// The transport for a host, and its index.
    pub(super) fn select(&self, host: &Host) -> (usize, &Transport) {
        let own = host.metadata.as_ref().and_then(|m| m.get(MATCH_NAMESPACE));
        let matches = |criteria: &Metadata| {
            criteria
                .as_ref()
                .is_none_or(|c| c.iter().all(|(k, v)| own.and_then(|o| o.get(k)).is_some_and(|o| o == v)))
        };
        let last = self.0.len() - 1; // `new` adds the cluster's own, so there is one
        let i = self.0.iter().position(|(criteria, _)| matches(criteria)).unwrap_or(last);
        (i, &self.0[i].1)
    }

    /// By index.
    pub(super) fn get(&self, index: usize) -> Option<&Transport> {
        self.0.get(index).map(|(_, t)| t)
    }
}

impl Transport {
    fn new(socket: &TransportSocket<UpstreamTls>, secrets: &Secrets) -> Transport {
        match socket {
            TransportSocket::RawBuffer => Transport { kind: TransportKind::Raw, proxy_protocol: None },
            TransportSocket::Tls(ir) => {
                let kind = match ClientContext::new(ir.clone(), secrets) {
                    Ok(context) => TransportKind::Tls(Arc::new(context), ir.clone()),
                    Err(e) => TransportKind::Broken(e.to_string().into()),
                };
                Transport { kind, proxy_protocol: None }
            }
            TransportSocket::ProxyProtocol { version, inner } => {
                Transport { proxy_protocol: Some(*version), ..Transport::new(inner, secrets) }
            }
        }
    }

    pub(super) fn is_tls(&self) -> bool {
        !matches!(self.kind, TransportKind::Raw)
    }
}
