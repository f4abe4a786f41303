//! Connection pools of one worker: a pool per host, priority, protocol and transport variant. HTTP/1 connections are reused last
//! in, first out; HTTP/2 connections are shared. Follows Envoy's "Connection pooling" page.
//!
//! A request that finds no free place waits, and gets either a new connection or one that a request before it gave back,
//! whichever comes first (`Waiter`). New connections are made by tasks; idle ones need none, see `idle`.

mod conn;
pub(super) mod connect;
mod idle;
#[cfg(test)]
mod tests;

pub use conn::{ConnFacts, Lease, TcpLease};
pub use connect::ProxyAddresses;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::time::Instant;

use super::breaker::{Permit, Priority, Resource, Resources};
use super::cluster::Core;
use super::host::Host;
use crate::config::hcm::Protocol;
use crate::http::codec::{h1, h2};
use crate::tls::ConnectOptions;
use conn::{Conn, RequestGuard};
use connect::{ConnectError, Opened};

/// Why a request got no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// A circuit breaker is open: flag UO.
    #[error("overflow")]
    Overflow,
    /// The connection failed by the other side's doing: flag UF. The text is the transport failure reason.
    #[error("remote connection failure")]
    Remote(Arc<str>),
    /// The connection failed here.
    #[error("local connection failure")]
    Local(Arc<str>),
    /// `connect_timeout` passed.
    #[error("connection timeout")]
    Timeout,
}

impl PoolError {
    /// The transport failure reason; empty without one.
    pub fn transport_failure(&self) -> Option<&Arc<str>> {
        match self {
            PoolError::Remote(t) | PoolError::Local(t) if !t.is_empty() => Some(t),
            PoolError::Remote(_) | PoolError::Local(_) | PoolError::Overflow | PoolError::Timeout => None,
        }
    }
}

impl From<ConnectError> for PoolError {
    fn from(e: ConnectError) -> PoolError {
        match e {
            ConnectError::Timeout => PoolError::Timeout,
            ConnectError::Remote(t) => PoolError::Remote(t),
            ConnectError::Local(t) => PoolError::Local(t),
        }
    }
}

/// Which protocol a pool speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    H1,
    H2,
    /// What ALPN says, HTTP/1.1 without.
    Negotiated,
}

/// What connections must have in common to be interchangeable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PoolKey {
    pub(super) priority: Priority,
    pub(super) speaks: Speaks,
    /// Index into the cluster's transports.
    pub(super) transport: usize,
    pub(super) tls: ConnectOptions,
    pub(super) proxied: Option<ProxyAddresses>,
}

/// The pool.
pub(crate) struct Pool {
    core: Rc<Core>,
    host: Arc<Host>,
    pub(super) key: PoolKey,
    /// Idle HTTP/1 connections; the last one is taken first.
    idle: RefCell<Vec<Idle>>,
    /// HTTP/2 connections.
    shared: RefCell<Vec<Shared>>,
    waiters: RefCell<VecDeque<Rc<Waiter>>>,
    connecting: Cell<usize>,
    /// What ALPN chose last.
    negotiated: Cell<Option<Speaks>>,
    /// Leases out on HTTP/1 connections: they will come back.
    leased: Cell<usize>,
    closed: Cell<bool>,
    reaper: idle::Reaper,
}

struct Idle {
    stream: Box<h1::ClientConn>,
    conn: Rc<Conn>,
}

struct Shared {
    handle: h2::ClientHandle,
    conn: Rc<Conn>,
}

/// A request in the queue.
struct Waiter {
    slot: RefCell<Option<Result<Lease, PoolError>>>,
    waker: RefCell<Option<Waker>>,
    pending: RefCell<Option<PendingGuard>>,
}

/// `upstream_rq_pending_active` and the breaker's pending request.
struct PendingGuard {
    core: Rc<Core>,
    host: Arc<Host>,
    _permit: Permit,
}

impl PendingGuard {
    fn new(core: &Rc<Core>, host: &Arc<Host>, permit: Permit) -> PendingGuard {
        core.stats.traffic.upstream_rq_pending_total.inc();
        core.stats.traffic.upstream_rq_pending_active.inc();
        host.state.stats.rq_pending_active.inc();
        PendingGuard { core: core.clone(), host: host.clone(), _permit: permit }
    }
}

impl Drop for PendingGuard {
    fn drop(&mut self) {
        self.core.stats.traffic.upstream_rq_pending_active.dec();
        self.host.state.stats.rq_pending_active.dec();
    }
}

/// The wait for a connection. Dropping it leaves the queue (`upstream_rq_cancelled`).
pub struct Checkout {
    pool: Rc<Pool>,
    state: State,
}

enum State {
    Ready(Option<Result<Lease, PoolError>>),
    Waiting(Rc<Waiter>),
}

impl Future for Checkout {
    type Output = Result<Lease, PoolError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.state {
            // Polled again after it was ready: no lease can come any more.
            State::Ready(done) => {
                Poll::Ready(done.take().unwrap_or_else(|| Err(PoolError::Local(Arc::default()))))
            }
            State::Waiting(w) => {
                let Some(done) = w.slot.borrow_mut().take() else {
                    *w.waker.borrow_mut() = Some(cx.waker().clone());
                    return Poll::Pending;
                };
                self.state = State::Ready(None);
                Poll::Ready(done)
            }
        }
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        if let State::Waiting(w) = &self.state
            && w.slot.borrow_mut().take().is_none()
        {
            self.pool.waiters.borrow_mut().retain(|other| !Rc::ptr_eq(other, w));
            self.pool.core.stats.traffic.upstream_rq_cancelled.inc();
        }
    }
}

impl Pool {
    pub(super) fn new(core: Rc<Core>, host: Arc<Host>, key: PoolKey) -> Rc<Pool> {
        Rc::new(Pool {
            core,
            host,
            key,
            idle: RefCell::default(),
            shared: RefCell::default(),
            waiters: RefCell::default(),
            connecting: Cell::new(0),
            negotiated: Cell::new(None),
            leased: Cell::new(0),
            closed: Cell::new(false),
            reaper: idle::Reaper::default(),
        })
    }

    /// Asks for a place on a connection.
    pub(super) fn checkout(self: &Rc<Self>) -> Checkout {
        let state = match self.try_now() {
            Some(done) => State::Ready(Some(done)),
            None => self.enqueue(),
        };
        Checkout { pool: self.clone(), state }
    }

    /// Whether the pool holds nothing and nobody waits for it.
    pub(super) fn is_empty(&self) -> bool {
        self.idle.borrow().is_empty()
            && self.shared.borrow().is_empty()
            && self.waiters.borrow().is_empty()
            && self.connecting.get() == 0
            && self.leased.get() == 0
    }

    /// Takes no new requests: idle connections close now, busy ones when their requests end.
    pub(super) fn drain(&self) {
        self.closed.set(true);
        let idle = std::mem::take(&mut *self.idle.borrow_mut());
        drop(idle);
        self.shared.borrow_mut().retain(|s| {
            s.conn.draining.set(true);
            s.handle.drain();
            s.conn.active.get() > 0
        });
    }

    fn breaker(&self) -> &Arc<Resources> {
        self.core.shared.breaker(self.key.priority)
    }

    /// A free connection that still stands.
    fn try_now(self: &Rc<Self>) -> Option<Result<Lease, PoolError>> {
        self.sweep_closed();
        if let Some(i) = self.free_shared() {
            return Some(self.request().map(|guard| self.lease_shared(i, guard)));
        }
        if self.idle.borrow().is_empty() {
            return None;
        }
        let guard = match self.request() {
            Ok(g) => g,
            Err(e) => return Some(Err(e)),
        };
        let Idle { stream, conn } = self.idle.borrow_mut().pop()?;
        Some(Ok(self.lease_idle(stream, conn, guard)))
    }

    /// Drops the connections from the top of the stack that the other side has closed.
    fn sweep_closed(&self) {
        let mut cx = Context::from_waker(Waker::noop());
        let mut idle = self.idle.borrow_mut();
        while let Some(top) = idle.last_mut() {
            if top.stream.poll_closed(&mut cx).is_pending() {
                return;
            }
            top.conn.remote.set(true);
            idle.pop();
        }
    }

    fn free_shared(&self) -> Option<usize> {
        let mut all = self.shared.borrow_mut();
        all.retain(|s| !s.handle.is_closed() || s.conn.active.get() > 0);
        all.iter().position(|s| {
            s.handle.is_open()
                && !s.conn.draining.get()
                && (s.conn.active.get() as usize) < s.handle.max_concurrent_streams()
        })
    }

    /// The breaker's request, or `upstream_rq_active_overflow`.
    fn request(&self) -> Result<RequestGuard, PoolError> {
        match self.breaker().acquire(Resource::Requests) {
            Some(permit) => Ok(RequestGuard::new(&self.core, &self.host, Some(permit))),
            None => {
                self.core.stats.traffic.upstream_rq_active_overflow.inc();
                Err(PoolError::Overflow)
            }
        }
    }

    fn lease_idle(
        self: &Rc<Self>,
        stream: Box<h1::ClientConn>,
        conn: Rc<Conn>,
        guard: RequestGuard,
    ) -> Lease {
        self.leased.set(self.leased.get() + 1);
        // A connection has its facts from `established` on, before it can be idle.
        let facts = conn.facts.borrow().clone().unwrap_or_else(|| unknown_facts(&conn));
        Lease::h1(self, conn, facts, stream, guard)
    }

    fn lease_shared(self: &Rc<Self>, i: usize, guard: RequestGuard) -> Lease {
        self.leased.set(self.leased.get() + 1);
        let all = self.shared.borrow();
        let Shared { handle, conn } = &all[i];
        let facts = conn.facts.borrow().clone().unwrap_or_else(|| unknown_facts(conn));
        Lease::h2(self, conn.clone(), facts, handle.clone(), guard)
    }

    fn enqueue(self: &Rc<Self>) -> State {
        let t = &self.core.stats.traffic;
        let Some(permit) = self.breaker().acquire(Resource::Pending) else {
            t.upstream_rq_pending_overflow.inc();
            return State::Ready(Some(Err(PoolError::Overflow)));
        };
        let pending = PendingGuard::new(&self.core, &self.host, permit);
        let waiter = Rc::new(Waiter {
            slot: RefCell::default(),
            waker: RefCell::default(),
            pending: RefCell::new(Some(pending)),
        });
        self.waiters.borrow_mut().push_back(waiter.clone());
        self.grow();
        State::Waiting(waiter)
    }

    /// Makes a connection if the ones under way do not suffice for those who wait.
    fn grow(self: &Rc<Self>) {
        let waiting = self.waiters.borrow().len();
        if waiting == 0 || waiting <= self.connecting.get().saturating_mul(self.expected_streams()) {
            return;
        }
        let over_host = self.breaker().config().per_host_max_connections;
        let over_host = over_host.is_some_and(|max| self.host.state.stats.cx_active.get() >= u64::from(max));
        let permit = if over_host { None } else { self.breaker().acquire(Resource::Connections) };
        let permit = match permit {
            Some(p) => p,
            None => {
                self.core.stats.traffic.upstream_cx_overflow.inc();
                let none = self.connecting.get() == 0
                    && self.leased.get() == 0
                    && self.idle.borrow().is_empty()
                    && self.shared.borrow().is_empty();
                if !none {
                    return;
                }
                // Other hosts may hold every connection for ever: a pool without any is let through.
                self.breaker().acquire_anyway(Resource::Connections)
            }
        };
        self.connecting.set(self.connecting.get() + 1);
        let protocol = match self.key.speaks {
            Speaks::H1 => Some(Protocol::Http11),
            Speaks::H2 => Some(Protocol::Http2),
            Speaks::Negotiated => None,
        };
        let conn = Conn::open(self.core.clone(), self.host.clone(), permit, protocol);
        let pool = self.clone();
        tokio::task::spawn_local(async move { pool.connect(conn).await });
    }

    /// How many requests a connection that is being made can be expected to take.
    fn expected_streams(&self) -> usize {
        let speaks = match self.key.speaks {
            Speaks::Negotiated => self.negotiated.get().unwrap_or(Speaks::H1),
            s => s,
        };
        match speaks {
            Speaks::H2 => {
                let info = &self.core.shared.info;
                let streams = info.http.http2.max_concurrent_streams;
                info.max_requests_per_connection.filter(|m| *m > 0).map_or(streams, |m| m.min(streams))
                    as usize
            }
            Speaks::H1 | Speaks::Negotiated => 1,
        }
    }

    async fn connect(self: Rc<Self>, conn: Conn) {
        let result = self.open(&conn).await;
        self.connecting.set(self.connecting.get() - 1);
        match result {
            Ok(ready) => {
                if !self.closed.get() {
                    self.accept(ready, Rc::new(conn));
                }
            }
            Err(e) => {
                let t = &self.core.stats.traffic;
                t.upstream_cx_connect_fail.inc();
                self.host.state.stats.cx_connect_fail.inc();
                match &e {
                    ConnectError::Timeout => t.upstream_cx_connect_timeout.inc(),
                    ConnectError::Remote(_) => conn.remote.set(true),
                    ConnectError::Local(_) => {}
                }
                drop(conn);
                self.fail_all(&e.into());
            }
        }
    }

    async fn open(&self, conn: &Conn) -> Result<Ready, ConnectError> {
        let Some(transport) = self.core.shared.transports.get(self.key.transport) else {
            return Err(ConnectError::Local("no such transport socket".into()));
        };
        let opened =
            connect::open(&self.core, &self.host.address, transport, &self.key.tls, self.key.proxied).await?;
        let Opened { io, tls, local } = opened;
        let by_alpn = tls.as_ref().and_then(|t| t.alpn.as_deref()) == Some("h2");
        let h2 = match self.key.speaks {
            Speaks::H1 => false,
            Speaks::H2 => true,
            Speaks::Negotiated => by_alpn,
        };
        self.negotiated.set(Some(if h2 { Speaks::H2 } else { Speaks::H1 }));
        let protocol = if h2 { Protocol::Http2 } else { Protocol::Http11 };
        if self.key.speaks == Speaks::Negotiated {
            conn::count_protocol(&self.core.stats.traffic, Some(protocol));
        }
        conn.established(local, tls, Some(protocol));
        if !h2 {
            return Ok(Ready::H1(Box::new(h1::ClientConn::new(io, self.core.h1.clone()))));
        }
        let handshake = h2::ClientConn::handshake(io, self.core.h2.clone()).await;
        let (handle, driver) = handshake.map_err(|e| ConnectError::Remote(e.to_string().into()))?;
        Ok(Ready::H2(handle, Box::new(driver)))
    }

    /// A new connection stands: those who wait get it, or it is idle.
    fn accept(self: &Rc<Self>, ready: Ready, conn: Rc<Conn>) {
        match ready {
            Ready::H1(stream) => self.give(stream, conn),
            Ready::H2(handle, driver) => {
                let (weak, books) = (Rc::downgrade(self), conn.clone());
                self.shared.borrow_mut().push(Shared { handle, conn });
                tokio::task::spawn_local(drive(weak, books, driver));
                self.serve_waiters();
                self.reaper.watch(self);
            }
        }
    }

    /// An HTTP/1 connection came back or is new: to the first who waits, else to the idle ones.
    fn give(self: &Rc<Self>, stream: Box<h1::ClientConn>, conn: Rc<Conn>) {
        while let Some(waiter) = self.next_waiter() {
            match self.request() {
                Ok(guard) => {
                    let lease = self.lease_idle(stream, conn, guard);
                    return waiter.finish(Ok(lease));
                }
                Err(e) => waiter.finish(Err(e)),
            }
        }
        if !self.closed.get() {
            self.idle.borrow_mut().push(Idle { stream, conn });
            self.reaper.watch(self);
        }
    }

    /// A lease ended well on an HTTP/1 connection.
    pub(super) fn give_back(self: &Rc<Self>, mut stream: Box<h1::ClientConn>, conn: Rc<Conn>) {
        let mut cx = Context::from_waker(Waker::noop());
        // With someone waiting it goes out at once, so a close that came with the response must be seen now.
        if !self.waiters.borrow().is_empty() && stream.poll_closed(&mut cx).is_ready() {
            conn.remote.set(true);
            return;
        }
        self.give(stream, conn);
    }

    /// A lease is gone, with its connection or without.
    pub(super) fn released(self: &Rc<Self>) {
        self.leased.set(self.leased.get().saturating_sub(1));
        if self.closed.get() {
            self.drain();
        } else if !self.waiters.borrow().is_empty() {
            self.serve_waiters();
            self.grow();
        }
        if !self.shared.borrow().is_empty() {
            self.reaper.watch(self);
        }
    }

    fn serve_waiters(self: &Rc<Self>) {
        while let Some(i) = self.free_shared() {
            let Some(waiter) = self.next_waiter() else { return };
            let result = self.request().map(|guard| self.lease_shared(i, guard));
            waiter.finish(result);
        }
    }

    fn next_waiter(&self) -> Option<Rc<Waiter>> {
        self.waiters.borrow_mut().pop_front()
    }

    /// A connection failed: all who wait hear of it, as in Envoy, so that none hangs on a host that does not answer.
    fn fail_all(self: &Rc<Self>, e: &PoolError) {
        let all = std::mem::take(&mut *self.waiters.borrow_mut());
        for waiter in all {
            self.core.stats.traffic.upstream_rq_pending_failure_eject.inc();
            waiter.finish(Err(e.clone()));
        }
    }
}

/// A connection that stands, by protocol.
enum Ready {
    H1(Box<h1::ClientConn>),
    H2(h2::ClientHandle, Box<h2::Driver>),
}

impl Waiter {
    fn finish(&self, result: Result<Lease, PoolError>) {
        drop(self.pending.borrow_mut().take());
        *self.slot.borrow_mut() = Some(result);
        if let Some(w) = self.waker.borrow_mut().take() {
            w.wake();
        }
    }
}

/// Moves an HTTP/2 connection's bytes until its end.
async fn drive(pool: Weak<Pool>, conn: Rc<Conn>, driver: Box<h2::Driver>) {
    let result = driver.await;
    tracing::trace!(?result, "HTTP/2 connection ended");
    if !conn.draining.get() {
        conn.remote.set(true);
    }
    conn.draining.set(true);
    if conn.active.get() > 0 {
        conn.cut_short.set(true);
    }
    if let Some(pool) = pool.upgrade() {
        pool.shared.borrow_mut().retain(|s| !Rc::ptr_eq(&s.conn, &conn));
        pool.grow();
    }
}

fn unknown_facts(conn: &Conn) -> Rc<ConnFacts> {
    let now = Instant::now();
    Rc::new(ConnFacts {
        id: 0,
        local: None,
        protocol: None,
        tls: None,
        connect_begin: conn.begin,
        connect_end: now,
    })
}

/// Connects for a TCP proxy.
pub(super) async fn connect_tcp(
    core: Rc<Core>,
    host: Arc<Host>,
    transport: usize,
    tls: ConnectOptions,
    proxied: Option<ProxyAddresses>,
    priority: Priority,
) -> Result<TcpLease, PoolError> {
    let t = &core.stats.traffic;
    let Some(permit) = core.shared.breaker(priority).acquire(Resource::Connections) else {
        t.upstream_cx_overflow.inc();
        return Err(PoolError::Overflow);
    };
    let Some(pending) = core.shared.breaker(priority).acquire(Resource::Pending) else {
        t.upstream_rq_pending_overflow.inc();
        return Err(PoolError::Overflow);
    };
    let pending = PendingGuard::new(&core, &host, pending);
    let conn = Conn::open(core.clone(), host.clone(), permit, None);
    let Some(transport) = core.shared.transports.get(transport) else {
        return Err(PoolError::Local("no such transport socket".into()));
    };
    let opened = connect::open(&core, &host.address, transport, &tls, proxied).await;
    drop(pending);
    match opened {
        Ok(Opened { io, tls, local }) => {
            conn.established(local, tls, None);
            let facts = conn.facts.borrow().clone().unwrap_or_else(|| unknown_facts(&conn));
            let request = RequestGuard::new(&core, &host, None);
            Ok(TcpLease::new(io, conn, facts, request))
        }
        Err(e) => {
            let t = &core.stats.traffic;
            t.upstream_cx_connect_fail.inc();
            t.upstream_rq_pending_failure_eject.inc();
            host.state.stats.cx_connect_fail.inc();
            match &e {
                ConnectError::Timeout => t.upstream_cx_connect_timeout.inc(),
                ConnectError::Remote(_) => conn.remote.set(true),
                ConnectError::Local(_) => {}
            }
            Err(e.into())
        }
    }
}
