//! The life of a downstream connection: limits, listener filters, hand-off, chain match, TLS, network filters, end. Follows
//! Envoy's "Life of a request", its first half.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::SystemTime;

use tokio::time::Instant;

use super::active::{Active, Current};
use super::chain::ActiveChain;
use super::chain_match::Facts;
use super::inspect::{self, Ending, Inspected};
use super::manager::Manager;
use super::{Connection, network};
use crate::config::listener::FilterChain;
use crate::net::{Io, Raw};
use crate::stream_info::{ConnInfo, ResponseFlags, StreamInfo, TlsInfo};

/// A connection as accepted.
#[derive(Debug)]
pub(super) struct Arrival {
    pub raw: Raw,
    pub remote: SocketAddr,
    pub local: SocketAddr,
    pub is_unix: bool,
}

/// Serves a connection to its end. Dropping the future closes it, and its gauges are given back.
pub(super) async fn serve(active: Rc<Active>, arrival: Arrival) {
    let Some(manager) = active.manager.upgrade() else { return };
    let start = (Instant::now(), SystemTime::now());
    let listener = active.current().compiled.listener.clone();
    if !active.has_room(&listener) {
        active.stats.listener.downstream_cx_overflow.inc();
        return;
    }
    if !manager.shared.enter(listener.ignore_global_conn_limit) {
        active.stats.listener.downstream_global_cx_overflow.inc();
        return;
    }
    let _place = Place { manager: manager.clone(), active: active.clone() };
    active.connections.set(active.connections.get() + 1);
    let direct = (arrival.remote, arrival.local);
    let is_unix = arrival.is_unix;
    let Some((raw, facts, owner)) = Box::pin(inspect(&manager, &active, arrival)).await else { return };
    let current = owner.current();
    let Some(index) = choose(&current, &facts, direct.0, is_unix) else {
        owner.stats.listener.no_filter_chain_match.inc();
        let info = conn_info(&manager, &owner, None, &facts, direct, start, None, is_unix);
        let mut stream = StreamInfo::new(Rc::new(info), start.0, start.1);
        stream.flags.set(ResponseFlags::NO_ROUTE_FOUND);
        stream.details = Some("filter_chain_not_found".into());
        stream.times.complete = Some(start.0.elapsed());
        manager.handler.log(&current.compiled.listener.access_log, &stream);
        return;
    };
    let _open = Open::new(owner.clone(), start.0);
    let chain = current.chains[index].clone();
    let config = chain.config();
    let (io, tls) = match secure(&manager, &owner, &current, index, raw, &config).await {
        Ok(secured) => secured,
        Err(reason) => {
            let info = conn_info(&manager, &owner, Some(&config), &facts, direct, start, None, is_unix);
            let mut stream = StreamInfo::new(Rc::new(info), start.0, start.1);
            stream.downstream_transport_failure = Some(reason.into());
            stream.times.complete = Some(start.0.elapsed());
            manager.handler.log(&current.compiled.listener.access_log, &stream);
            return;
        }
    };
    let info = Rc::new(conn_info(&manager, &owner, Some(&config), &facts, direct, start, tls, is_unix));
    drop(facts);
    let connection = Connection { io, info: info.clone(), chain: chain.clone() };
    run_chain(&manager, connection, &config, &chain).await;
    if !current.compiled.listener.access_log.is_empty() {
        let mut stream = StreamInfo::new(info, start.0, start.1);
        stream.times.complete = Some(start.0.elapsed());
        manager.handler.log(&current.compiled.listener.access_log, &stream);
    }
}

async fn run_chain(manager: &Manager, connection: Connection, config: &FilterChain, chain: &ActiveChain) {
    let serving = network::start(manager, connection, config);
    tokio::select! {
        () = serving => {}
        // The chain has been gone for the whole drain time.
        () = chain.closing() => {}
    }
}

/// Runs the listener filters, and those of the listener that the original destination belongs to.
async fn inspect(
    manager: &Rc<Manager>,
    active: &Rc<Active>,
    arrival: Arrival,
) -> Option<(Raw, Inspected, Rc<Active>)> {
    let mut raw = arrival.raw;
    let mut facts = Inspected {
        remote: arrival.remote,
        local: arrival.local,
        local_restored: false,
        server_name: None,
        protocols: Vec::new(),
        transport_protocol: "",
    };
    let mut owner = active.clone();
    let mut may_hand_off = true;
    loop {
        let listener = owner.current().compiled.listener.clone();
        let stats = &owner.stats.listener;
        stats.downstream_pre_cx_active.inc();
        let ending = {
            let _pre = Pre(&owner);
            inspect::run(&listener, &mut raw, &mut facts, &manager.inspectors).await
        };
        match ending {
            Ending::Done => {}
            Ending::TimedOut => {
                stats.downstream_pre_cx_timeout.inc();
                return None;
            }
            Ending::PeerClosed => {
                stats.downstream_listener_filter_remote_close.inc();
                return None;
            }
            Ending::Refused => {
                stats.downstream_listener_filter_error.inc();
                return None;
            }
        }
        let next = (may_hand_off && listener.use_original_dst && facts.local_restored)
            .then(|| manager.at(facts.local))
            .flatten()
            .filter(|next| !Rc::ptr_eq(next, &owner));
        match next {
            // A connection is handed on once (Envoy's `hand_off_restored_destination_connections`).
            Some(next) => {
                owner = next;
                may_hand_off = false;
            }
            None => break,
        }
    }
    if facts.transport_protocol.is_empty() {
        // What Envoy sets when no inspector has found anything.
        facts.transport_protocol = "raw_buffer";
    }
    Some((raw, facts, owner))
}

fn choose(current: &Current, facts: &Inspected, direct_remote: SocketAddr, is_unix: bool) -> Option<usize> {
    let address = |a: SocketAddr| (!is_unix).then_some(a);
    current.compiled.find(&Facts {
        local: address(facts.local),
        remote: address(facts.remote),
        direct_remote: address(direct_remote),
        server_name: facts.server_name.as_deref().unwrap_or(""),
        transport_protocol: facts.transport_protocol,
        application_protocols: &facts.protocols,
    })
}

/// The handshake, where the chain has one. The error is the transport failure reason.
async fn secure(
    manager: &Manager,
    owner: &Active,
    current: &Current,
    index: usize,
    raw: Raw,
    config: &FilterChain,
) -> Result<(Io, Option<TlsInfo>), String> {
    let secrets = manager.shared.store.load().secrets.clone();
    let Some(context) = current.compiled.tls(index, &secrets) else {
        return Ok((Io::Plain(raw), None));
    };
    let context = context.map_err(|e| {
        tracing::warn!("listener '{}', filter chain '{}': {e}", owner.name, config.name);
        e.to_string()
    })?;
    let stats = owner.tls_stats(manager);
    let handshake = context.accept(raw, &secrets, stats);
    let done = match config.transport_connect_timeout {
        None => handshake.await,
        Some(limit) => match tokio::time::timeout(limit, handshake).await {
            Ok(done) => done,
            Err(_) => {
                owner.stats.listener.downstream_cx_transport_socket_connect_timeout.inc();
                return Err("transport socket timeout was reached".into());
            }
        },
    };
    match done {
        Ok((io, info)) => Ok((io, Some(info))),
        Err(e) => {
            tracing::debug!("listener '{}': {e}", owner.name);
            Err(e.reason.to_string())
        }
    }
}

#[allow(clippy::too_many_arguments, reason = "the fields of one struct, gathered from where they are known")]
fn conn_info(
    manager: &Manager,
    owner: &Active,
    chain: Option<&FilterChain>,
    facts: &Inspected,
    direct: (SocketAddr, SocketAddr),
    start: (Instant, SystemTime),
    tls: Option<TlsInfo>,
    is_unix: bool,
) -> ConnInfo {
    let sni = facts.server_name.clone().or_else(|| tls.as_ref().and_then(|t| t.sni.clone()));
    ConnInfo {
        id: manager.shared.connection_id(),
        remote: facts.remote,
        direct_remote: direct.0,
        local: facts.local,
        direct_local: direct.1,
        local_restored: facts.local_restored,
        sni,
        transport_protocol: facts.transport_protocol,
        tls: tls.map(std::sync::Arc::new),
        listener_name: owner.name.clone(),
        listener_stat: owner.stat.clone(),
        filter_chain_name: chain.map_or_else(|| "".into(), |c| c.name.clone()),
        direction: owner.current().compiled.listener.direction,
        start: start.0,
        start_time: start.1,
        is_unix,
    }
}

/// A place under the limits.
struct Place {
    manager: Rc<Manager>,
    active: Rc<Active>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.manager.shared.leave();
        self.active.connections.set(self.active.connections.get().saturating_sub(1));
    }
}

/// `downstream_pre_cx_active`.
struct Pre<'a>(&'a Active);

impl Drop for Pre<'_> {
    fn drop(&mut self) {
        self.0.stats.listener.downstream_pre_cx_active.dec();
    }
}

/// `downstream_cx_active` and what is counted at a connection's end.
struct Open {
    active: Rc<Active>,
    start: Instant,
}

impl Open {
    fn new(active: Rc<Active>, start: Instant) -> Open {
        active.stats.listener.downstream_cx_total.inc();
        active.stats.listener.downstream_cx_active.inc();
        active.stats.worker.downstream_cx_total.inc();
        active.stats.worker.downstream_cx_active.inc();
        Open { active, start }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let stats = &self.active.stats;
        stats.listener.downstream_cx_destroy.inc();
        stats.listener.downstream_cx_active.dec();
        stats.worker.downstream_cx_active.dec();
        let ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        stats.listener.downstream_cx_length_ms.record(ms);
    }
}
