//! Forwarding: tries of a request at a cluster, until one response is good enough, and its relay.
//! (Envoy docs: configuration/http/http_filters/router_filter.)

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::route::{Forward, HostRewrite, RetryPolicy};
use crate::head::HeaderId;
use crate::http::codec::{CodecError, ResetReason, ResponseMeta, Tunnel, UpStream};
use crate::http::exchange::{Broken, Exchange, auto_host, opens_tunnel};
use crate::http::filters::Matched;
use crate::http::local_reply::LocalReply;
use crate::http::mirror;
use crate::http::relay::{Download, Side};
use crate::router::mutate::Levels;
use crate::router::retry::{RetryState, Verdict};
use crate::router::timeouts::{self, Timeouts};
use crate::router::{hash, rewrite};
use crate::stream_info::ResponseFlags;
use crate::upstream::{Cluster, ConnectSpec, Host, LbContext, Lease, Outcome, PoolError, Priority};

/// The limits of the exchange in time, as instants once they run.
#[derive(Debug, Default)]
struct Deadlines {
    /// Route timeout; runs once the request has arrived whole.
    global: Option<Instant>,
    per_try: Option<Instant>,
    max_stream: Option<Instant>,
    /// Stream idle timeout, a duration: it runs from the last activity.
    idle: Option<Duration>,
    per_try_idle: Option<Duration>,
}

/// Which limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    Global,
    PerTry,
    PerTryIdle,
    MaxStream,
    Idle,
}

/// How a try ended before its response was accepted.
#[derive(Debug)]
enum Try {
    Head(ResponseMeta),
    Failed(ResetReason),
    Limit(Limit),
    Down(CodecError),
}

impl Deadlines {
    fn next(&self, activity: Instant) -> Option<(Instant, Limit)> {
        [
            self.global.map(|d| (d, Limit::Global)),
            self.per_try.map(|d| (d, Limit::PerTry)),
            self.max_stream.map(|d| (d, Limit::MaxStream)),
            self.idle.map(|d| (activity + d, Limit::Idle)),
            self.per_try_idle.map(|d| (activity + d, Limit::PerTryIdle)),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|(d, _)| *d)
    }
}

/// What stays the same over the tries.
struct Plan<'m> {
    matched: &'m Matched,
    forward: &'m Forward,
    cluster: std::rc::Rc<Cluster>,
    timeouts: Timeouts,
    policy: Option<Arc<RetryPolicy>>,
    retry: Option<RetryState>,
    hash: Option<u64>,
    priority: Priority,
    tried: Vec<Arc<Host>>,
    limits: Deadlines,
}

impl Exchange<'_> {
    /// Forwards the request and relays the response.
    pub(super) async fn forward(&mut self, m: &Matched, f: &Forward) -> Result<(), Broken> {
        self.hcm.stats.rq_total.inc();
        let cluster = self.info.upstream.cluster.clone().and_then(|name| self.worker.clusters.get(&name));
        let Some(cluster) = cluster else {
            self.hcm.stats.no_cluster.inc();
            // Nothing was chosen, as far as the log is concerned.
            self.info.upstream.cluster = None;
            let reply = LocalReply::new(f.cluster_not_found_code, "", "cluster_not_found");
            return self.reply(reply.flags(ResponseFlags::NO_CLUSTER_FOUND)).await;
        };
        self.info.upstream.cluster_stat_name = Some(cluster.info().stat_name.clone());
        self.info.upstream.cluster_metadata = cluster.info().metadata.clone();
        let router = &self.hcm.chain.router;
        let policy = f.retry.clone().or_else(|| m.vhost.retry.clone());
        let timeouts = timeouts::evaluate(
            f,
            policy.as_deref(),
            &mut self.request,
            router.respect_expected_rq_timeout,
            router.suppress_envoy_headers,
        );
        let retry = RetryState::new(policy.as_deref(), &mut self.request);
        let hashed = hash::hash(&f.hash, &self.request, &self.info);
        self.set_cookie = hashed.set_cookie;
        let levels = Levels { config: &m.config, vhost: &m.vhost, route: &m.route, weighted: m.weighted() };
        if !levels.is_empty() {
            levels.request(&mut self.request, &self.info);
        }
        rewrite::host(f, m.weighted().and_then(|w| w.host_rewrite.as_ref()), &mut self.request);
        rewrite::path(f, &m.route, &mut self.request, router.suppress_envoy_headers);
        if self.meta.expect_continue && !self.hcm.config.proxy_100_continue {
            self.request.remove(HeaderId::Expect);
            self.response.set_status(100);
            self.down.send_informational(&self.response);
            self.response.clear();
            // The client sends nothing before it has this; a failed flush shows at the next read.
            let _ = poll_fn(|cx| self.down.poll_flush(cx)).await;
        }
        let mirrors = mirror::chosen(self, m, f);
        if retry.is_some() || !mirrors.is_empty() {
            let limit = m
                .route
                .retry_buffer_limit
                .or(m.vhost.retry_buffer_limit)
                .unwrap_or(u64::from(cluster.info().per_connection_buffer_limit));
            self.upload.keep(usize::try_from(limit).unwrap_or(usize::MAX));
        }
        let limits = Deadlines {
            global: None,
            per_try: None,
            max_stream: timeouts
                .max_stream
                .or(self.hcm.config.max_stream_duration)
                .map(|d| self.info.start + d),
            idle: match (f.idle_timeout_off, f.idle_timeout) {
                (true, _) => None,
                (false, Some(d)) => Some(d),
                (false, None) => self.hcm.config.stream_idle_timeout,
            },
            per_try_idle: timeouts.per_try_idle,
        };
        let mut plan = Plan {
            matched: m,
            forward: f,
            cluster,
            timeouts,
            policy,
            retry,
            hash: hashed.hash,
            priority: if f.high_priority { Priority::High } else { Priority::Default },
            tried: Vec::new(),
            limits,
        };
        let result = self.tries(&mut plan).await;
        mirror::send(self, mirrors);
        result
    }

    async fn tries(&mut self, plan: &mut Plan<'_>) -> Result<(), Broken> {
        loop {
            self.info.attempt_count += 1;
            if plan.matched.vhost.attempt_count_in_request {
                let n = self.info.attempt_count;
                self.request.set(HeaderId::XEnvoyAttemptCount, itoa::Buffer::new().format(n).as_bytes());
            }
            if self.upload.received && plan.limits.global.is_none() {
                plan.limits.global = plan.timeouts.global.map(|d| Instant::now() + d);
            }
            let host = {
                let ctx = LbContext {
                    hash: plan.hash,
                    metadata_match: plan
                        .matched
                        .weighted()
                        .and_then(|w| w.metadata_match.as_deref())
                        .or(plan.forward.metadata_match.as_deref()),
                    original_dst: Some(self.info.conn.local).filter(|_| self.info.conn.local_restored),
                    head: Some(&self.request),
                    avoid: if plan.policy.as_ref().is_some_and(|p| p.avoid_previous_hosts) {
                        &plan.tried
                    } else {
                        &[]
                    },
                    attempts: plan.policy.as_ref().map_or(1, |p| p.host_selection_attempts),
                };
                plan.cluster.pick(&ctx)
            };
            let Ok(host) = host else {
                let reply = LocalReply::new(503, "no healthy upstream", "no_healthy_upstream");
                return self.reply(reply.flags(ResponseFlags::NO_HEALTHY_UPSTREAM)).await;
            };
            self.info.upstream.host = host.socket();
            self.info.upstream.host_text = host.socket().is_none().then(|| host.address.to_string().into());
            self.info.upstream.hostname = Some(host.hostname.clone()).filter(|h| !h.is_empty());
            self.info.upstream.host_metadata = host.metadata.clone();
            if matches!(plan.forward.host_rewrite, HostRewrite::Auto) {
                auto_host(
                    &mut self.request,
                    self.info.upstream.hostname.as_deref(),
                    plan.forward.append_x_forwarded_host,
                );
            }
            let attempt = self.attempt(plan, &host).await;
            plan.tried.push(host.clone());
            let wait = match attempt {
                Attempt::Done(r) => return r,
                Attempt::Again(wait) => wait,
            };
            self.upload.rewind();
            self.response.clear();
            self.info.upstream.transport_failure = None;
            if !wait.is_zero()
                && let Some(done) = self.back_off(plan, wait).await
            {
                return done;
            }
        }
    }

    /// Waits before the next try, watching the client and the limits.
    async fn back_off(&mut self, plan: &Plan<'_>, wait: Duration) -> Option<Result<(), Broken>> {
        let until = Instant::now() + wait;
        self.timer.rearm();
        let event = poll_fn(|cx| {
            if let Some(e) = self.client_gone(cx) {
                return Poll::Ready(Some(Err(e)));
            }
            let limit = plan.limits.next(self.last_activity);
            match limit {
                Some((d, l)) if d < until => {
                    if self.timer.poll_reached(cx, d) {
                        return Poll::Ready(Some(Ok(l)));
                    }
                }
                _ => {
                    if self.timer.poll_reached(cx, until) {
                        return Poll::Ready(None);
                    }
                }
            }
            Poll::Pending
        })
        .await?;
        Some(match event {
            Err(e) => Err(Broken::Downstream(e)),
            Ok(limit) => self.limit_reached(plan, limit).await,
        })
    }

    /// While only waiting: whether the client went away.
    fn client_gone(&mut self, cx: &mut Context<'_>) -> Option<CodecError> {
        if !self.upload.received {
            return None;
        }
        match self.down.poll_closed(cx) {
            Poll::Ready(e) => Some(e),
            Poll::Pending => None,
        }
    }

    /// One try at one host.
    async fn attempt(&mut self, plan: &mut Plan<'_>, host: &Arc<Host>) -> Attempt {
        let started = Instant::now();
        self.info.times.upstream_connect_begin = Some(self.info.elapsed(started));
        if self.upload.received {
            plan.limits.per_try = plan.timeouts.per_try.map(|d| started + d);
        }
        let lease = match self.checkout(plan, host).await {
            Ok(lease) => lease,
            Err(Waited::Down(e)) => return Attempt::Done(Err(Broken::Downstream(e))),
            Err(Waited::Limit(Limit::PerTry)) => return self.per_try_timeout(plan, host, false).await,
            Err(Waited::Limit(l)) => return Attempt::Done(self.limit_reached(plan, l).await),
            Err(Waited::Pool(e)) => return self.pool_failed(plan, host, e).await,
        };
        self.attempt_on(plan, host, lease).await
    }

    async fn checkout(&mut self, plan: &Plan<'_>, host: &Arc<Host>) -> Result<Lease, Waited> {
        let http = &plan.cluster.info().http;
        let spec = ConnectSpec {
            priority: plan.priority,
            downstream: Some(self.meta.protocol),
            alpn: self.state.alpn_override.clone(),
            authority: (http.auto_sni || http.auto_san_validation)
                .then(|| std::str::from_utf8(self.request.authority()).ok().map(Into::into))
                .flatten(),
            proxied: None,
        };
        let mut future = pin!(plan.cluster.checkout(host, &spec));
        self.timer.rearm();
        poll_fn(|cx| {
            if let Poll::Ready(r) = future.as_mut().poll(cx) {
                return Poll::Ready(r.map_err(Waited::Pool));
            }
            if self.upload.received
                && let Poll::Ready(e) = self.down.poll_closed(cx)
            {
                return Poll::Ready(Err(Waited::Down(e)));
            }
            match plan.limits.next(self.last_activity) {
                Some((d, l)) if self.timer.poll_reached(cx, d) => Poll::Ready(Err(Waited::Limit(l))),
                _ => Poll::Pending,
            }
        })
        .await
    }

    async fn attempt_on(&mut self, plan: &mut Plan<'_>, host: &Arc<Host>, mut lease: Lease) -> Attempt {
        let now = Instant::now();
        self.last_activity = now;
        self.info.times.upstream_connect_end = Some(self.info.elapsed(now));
        self.info.times.upstream_tx_begin = Some(self.info.elapsed(now));
        let facts = lease.facts();
        self.info.upstream.local = facts.local;
        self.info.upstream.connection_id = Some(facts.id);
        self.info.upstream.tls.clone_from(&facts.tls);
        self.info.upstream.protocol = facts.protocol;
        let end = self.upload.is_empty();
        let mut try_span = self.inject_trace(&plan.cluster.info().name);
        let outcome = match lease.open(&self.request, end) {
            Ok(up) => {
                self.timer.rearm();
                poll_fn(|cx| self.poll_try(cx, plan, up)).await
            }
            Err(e) => Try::Failed(e.reset_reason()),
        };
        self.finish_try_span(&mut try_span, matches!(outcome, Try::Head(_)));
        match outcome {
            Try::Head(meta) => self.on_head(plan, host, lease, meta).await,
            Try::Down(e) => {
                plan.cluster.stats().traffic.upstream_rq_tx_reset.inc();
                self.settle(lease);
                Attempt::Done(Err(Broken::Downstream(e)))
            }
            Try::Limit(Limit::PerTry) => {
                self.settle(lease);
                self.per_try_timeout(plan, host, true).await
            }
            Try::Limit(l) => {
                if l == Limit::Global {
                    plan.cluster.report(host, Outcome::LocalTimeout);
                }
                self.settle(lease);
                Attempt::Done(self.limit_reached(plan, l).await)
            }
            Try::Failed(reason) => {
                let sent = lease.stream().is_some_and(|s| s.counts().wire_sent > 0);
                plan.cluster.stats().traffic.upstream_rq_rx_reset.inc();
                plan.cluster.report(host, Outcome::RequestFailed);
                self.settle(lease);
                self.try_failed(plan, reason, sent).await
            }
        }
    }

    /// Gives the connection back or closes it, keeping its byte counts.
    fn settle(&mut self, mut lease: Lease) {
        let c = lease.stream().map(|s| s.counts()).unwrap_or_default();
        let up = &mut self.info.upstream;
        up.wire_sent += c.wire_sent;
        up.wire_received += c.wire_received;
        up.header_sent += c.header_sent;
        up.header_received += c.header_received;
        self.retry_permit = None;
    }

    /// Moves the request and waits for a response head.
    fn poll_try(&mut self, cx: &mut Context<'_>, plan: &mut Plan<'_>, up: &mut UpStream) -> Poll<Try> {
        loop {
            let mut moved = false;
            if !self.upload.sent {
                let messages = self.state.grpc.on.then_some(&mut self.state.grpc.request);
                match self.upload.poll(cx, self.down, up, messages, &mut moved) {
                    Poll::Ready(Ok(())) => {
                        let now = Instant::now();
                        self.info.times.upstream_tx_end = Some(self.info.elapsed(now));
                        self.info.times.downstream_rx_end.get_or_insert(self.info.elapsed(now));
                        if plan.limits.global.is_none() {
                            plan.limits.global = plan.timeouts.global.map(|d| now + d);
                        }
                        if plan.limits.per_try.is_none() {
                            plan.limits.per_try = plan.timeouts.per_try.map(|d| now + d);
                        }
                    }
                    Poll::Ready(Err(Side::Down(e))) => return Poll::Ready(Try::Down(e)),
                    // A server may answer and close without reading it all: its answer counts.
                    Poll::Ready(Err(Side::Up(e))) => {
                        if let Poll::Ready(Ok(meta)) = up.poll_head(cx, &mut self.response)
                            && !meta.informational
                        {
                            self.close |= !self.multiplexed;
                            return Poll::Ready(Try::Head(meta));
                        }
                        return Poll::Ready(Try::Failed(e.reset_reason()));
                    }
                    Poll::Pending => {}
                }
            }
            if moved {
                self.last_activity = Instant::now();
            }
            match up.poll_head(cx, &mut self.response) {
                Poll::Ready(Ok(meta)) if meta.informational => {
                    // Envoy swallows every interim response unless told to proxy them.
                    if self.hcm.config.proxy_100_continue {
                        self.down.send_informational(&self.response);
                    }
                    self.response.clear();
                    self.last_activity = Instant::now();
                    continue;
                }
                Poll::Ready(Ok(meta)) => return Poll::Ready(Try::Head(meta)),
                Poll::Ready(Err(e)) => return Poll::Ready(Try::Failed(e.reset_reason())),
                Poll::Pending => {}
            }
            if let Some(e) = self.client_gone(cx) {
                return Poll::Ready(Try::Down(e));
            }
            return match plan.limits.next(self.last_activity) {
                Some((d, l)) if self.timer.poll_reached(cx, d) => Poll::Ready(Try::Limit(l)),
                _ => Poll::Pending,
            };
        }
    }

    /// A response head has come: retry, or relay it.
    async fn on_head(
        &mut self,
        plan: &mut Plan<'_>,
        host: &Arc<Host>,
        lease: Lease,
        meta: ResponseMeta,
    ) -> Attempt {
        let now = Instant::now();
        self.last_activity = now;
        self.info.times.upstream_rx_begin = Some(self.info.elapsed(now));
        plan.cluster.report(host, Outcome::Status(meta.status));
        if let Some(retry) = &mut plan.retry {
            let unix =
                std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
            let verdict = retry.on_response(&self.response, unix, &mut self.worker.rng.borrow_mut());
            match self.allow(plan, verdict) {
                Some(wait) => {
                    plan.cluster.stats().retried_code(meta.status);
                    self.settle(lease);
                    return Attempt::Again(wait);
                }
                None => self.upload.stop_keeping(),
            }
        }
        if self.info.attempt_count > 1 && meta.status < 500 {
            plan.cluster.stats().traffic.upstream_rq_retry_success.inc();
        }
        plan.limits.per_try = None;
        plan.limits.per_try_idle = None;
        Attempt::Done(self.relay_response(plan, lease, meta).await)
    }

    /// Turns a retry verdict into a wait, if buffers and breakers agree. Counts what Envoy counts.
    fn allow(&mut self, plan: &mut Plan<'_>, verdict: Verdict) -> Option<Duration> {
        let stats = plan.cluster.stats();
        match verdict {
            Verdict::Final => None,
            Verdict::LimitExceeded => {
                stats.traffic.upstream_rq_retry_limit_exceeded.inc();
                self.info.flags.set(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
                None
            }
            Verdict::Retry(wait) => {
                if !self.upload.can_replay() {
                    if let Some(r) = &mut plan.retry {
                        r.refused_by_breaker();
                    }
                    return None;
                }
                match plan.cluster.acquire_retry(plan.priority) {
                    Some(permit) => {
                        stats.traffic.upstream_rq_retry.inc();
                        // Held until the try after this one ends.
                        self.retry_permit = Some(permit);
                        stats.traffic.upstream_rq_retry_backoff_exponential.inc();
                        Some(wait)
                    }
                    None => {
                        self.info.flags.set(ResponseFlags::UPSTREAM_OVERFLOW);
                        if let Some(r) = &mut plan.retry {
                            r.refused_by_breaker();
                        }
                        None
                    }
                }
            }
        }
    }

    /// A try ended without a response.
    async fn try_failed(&mut self, plan: &mut Plan<'_>, reason: ResetReason, sent: bool) -> Attempt {
        if let Some(retry) = &mut plan.retry {
            let verdict = retry.on_reset(reason, sent, &mut self.worker.rng.borrow_mut());
            if let Some(wait) = self.allow(plan, verdict) {
                return Attempt::Again(wait);
            }
        }
        let retried = if self.info.attempt_count > 1 { "retried and the latest " } else { "" };
        let transport = self.info.upstream.transport_failure.clone();
        let body = format!(
            "upstream connect error or disconnect/reset before headers. {retried}reset reason: {}",
            reason.as_str()
        );
        let details = match transport {
            Some(t) => format!(
                "upstream_reset_before_response_started{{{}|{}}}",
                reason.details(),
                t.replace(' ', "_")
            ),
            None => format!("upstream_reset_before_response_started{{{}}}", reason.details()),
        };
        let status = if reason == ResetReason::ProtocolError { 502 } else { 503 };
        let mut reply = LocalReply::new(status, body, details).flags(reason.upstream_flag());
        if reason == ResetReason::Overflow && !self.hcm.chain.router.suppress_envoy_headers {
            reply = reply.header(HeaderId::XEnvoyOverloaded, *b"true");
        }
        Attempt::Done(self.reply_upstream(plan, reply).await)
    }

    async fn pool_failed(&mut self, plan: &mut Plan<'_>, host: &Arc<Host>, e: PoolError) -> Attempt {
        match e {
            // No host was asked: Envoy logs none, and none is to blame.
            PoolError::Overflow => {
                self.info.upstream.host = None;
                self.info.upstream.host_text = None;
            }
            PoolError::Timeout => plan.cluster.report(host, Outcome::LocalTimeout),
            PoolError::Remote(_) | PoolError::Local(_) => plan.cluster.report(host, Outcome::ConnectFailed),
        }
        let reason = match e {
            PoolError::Overflow => ResetReason::Overflow,
            PoolError::Timeout => ResetReason::ConnectionTimeout,
            PoolError::Remote(_) => ResetReason::RemoteConnectionFailure,
            PoolError::Local(_) => ResetReason::LocalConnectionFailure,
        };
        self.info.upstream.transport_failure = e.transport_failure().cloned();
        if reason == ResetReason::Overflow {
            // The request never reached a host.
            self.info.upstream.host = None;
            self.info.upstream.host_text = None;
        }
        self.try_failed(plan, reason, false).await
    }

    async fn per_try_timeout(&mut self, plan: &mut Plan<'_>, host: &Arc<Host>, on_wire: bool) -> Attempt {
        let stats = plan.cluster.stats();
        stats.traffic.upstream_rq_per_try_timeout.inc();
        if on_wire {
            plan.cluster.report(host, Outcome::LocalTimeout);
        }
        plan.limits.per_try = None;
        if let Some(retry) = &mut plan.retry {
            let verdict = retry.on_timeout(&mut self.worker.rng.borrow_mut());
            if let Some(wait) = self.allow(plan, verdict) {
                return Attempt::Again(wait);
            }
        }
        let reply = LocalReply::new(504, "upstream request timeout", "upstream_per_try_timeout");
        Attempt::Done(self.reply_upstream(plan, reply.flags(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT)).await)
    }

    /// A limit in time ends the request before a response was begun.
    async fn limit_reached(&mut self, plan: &Plan<'_>, limit: Limit) -> Result<(), Broken> {
        let stats = plan.cluster.stats();
        let reply = match limit {
            Limit::Global => {
                stats.traffic.upstream_rq_timeout.inc();
                LocalReply::new(504, "upstream request timeout", "response_timeout")
                    .flags(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT)
            }
            Limit::PerTry => LocalReply::new(504, "upstream request timeout", "upstream_per_try_timeout")
                .flags(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT),
            Limit::PerTryIdle => {
                LocalReply::new(504, "upstream request timeout", "upstream_per_try_idle_timeout")
                    .flags(ResponseFlags::STREAM_IDLE_TIMEOUT)
            }
            Limit::MaxStream => {
                stats.traffic.upstream_rq_max_duration_reached.inc();
                self.hcm.stats.downstream_rq_max_duration_reached.inc();
                let mut reply = LocalReply::new(504, "downstream duration timeout", "max_duration_timeout");
                // DEADLINE_EXCEEDED
                reply.grpc_status = Some(4);
                reply
            }
            Limit::Idle => {
                self.hcm.stats.downstream_rq_idle_timeout.inc();
                let status = if self.upload.received { 504 } else { 408 };
                LocalReply::new(status, "stream timeout", "stream_idle_timeout")
                    .flags(ResponseFlags::STREAM_IDLE_TIMEOUT)
            }
        };
        self.reply_upstream(plan, reply).await
    }

    /// A local reply in the upstream's place counts among the cluster's responses.
    async fn reply_upstream(&mut self, plan: &Plan<'_>, mut reply: LocalReply) -> Result<(), Broken> {
        plan.cluster.stats().response_code(reply.status, self.origin());
        if plan.matched.vhost.attempt_count_in_response {
            let n = self.info.attempt_count.to_string();
            reply = reply.header(HeaderId::XEnvoyAttemptCount, n.into_bytes());
        }
        self.reply(reply).await
    }

    fn origin(&self) -> crate::upstream::Origin {
        crate::upstream::Origin { internal: self.info.is_internal, canary: false }
    }

    /// Sends the accepted response downstream, and what is left of the request upstream.
    async fn relay_response(
        &mut self,
        plan: &mut Plan<'_>,
        mut lease: Lease,
        meta: ResponseMeta,
    ) -> Result<(), Broken> {
        let router = &self.hcm.chain.router;
        let canary = self.response.get(HeaderId::XEnvoyUpstreamCanary) == Some(b"true");
        plan.cluster
            .stats()
            .response_code(meta.status, crate::upstream::Origin { internal: self.info.is_internal, canary });
        self.info.details = Some("via_upstream".into());
        if let Some(span) = &mut self.span {
            span.on_response(&mut self.response);
        }
        // The router says it only when the whole request had arrived.
        if !router.suppress_envoy_headers && self.upload.received {
            let begin = self.info.times.downstream_rx_end.unwrap_or_default();
            let ms = self.info.elapsed(self.last_activity).saturating_sub(begin).as_millis() as u64;
            self.response.set(HeaderId::XEnvoyUpstreamServiceTime, itoa::Buffer::new().format(ms).as_bytes());
        }
        if plan.matched.vhost.attempt_count_in_response {
            let n = self.info.attempt_count;
            self.response.set(HeaderId::XEnvoyAttemptCount, itoa::Buffer::new().format(n).as_bytes());
        }
        self.info.response_code = Some(meta.status);
        let m = plan.matched;
        let levels = Levels { config: &m.config, vhost: &m.vhost, route: &m.route, weighted: m.weighted() };
        if !levels.is_empty() {
            levels.response(&self.request, &mut self.response, &self.info);
        }
        self.run_response_filters();
        let tunnel = opens_tunnel(self.meta.tunnel, meta.status);
        if tunnel {
            self.hcm.stats.downstream_cx_upgrades_total.inc();
            self.hcm.stats.downstream_cx_upgrades_active.inc();
            plan.limits.global = None;
            plan.limits.max_stream = self.hcm.config.max_stream_duration.map(|d| self.info.start + d);
            self.upload.received = false;
            self.upload.sent = false;
        }
        // An upgrade that was not taken up, and is no error either, is answered by its head alone.
        let declined = self.meta.tunnel == Tunnel::Upgrade && !tunnel && (200..400).contains(&meta.status);
        if declined {
            self.info.details = Some("websocket_handshake_unsuccessful".into());
            self.response.remove(HeaderId::ContentLength);
        }
        let end = (meta.end || declined) && !tunnel;
        // HTTP/1.1 cannot stop a request that is still arriving but by closing.
        if !tunnel && !self.multiplexed && (!self.upload.received || self.meta.tunnel != Tunnel::No) {
            self.close = true;
        }
        self.send_head(end);
        let mut download = Download::new(end);
        self.timer.rearm();
        let result = match lease.stream() {
            Some(up) => poll_fn(|cx| self.poll_relay(cx, plan, up, &mut download, tunnel)).await,
            None => Err(RelayEnd::Up(CodecError::Closed)),
        };
        if tunnel {
            self.hcm.stats.downstream_cx_upgrades_active.dec();
            self.close = true;
        }
        let now = Instant::now();
        match result {
            Ok(()) => {
                self.info.times.downstream_tx_end = Some(self.info.elapsed(now));
                let time = self.info.elapsed(now);
                plan.cluster.stats().response_time(time, self.origin());
                self.settle(lease);
                Ok(())
            }
            Err(end) => {
                self.settle(lease);
                Err(self.relay_failed(plan, end))
            }
        }
    }

    fn relay_failed(&mut self, plan: &Plan<'_>, end: RelayEnd) -> Broken {
        let stats = plan.cluster.stats();
        match end {
            RelayEnd::Down(e) => {
                stats.traffic.upstream_rq_tx_reset.inc();
                Broken::Downstream(e)
            }
            RelayEnd::Up(e) => {
                stats.traffic.upstream_rq_rx_reset.inc();
                self.hcm.stats.rq_reset_after_downstream_response_started.inc();
                let reason = e.reset_reason();
                self.info.flags.set(reason.upstream_flag());
                self.info.details =
                    Some(format!("upstream_reset_after_response_started{{{}}}", reason.details()).into());
                Broken::Upstream
            }
            RelayEnd::Limit(l) => {
                self.hcm.stats.rq_reset_after_downstream_response_started.inc();
                let (flag, details) = match l {
                    Limit::Global => {
                        stats.traffic.upstream_rq_timeout.inc();
                        (ResponseFlags::UPSTREAM_REQUEST_TIMEOUT, "response_timeout")
                    }
                    Limit::MaxStream => {
                        stats.traffic.upstream_rq_max_duration_reached.inc();
                        (
                            ResponseFlags::UPSTREAM_MAX_STREAM_DURATION_REACHED,
                            "upstream_max_stream_duration_reached",
                        )
                    }
                    Limit::Idle | Limit::PerTry | Limit::PerTryIdle => {
                        self.hcm.stats.downstream_rq_idle_timeout.inc();
                        (ResponseFlags::STREAM_IDLE_TIMEOUT, "stream_idle_timeout")
                    }
                };
                self.info.flags.set(flag);
                self.info.details = Some(details.into());
                Broken::Timeout
            }
        }
    }

    fn poll_relay(
        &mut self,
        cx: &mut Context<'_>,
        plan: &mut Plan<'_>,
        up: &mut UpStream,
        download: &mut Download,
        tunnel: bool,
    ) -> Poll<Result<(), RelayEnd>> {
        let mut moved = false;
        if !self.upload.sent {
            let messages = self.state.grpc.on.then_some(&mut self.state.grpc.request);
            match self.upload.poll(cx, self.down, up, messages, &mut moved) {
                Poll::Ready(Ok(())) => {
                    if plan.limits.global.is_none() && !tunnel {
                        plan.limits.global = plan.timeouts.global.map(|d| Instant::now() + d);
                    }
                }
                Poll::Ready(Err(Side::Down(e))) => return Poll::Ready(Err(RelayEnd::Down(e))),
                // The response goes on although the server reads no more.
                Poll::Ready(Err(Side::Up(_))) | Poll::Pending => {}
            }
        }
        let messages = self.state.grpc.on.then_some(&mut self.state.grpc.response);
        match download.poll(cx, up, self.down, &mut self.trailers, messages, &mut moved) {
            Poll::Ready(Ok(())) => {
                if !tunnel || self.upload.sent {
                    return Poll::Ready(Ok(()));
                }
                // One side of a tunnel is through: so is the tunnel.
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(Err(Side::Down(e))) => return Poll::Ready(Err(RelayEnd::Down(e))),
            Poll::Ready(Err(Side::Up(e))) => return Poll::Ready(Err(RelayEnd::Up(e))),
            Poll::Pending => {}
        }
        if download.ended() && self.info.times.upstream_rx_end.is_none() {
            self.info.times.upstream_rx_end = Some(self.info.elapsed(Instant::now()));
        }
        if let Some(e) = self.client_gone(cx) {
            return Poll::Ready(Err(RelayEnd::Down(e)));
        }
        if moved {
            self.last_activity = Instant::now();
        }
        match plan.limits.next(self.last_activity) {
            Some((d, l)) if self.timer.poll_reached(cx, d) => Poll::Ready(Err(RelayEnd::Limit(l))),
            _ => Poll::Pending,
        }
    }
}

/// What one try came to.
enum Attempt {
    Done(Result<(), Broken>),
    Again(Duration),
}

/// What ended the wait for a connection.
enum Waited {
    Down(CodecError),
    Limit(Limit),
    Pool(PoolError),
}

/// How a relay failed.
#[derive(Clone, Copy, Debug)]
enum RelayEnd {
    Down(CodecError),
    Up(CodecError),
    Limit(Limit),
}
