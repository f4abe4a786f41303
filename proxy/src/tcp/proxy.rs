//! A TCP proxy's connection from its first moment to its access log. Follows "TCP proxy" and `envoy.filters.network.tcp_proxy`.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::Instant;

use super::pump::Pump;
use super::relay::{End, Relay, reset_on_close};
use super::runtime::{self, Runtime};
use super::{Env, exchange};
use crate::config::address::Address;
use crate::config::filter::TcpProxy;
use crate::config::route::Metadata;
use crate::listener::Connection;
use crate::net::Io;
use crate::stream_info::{ResponseFlags, StreamInfo};
use crate::telemetry::format::{FormatContext, LogType};
use crate::telemetry::istio::metrics::TcpReport;
use crate::upstream::{Cluster, ConnectSpec, Host, LbContext, Outcome, PoolError, TcpLease};

/// Serves one connection. Dropping the future closes both sides; what has happened until then is still logged.
pub async fn serve<E: Env>(connection: Connection, config: Arc<TcpProxy>, info: StreamInfo, env: Rc<E>) {
    let Connection { io, info: conn, chain } = connection;
    let runtime = runtime::of(&config, &chain.config(), conn.direction, &*env);
    runtime.stats.downstream_cx_total.inc();
    let deadline = config.max_duration.map(|d| conn.start + d);
    let mut account = Account { info, runtime, report: None, counted: (0, 0) };
    let connecting = connect(&config, &mut account, &*env);
    let connected = match deadline {
        None => connecting.await,
        Some(at) => match tokio::time::timeout_at(at, connecting).await {
            Ok(connected) => connected,
            Err(_) => {
                account.max_duration_reached();
                None
            }
        },
    };
    let Some((cluster, lease)) = connected else { return };
    if config.flush_on_connected {
        account.log(LogType::TcpUpstreamConnected);
    }
    relay(io, lease, &cluster, &config, deadline, &mut account).await;
}

/// Chooses cluster and host and connects, again where `max_connect_attempts` allows it. `None`: the flags say why.
async fn connect<E: Env>(
    config: &TcpProxy,
    account: &mut Account,
    env: &E,
) -> Option<(Rc<Cluster>, TcpLease)> {
    let (name, own) = choose(&config.clusters, env.random())?;
    let info = &mut account.info;
    let Some(cluster) = env.clusters().get(name) else {
        account.runtime.stats.downstream_cx_no_route.inc();
        info.flags.set(ResponseFlags::NO_CLUSTER_FOUND);
        return None;
    };
    info.upstream.cluster = Some(name.clone());
    info.upstream.cluster_stat_name = Some(cluster.info().stat_name.clone());
    info.upstream.cluster_metadata.clone_from(&cluster.info().metadata);
    let criteria = criteria(&config.metadata_match, own);
    let conn = info.conn.clone();
    let context = LbContext {
        hash: config.hash_source_ip.then(|| hash(&conn.remote.ip().to_string())),
        metadata_match: criteria.as_ref(),
        original_dst: conn.local_restored.then_some(conn.local),
        ..LbContext::default()
    };
    let spec = ConnectSpec { proxied: Some((conn.remote, conn.local)), ..ConnectSpec::default() };
    for _ in 0..config.max_connect_attempts.max(1) {
        let Ok(host) = cluster.pick(&context) else {
            info.flags.set(ResponseFlags::NO_HEALTHY_UPSTREAM);
            return None;
        };
        note_host(info, &host);
        match cluster.connect_tcp(&host, &spec).await {
            Ok(lease) => {
                cluster.report(&host, Outcome::ConnectSuccessFinal);
                note_connection(info, &lease);
                return Some((cluster, lease));
            }
            Err(PoolError::Overflow) => {
                info.flags.set(ResponseFlags::UPSTREAM_OVERFLOW);
                return None;
            }
            Err(e) => {
                info.upstream.transport_failure = e.transport_failure().cloned();
                info.flags.set(ResponseFlags::UPSTREAM_CONNECTION_FAILURE);
                let timeout = matches!(e, PoolError::Timeout);
                cluster.report(&host, if timeout { Outcome::LocalTimeout } else { Outcome::ConnectFailed });
            }
        }
    }
    info.flags.set(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
    let name = format!("cluster.{}.upstream_cx_connect_attempts_exceeded", cluster.info().stat_name);
    env.stats().shared_counter(&name).inc();
    None
}

/// The cluster, by weight where there are several.
fn choose(clusters: &[(Arc<str>, u32, Metadata)], random: u64) -> Option<(&Arc<str>, &Metadata)> {
    let total: u64 = clusters.iter().map(|(_, w, _)| u64::from(*w)).sum();
    let mut left = random.checked_rem(total).unwrap_or(0);
    for (name, weight, metadata) in clusters {
        if left < u64::from(*weight) || total == 0 {
            return Some((name, metadata));
        }
        left -= u64::from(*weight);
    }
    None
}

/// The subset criteria: the proxy's own, overlaid with the weighted cluster's.
fn criteria(all: &Metadata, own: &Metadata) -> Option<Map<String, Value>> {
    match (all, own) {
        (Some(all), Some(own)) => {
            let mut merged = Map::clone(all);
            merged.extend(Map::clone(own));
            Some(merged)
        }
        (all, own) => own.as_deref().or(all.as_deref()).cloned(),
    }
}

fn hash(text: &str) -> u64 {
    xxhash_rust::xxh64::xxh64(text.as_bytes(), 0)
}

fn note_host(info: &mut StreamInfo, host: &Host) {
    let up = &mut info.upstream;
    up.host = host.address.socket();
    up.host_text = match &host.address {
        Address::Socket(_) => None,
        other => Some(other.to_string().into()),
    };
    up.hostname = (!host.hostname.is_empty()).then(|| host.hostname.clone());
    up.host_metadata.clone_from(&host.metadata);
    info.attempt_count += 1;
}

fn note_connection(info: &mut StreamInfo, lease: &TcpLease) {
    let facts = lease.facts();
    // What earlier attempts left behind is no longer true.
    info.flags = ResponseFlags(info.flags.0 & !ResponseFlags::UPSTREAM_CONNECTION_FAILURE.0);
    info.upstream.transport_failure = None;
    info.upstream.local = facts.local;
    info.upstream.tls.clone_from(&facts.tls);
    info.upstream.connection_id = Some(facts.id);
    info.times.upstream_connect_begin = Some(facts.connect_begin.saturating_duration_since(info.start));
    info.times.upstream_connect_end = Some(facts.connect_end.saturating_duration_since(info.start));
}

async fn relay(
    mut io: Io,
    mut lease: TcpLease,
    cluster: &Cluster,
    config: &TcpProxy,
    deadline: Option<Instant>,
    account: &mut Account,
) {
    let runtime = account.runtime.clone();
    let alpn_is = |tls: &Option<Arc<crate::stream_info::TlsInfo>>, protocol: &Arc<str>| {
        let found = tls.as_ref().and_then(|t| t.alpn.as_ref()) == Some(protocol);
        let stats = &runtime.exchange_stats;
        if found {
            stats.alpn_protocol_found.inc();
        } else {
            stats.alpn_protocol_not_found.inc();
        };
        found
    };
    let from_client = runtime.exchange.as_ref().is_some_and(|p| alpn_is(&account.info.conn.tls, p));
    let to_host = cluster
        .info()
        .metadata_exchange
        .as_ref()
        .is_some_and(|(p, _)| alpn_is(&account.info.upstream.tls, p));
    let lead = if to_host { runtime.own_header.clone() } else { Vec::new() };
    let mut relay = Relay::new(
        Pump::new(lead, from_client),
        Pump::new(Vec::new(), to_host),
        config.idle_timeout,
        deadline,
        tick(&runtime, config),
    );
    // Istio counts a connection as opened once it knows the peer.
    let mut awaited = u8::from(from_client) + u8::from(to_host);
    if awaited == 0 {
        account.open_report();
    }
    let mut last_log = Instant::now();
    let end = loop {
        let end = relay
            .run(&mut io, &mut lease.io, |up, down| {
                for (header, from_client) in [(up.exchanged.take(), true), (down.exchanged.take(), false)] {
                    let Some(header) = header else { continue };
                    if header.is_some() && from_client {
                        down.set_lead(runtime.own_header.clone());
                    }
                    account.exchanged(header.as_ref(), from_client);
                    awaited = awaited.saturating_sub(1);
                    if awaited == 0 {
                        account.open_report();
                    }
                }
            })
            .await;
        account.count(&relay.to_upstream, &relay.to_downstream, &lease);
        if end != End::Tick {
            break end;
        }
        account.report_progress();
        if config.access_log_flush_interval.is_some_and(|every| last_log.elapsed() >= every) {
            account.log(LogType::TcpPeriodic);
            last_log = Instant::now();
        }
    };
    match end {
        End::Closed { upstream_first } => {
            if upstream_first {
                lease.closed_by_peer();
            }
        }
        End::DownstreamReset => reset_on_close(&lease.io),
        End::UpstreamReset => {
            lease.closed_by_peer();
            reset_on_close(&io);
        }
        End::IdleTimeout => {
            account.runtime.stats.idle_timeout.inc();
            account.info.termination_details = Some("tcp_session_idle_timeout".into());
        }
        End::MaxDuration => account.max_duration_reached(),
        End::Tick => {}
    }
}

/// The shortest of the periods at which something is reported.
fn tick(runtime: &Runtime, config: &TcpProxy) -> Option<Duration> {
    let istio = runtime.istio.as_ref().map(|(_, every)| *every);
    istio.into_iter().chain(config.access_log_flush_interval).min()
}

/// What is told of a connection; closes the books when dropped.
struct Account {
    info: StreamInfo,
    runtime: Rc<Runtime>,
    report: Option<TcpReport>,
    /// Bytes counted in stats so far: received, sent.
    counted: (u64, u64),
}

impl Account {
    fn count(&mut self, up: &Pump, down: &Pump, lease: &TcpLease) {
        let info = &mut self.info;
        let wire = (up.read, down.written);
        self.runtime.stats.downstream_cx_rx_bytes_total.add(wire.0 - self.counted.0);
        self.runtime.stats.downstream_cx_tx_bytes_total.add(wire.1 - self.counted.1);
        self.counted = wire;
        lease.count(down.read - info.upstream.wire_received, up.written - info.upstream.wire_sent);
        info.downstream_wire_received = up.read;
        info.downstream_wire_sent = down.written;
        info.bytes_received = up.read - up.framing.read;
        info.bytes_sent = down.written.saturating_sub(down.framing.written);
        info.upstream.wire_received = down.read;
        info.upstream.wire_sent = up.written;
    }

    fn exchanged(&mut self, header: Option<&exchange::Header>, from_client: bool) {
        let stats = &self.runtime.exchange_stats;
        let Some(header) = header else {
            stats.initial_header_not_found.inc();
            return;
        };
        let Some(peer) = header.peer() else {
            stats.header_not_found.inc();
            return;
        };
        stats.metadata_added.inc();
        if from_client {
            self.info.downstream_peer = Some(peer);
        } else {
            self.info.upstream_peer = Some(peer);
        }
    }

    fn open_report(&mut self) {
        if let (Some((istio, _)), None) = (&self.runtime.istio, &self.report) {
            self.report = Some(istio.tcp_open(&FormatContext::new(None, &self.info)));
        }
    }

    fn report_progress(&mut self) {
        self.open_report();
        if let Some(report) = &mut self.report {
            report.progress(&self.info);
        }
    }

    fn max_duration_reached(&mut self) {
        self.runtime.stats.max_downstream_connection_duration.inc();
        self.info.flags.set(ResponseFlags::DURATION_TIMEOUT);
    }

    fn log(&self, log_type: LogType) {
        if !self.runtime.logger.is_empty() {
            self.runtime.logger.log(&FormatContext { log_type, ..FormatContext::new(None, &self.info) });
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.info.times.complete = Some(self.info.start.elapsed());
        self.open_report();
        if let (Some((istio, _)), Some(report)) = (&self.runtime.istio, self.report.take()) {
            istio.tcp_close(report, &FormatContext::new(None, &self.info));
        }
        self.log(LogType::TcpConnectionEnd);
    }
}
