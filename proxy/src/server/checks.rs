//! What a listener or cluster has to pass beside its conversion: its TLS contexts can be built, its addresses bound. Dynamic
//! ones are refused with the text in the NACK, static ones keep the proxy from starting, as with Envoy.

use crate::config::apply::Checks;
use crate::config::bootstrap::Bootstrap;
use crate::config::cluster::Cluster;
use crate::config::listener::Listener;
use crate::config::tls::{TransportSocket, UpstreamTls};
use crate::listener;
use crate::tls::{ClientContext, Secrets};

/// For the applier.
pub(super) const CHECKS: Checks = Checks { listener, cluster };

/// Checks the bootstrap's clusters. Its listeners are checked where workers bind them; their TLS contexts here.
pub(super) fn statics(bootstrap: &Bootstrap) -> Result<(), String> {
    for c in &bootstrap.clusters {
        cluster(c).map_err(|e| format!("cluster '{}': {e}", c.name))?;
    }
    bootstrap.listeners.iter().try_for_each(|l| listener(l))
}

fn listener(l: &Listener) -> Result<(), String> {
    listener::check(l).map_err(|e| e.to_string())
}

fn cluster(c: &Cluster) -> Result<(), String> {
    transport(&c.transport)?;
    c.transport_matches.iter().try_for_each(|m| transport(&m.transport))
}

fn transport(t: &TransportSocket<UpstreamTls>) -> Result<(), String> {
    match t {
        TransportSocket::RawBuffer => Ok(()),
        TransportSocket::Tls(ir) => {
            ClientContext::new(ir.clone(), &Secrets::default()).map(|_| ()).map_err(|e| e.to_string())
        }
        TransportSocket::ProxyProtocol { inner, .. } => transport(inner),
    }
}
