//! The life of a request: one exchange owns it from the downstream's head to the access log.
//!
//! `run` validates and sanitises the head, finds the route, runs the filters, then answers itself or lets `forward` do it.
//! Every way out passes through `finish`, which counts and logs. Dropping an exchange (its connection is gone) also
//! settles through `finish`: flags `DC`, code 0.

use std::borrow::Cow;
use std::future::poll_fn;
use std::rc::Rc;
use std::time::SystemTime;

use rand::Rng;
use tokio::time::Instant;

use crate::config::hcm::{Protocol, ServerHeader};
use crate::config::route::{Action, RequireTls};
use crate::head::{Head, HeaderId};
use crate::http::codec::{CodecError, DownStream, RequestMeta, Tunnel, reason};
use crate::http::filters::{Ctx, Flow, Matched, State};
use crate::http::hcm::HcmRuntime;
use crate::http::local_reply::{self, LocalReply};
use crate::http::path::{self, Outcome};
use crate::http::relay::Upload;
use crate::http::sanitize;
use crate::http::timer::Timer;
use crate::router::mutate::Levels;
use crate::router::{cluster, host, matching, redirect, rewrite};
use crate::stream_info::{ConnInfo, ResponseFlags, StreamInfo};
use crate::telemetry::format::{FormatContext, LogType};
use crate::telemetry::trace::{Sampling, Span};
use crate::worker::Worker;

/// What the connection does after an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum After {
    KeepAlive,
    /// Close when what was written has left.
    Close,
    /// Close at once: the stream broke.
    Abort,
}

/// How an exchange failed once no response can mend it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The downstream went away or broke its protocol.
    Downstream(CodecError),
    /// The upstream failed after the response had begun; the downstream is reset.
    Upstream,
    /// A timeout after the response had begun.
    Timeout,
}

/// One request's state.
pub struct Exchange<'c> {
    pub(super) worker: &'c Rc<Worker>,
    pub(super) hcm: &'c Rc<HcmRuntime>,
    pub(super) down: &'c mut DownStream,
    pub(super) timer: &'c mut Timer,
    pub(super) meta: RequestMeta,
    pub(super) request: Head,
    pub(super) response: Head,
    pub(super) trailers: Option<Head>,
    pub(super) info: StreamInfo,
    pub(super) matched: Option<Matched>,
    pub(super) state: State,
    pub(super) upload: Upload,
    pub(super) response_started: bool,
    pub(super) close: bool,
    pub(super) last_activity: Instant,
    pub(super) span: Option<Box<Span>>,
    /// `set-cookie` of a hash policy.
    pub(super) set_cookie: Option<String>,
    /// Held from a retry's decision to its try's end.
    pub(super) retry_permit: Option<crate::upstream::breaker::Permit>,
    pub(super) finished: bool,
    /// HTTP/2: other streams of the connection go on after this one.
    pub(super) multiplexed: bool,
}

impl<'c> Exchange<'c> {
    /// Begins with a head that has arrived.
    pub fn new(
        worker: &'c Rc<Worker>,
        hcm: &'c Rc<HcmRuntime>,
        conn: &Rc<ConnInfo>,
        down: &'c mut DownStream,
        timer: &'c mut Timer,
        request: Head,
        meta: RequestMeta,
        start: Instant,
    ) -> Exchange<'c> {
        let mut info = StreamInfo::new(conn.clone(), start, SystemTime::now());
        info.protocol = Some(meta.protocol);
        hcm.stats.request(meta.protocol);
        Exchange {
            worker,
            hcm,
            down,
            timer,
            multiplexed: meta.protocol == Protocol::Http2,
            close: !meta.keep_alive,
            upload: Upload::new(meta.end),
            meta,
            request,
            response: hcm.head(),
            trailers: None,
            info,
            matched: None,
            state: State::default(),
            response_started: false,
            last_activity: start,
            span: None,
            set_cookie: None,
            retry_permit: None,
            finished: false,
        }
    }

    /// The connection serves no request after this one.
    pub fn last(mut self, last: bool) -> Exchange<'c> {
        self.close |= last;
        self
    }

    /// Answers a request whose head did not arrive in time.
    pub async fn header_timeout(mut self) -> After {
        self.close = true;
        self.request.clear();
        let _ = self.reply(LocalReply::new(408, "request header timeout", "request_header_timeout")).await;
        self.finish();
        After::Close
    }

    /// Serves the request to its end.
    pub async fn run(mut self) -> After {
        let result = match self.prepare() {
            Some(reply) => self.reply(reply).await,
            None => self.route_and_serve().await,
        };
        let after = match result {
            Ok(()) if self.close => After::Close,
            Ok(()) => After::KeepAlive,
            // A body that breaks its framing is answered as a head would be, while an answer is possible.
            Err(Broken::Downstream(e))
                if e.status().is_some() && !self.response_started && !self.multiplexed =>
            {
                self.hcm.stats.downstream_cx_protocol_error.inc();
                return self.refuse(e).await;
            }
            Err(broken) => self.broken(broken),
        };
        self.finish();
        after
    }

    /// Answers a request whose head the codec refused.
    pub async fn refuse(mut self, error: CodecError) -> After {
        let Some(status) = error.status() else {
            let after = self.broken(Broken::Downstream(error));
            self.finish();
            return after;
        };
        self.close = true;
        let reply = LocalReply::new(status, reason(status), error.details()).flags(error.downstream_flag());
        if status == 431 {
            self.hcm.stats.downstream_rq_too_large.inc();
        }
        let _ = self.reply(reply).await;
        self.finish();
        After::Close
    }

    /// Validation and sanitising; a reply where the request ends here.
    fn prepare(&mut self) -> Option<LocalReply> {
        let hcm = &self.hcm.config;
        if self.meta.protocol == Protocol::Http10 && !hcm.http1.accept_http_10 {
            self.close = true;
            return Some(LocalReply::new(426, "Upgrade Required", "low_version"));
        }
        if self.request.authority().is_empty() && self.meta.protocol != Protocol::Http2 {
            match (&hcm.http1.default_host_for_http_10, self.meta.protocol) {
                (Some(h), Protocol::Http10) => self.request.set(HeaderId::Authority, h.as_bytes()),
                _ if !self.request.contains(HeaderId::Authority) => {
                    self.close = true;
                    return Some(LocalReply::new(400, "", "missing_host_header"));
                }
                _ => {}
            }
        } else if !self.request.contains(HeaderId::Authority) {
            return Some(LocalReply::new(400, "", "missing_host_header"));
        }
        let connect = self.meta.tunnel == Tunnel::Connect;
        let target = self.request.path();
        if target.is_empty() && !connect {
            return Some(LocalReply::new(404, "", "missing_path_rejected"));
        }
        if !connect && target.contains(&b'#') {
            return Some(LocalReply::new(400, "", "path_normalization_failed"));
        }
        if !connect && target.first() != Some(&b'/') {
            self.hcm.stats.downstream_rq_non_relative_path.inc();
            return Some(LocalReply::new(404, "", "absolute_path_rejected"));
        }
        // `http_reject_path_with_fragment`: a fragment is the client's own business.
        if target.contains(&b'#') {
            return Some(LocalReply::new(400, "", "path_normalization_failed"));
        }
        if !connect
            && (hcm.normalize_path
                || hcm.merge_slashes
                || hcm.escaped_slashes != crate::config::hcm::EscapedSlashes::Keep)
        {
            match path::normalize(target, hcm.normalize_path, hcm.merge_slashes, hcm.escaped_slashes) {
                Outcome::Same => {}
                Outcome::Changed(p) => self.request.set(HeaderId::Path, &p),
                Outcome::Redirect(p) => {
                    self.request.set(HeaderId::Path, &p);
                    self.hcm.stats.downstream_rq_redirected_with_normalized_path.inc();
                    return Some(
                        LocalReply::new(307, "", "path_normalization_failed").header(HeaderId::Location, p),
                    );
                }
                Outcome::Reject => return Some(LocalReply::new(400, "", "path_normalization_failed")),
            }
        }
        sanitize::host(hcm, &mut self.request, self.info.conn.local.port());
        let routes = self.hcm.routes(self.worker);
        sanitize::request(
            hcm,
            routes.as_deref(),
            &mut self.request,
            &mut self.info,
            self.meta.tunnel != Tunnel::No,
            self.worker.shared.local_ip,
            &mut self.worker.rng.borrow_mut(),
        );
        self.find_route(routes);
        self.begin_trace();
        None
    }

    /// Finds virtual host, route and cluster.
    fn find_route(&mut self, routes: Option<std::sync::Arc<crate::config::route::RouteConfig>>) {
        self.matched = None;
        let Some(config) = routes else { return };
        let Some(vhost) = host::find(&config, self.request.authority()) else { return };
        let random: u64 = self.worker.rng.borrow_mut().random();
        let found =
            matching::find(vhost, &self.request, &self.info.conn, config.ignore_path_parameters, random)
                .cloned();
        self.info.virtual_host = Some(vhost.clone());
        let Some(route) = found else { return };
        if !route.name.is_empty() {
            self.info.route_name = Some(route.name.clone());
        }
        self.info.route = Some(route.clone());
        let mut weighted = None;
        if let Action::Forward(f) = &route.action {
            let random: u64 = self.worker.rng.borrow_mut().random();
            if let Some(chosen) = cluster::choose(&f.cluster, &self.request, random) {
                weighted = chosen.weighted;
                self.info.upstream.cluster = Some(chosen.name);
            }
        }
        self.matched = Some(Matched { vhost: vhost.clone(), config, route, weighted });
    }

    /// Decides about tracing and starts the request's span.
    fn begin_trace(&mut self) {
        let Some(tracing) = &self.hcm.tracing else { return };
        let config = &self.hcm.config;
        let route = self.matched.as_ref().map(|m| &m.route);
        let sampling = Sampling::new(
            &tracing.config,
            route.and_then(|r| r.tracing.as_ref()),
            config.request_id_pack_trace_reason,
            config.request_id_trace_sampling,
        );
        let reason = sampling.decide(&mut self.request, self.info.is_internal);
        self.info.traced = reason.traced();
        tracing.stats.count(reason, self.info.health_check);
        let decorator = route.and_then(|r| r.decorator.as_ref());
        let span = tracing.tracer.start(&mut self.request, reason, decorator, self.info.start_time);
        if let Some(span) = &span {
            self.info.trace_id = Some(span.context().trace_id_hex().into());
            self.info.span_id = Some(span.context().span_id_hex().into());
        }
        self.span = span.map(Box::new);
    }

    /// Writes the trace position into the request for the next try; its own span, where tries have one.
    pub(super) fn inject_trace(&mut self, cluster: &str) -> Option<Span> {
        let span = self.span.as_deref()?;
        let own = span.upstream_try(cluster, SystemTime::now());
        own.as_ref().unwrap_or(span).inject(&mut self.request);
        own
    }

    /// Ends a try's span.
    pub(super) fn finish_try_span(&self, span: &mut Option<Span>, response: bool) {
        if let Some(span) = span.take() {
            let response = response.then_some(&self.response);
            let ctx = FormatContext { response, ..FormatContext::request(&self.request, &self.info) };
            span.finish_try(&ctx, self.info.attempt_count);
        }
    }

    async fn route_and_serve(&mut self) -> Result<(), Broken> {
        if let Some(reply) = self.run_request_filters().await {
            return self.reply(*reply).await;
        }
        let Some(m) = self.matched.clone() else {
            self.hcm.stats.no_route.inc();
            return self
                .reply(LocalReply::new(404, "", "route_not_found").flags(ResponseFlags::NO_ROUTE_FOUND))
                .await;
        };
        let tls_wanted = match m.vhost.require_tls {
            RequireTls::None => false,
            RequireTls::ExternalOnly => !self.info.is_internal,
            RequireTls::All => true,
        };
        if tls_wanted && self.request.get(HeaderId::XForwardedProto) != Some(b"https") {
            let location = [b"https://", self.request.authority(), self.request.path()].concat();
            return self
                .reply(LocalReply::new(301, "", "direct_response").header(HeaderId::Location, location))
                .await;
        }
        match &m.route.action {
            Action::Forward(f) => {
                let hcm_upgrade_ok = self.upgrade_allowed(f);
                if !hcm_upgrade_ok {
                    self.hcm.stats.downstream_rq_ws_on_non_ws_route.inc();
                    return self.reply(LocalReply::new(403, "", "upgrade_failed")).await;
                }
                self.forward(&m, f).await
            }
            Action::Redirect(r) => {
                self.hcm.stats.rq_total.inc();
                let to = redirect::location(r, &m.route, &self.request);
                let reply = LocalReply::new(r.code, "", "direct_response").header(HeaderId::Location, to);
                self.reply_from_route(reply, &m).await
            }
            Action::Direct(d) => {
                self.hcm.stats.rq_direct_response.inc();
                self.hcm.stats.rq_total.inc();
                let mut body = d.body.as_deref().map(<[u8]>::to_vec).unwrap_or_default();
                if let Some(f) = &d.body_format {
                    self.info.local_reply_body = Some(body.as_slice().into());
                    self.info.response_code = Some(d.status);
                    let ctx = FormatContext::request(&self.request, &self.info);
                    let mut out = Vec::new();
                    crate::telemetry::format::write(f, &ctx, &mut out);
                    body = out;
                }
                let mut reply = LocalReply::new(d.status, "", "direct_response");
                reply.body = Cow::Owned(body);
                self.reply_from_route(reply, &m).await
            }
            Action::NonForwarding => {
                self.reply(LocalReply::new(404, "", "route_not_found").flags(ResponseFlags::NO_ROUTE_FOUND))
                    .await
            }
        }
    }

    /// Whether an upgrade that the request asks for is enabled, by the route or the connection manager.
    fn upgrade_allowed(&self, f: &crate::config::route::Forward) -> bool {
        let kind: Cow<'_, [u8]> = match self.meta.tunnel {
            Tunnel::No => return true,
            Tunnel::Connect => Cow::Borrowed(b"connect"),
            Tunnel::Upgrade => {
                let v = self.request.get(HeaderId::Protocol).or(self.request.get(HeaderId::Upgrade));
                Cow::Owned(v.unwrap_or_default().to_ascii_lowercase())
            }
        };
        let find = |list: &[(std::sync::Arc<str>, bool)]| {
            list.iter().find(|(t, _)| t.as_bytes() == &*kind).map(|(_, on)| *on)
        };
        find(&f.upgrades).or_else(|| find(&self.hcm.config.upgrades)).unwrap_or(false)
    }

    async fn run_request_filters(&mut self) -> Option<Box<LocalReply>> {
        let hcm = self.hcm;
        for f in &hcm.chain.filters {
            let mut flow = {
                let mut ctx = Ctx {
                    worker: self.worker,
                    info: &mut self.info,
                    route: self.matched.as_ref(),
                    state: &mut self.state,
                };
                f.request_head(&mut self.request, &mut ctx)
            };
            loop {
                match flow {
                    Flow::Continue => break,
                    Flow::Local(reply) => return Some(reply),
                    Flow::Await(future) => flow = future.await,
                }
            }
        }
        None
    }

    /// Runs the response hooks, last filter first.
    pub(super) fn run_response_filters(&mut self) {
        let hcm = self.hcm;
        for f in hcm.chain.filters.iter().rev() {
            let mut ctx = Ctx {
                worker: self.worker,
                info: &mut self.info,
                route: self.matched.as_ref(),
                state: &mut self.state,
            };
            f.response_head(&self.request, &mut self.response, &mut ctx);
        }
    }

    /// Sends a response of the proxy's own.
    pub(super) async fn reply(&mut self, reply: LocalReply) -> Result<(), Broken> {
        self.send_reply(reply, None).await
    }

    /// The same, with the route's response mutations.
    async fn reply_from_route(&mut self, reply: LocalReply, m: &Matched) -> Result<(), Broken> {
        self.send_reply(reply, Some(m)).await
    }

    async fn send_reply(&mut self, reply: LocalReply, m: Option<&Matched>) -> Result<(), Broken> {
        self.info.flags.set(reply.flags);
        self.info.details = Some(reply.details.clone());
        let levels =
            m.map(|m| Levels { config: &m.config, vhost: &m.vhost, route: &m.route, weighted: None });
        let body = local_reply::render(
            reply,
            levels,
            &self.hcm.config.local_reply,
            &self.request,
            &mut self.info,
            &mut self.response,
        );
        self.run_response_filters();
        // After a 400 of our own the client's framing is not trusted with another request.
        if self.response.status() == Some(400) && !self.multiplexed && !self.hcm.keeps_open_on_error() {
            self.close = true;
        }
        self.send_head(body.is_empty());
        let mut rest = &body[..];
        poll_fn(|cx| {
            while !rest.is_empty() {
                match self.down.poll_send_data(cx, rest, true) {
                    std::task::Poll::Ready(Ok(n)) => rest = &rest[n..],
                    std::task::Poll::Ready(Err(e)) => return std::task::Poll::Ready(Err(e)),
                    std::task::Poll::Pending => return std::task::Poll::Pending,
                }
            }
            self.down.poll_finish(cx)
        })
        .await
        .map_err(Broken::Downstream)?;
        self.info.times.downstream_tx_end = Some(self.info.elapsed(Instant::now()));
        Ok(())
    }

    /// Last changes to the response head, then to the codec's buffer.
    pub(super) fn send_head(&mut self, end: bool) {
        let hcm = &self.hcm.config;
        let head = &mut self.response;
        let tunnel = opens_tunnel(self.meta.tunnel, head.status().unwrap_or(0));
        if !tunnel {
            head.remove(HeaderId::Connection);
            head.remove(HeaderId::Upgrade);
        }
        head.remove(HeaderId::KeepAlive);
        head.remove(HeaderId::ProxyConnection);
        head.remove(HeaderId::TransferEncoding);
        if let Some(cookie) = &self.set_cookie {
            head.append_id(HeaderId::SetCookie, cookie.as_bytes());
        }
        if !head.contains(HeaderId::Date) {
            head.set(HeaderId::Date, &crate::http::date::now());
        }
        match hcm.server_header {
            ServerHeader::Overwrite => head.set(HeaderId::Server, hcm.server_name.as_bytes()),
            ServerHeader::AppendIfAbsent if !head.contains(HeaderId::Server) => {
                head.set(HeaderId::Server, hcm.server_name.as_bytes());
            }
            ServerHeader::AppendIfAbsent | ServerHeader::PassThrough => {}
        }
        if hcm.always_set_request_id_in_response
            && let Some(id) = self.request.get(HeaderId::XRequestId)
        {
            head.set(HeaderId::XRequestId, id);
        }
        if let Some(via) = &hcm.via {
            let joined = match head.get(HeaderId::Via) {
                Some(v) => [v, b", ", via.as_bytes()].concat(),
                None => via.as_bytes().to_vec(),
            };
            head.set(HeaderId::Via, &joined);
        }
        if !self.upload.received {
            self.hcm.stats.downstream_rq_response_before_rq_complete.inc();
            // A body that the client still sends cannot be waited for: HTTP/1.1 has no way to stop it but to close.
            self.close |= !self.multiplexed;
        }
        if self.worker.is_draining() && !self.close {
            self.close = true;
            self.hcm.stats.downstream_cx_drain_close.inc();
        }
        if self.close && !self.multiplexed && !tunnel {
            head.set(HeaderId::Connection, b"close");
        } else if self.meta.protocol == Protocol::Http10 && !tunnel {
            head.set(HeaderId::Connection, b"keep-alive");
        }
        self.info.response_code = head.status();
        self.info.times.downstream_tx_begin = Some(self.info.elapsed(Instant::now()));
        self.response_started = true;
        let code = head.status().unwrap_or(0);
        self.down.send_head(head, end);
        if !self.info.health_check {
            self.hcm.stats.response(code);
            self.hcm.listener_stats.response(code);
        }
    }

    /// Settles a stream that no response can mend.
    fn broken(&mut self, broken: Broken) -> After {
        use crate::http::codec::ResetReason;
        match broken {
            Broken::Downstream(e) => {
                if self.response_started {
                    self.hcm.stats.rq_reset_after_downstream_response_started.inc();
                }
                self.hcm.stats.downstream_rq_rx_reset.inc();
                self.info.flags.set(e.downstream_flag());
                let keep = self.response_started && self.info.details.is_some();
                if !keep || e.is_protocol_error() {
                    self.info.details = Some(e.details().into());
                } else {
                    self.info.details = Some("downstream_remote_disconnect".into());
                }
                self.down.reset(ResetReason::LocalReset);
            }
            Broken::Upstream | Broken::Timeout => {
                self.hcm.stats.downstream_rq_tx_reset.inc();
                self.down.reset(ResetReason::LocalReset);
            }
        }
        if self.multiplexed { After::KeepAlive } else { After::Abort }
    }

    /// Counts and logs, once.
    pub(super) fn finish(&mut self) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let now = Instant::now();
        let elapsed = self.info.elapsed(now);
        self.info.times.complete = Some(elapsed);
        let counts = self.down.counts();
        let info = &mut self.info;
        info.bytes_received = counts.body_received;
        info.bytes_sent = counts.body_sent;
        info.downstream_wire_received = counts.wire_received;
        info.downstream_wire_sent = counts.wire_sent;
        info.downstream_header_received = counts.header_received;
        info.downstream_header_sent = counts.header_sent;
        let stats = &self.hcm.stats;
        stats.downstream_rq_active.dec();
        stats.downstream_rq_time.record(elapsed.as_millis() as u64);
        let response = self.response_started.then_some(&self.response);
        let hcm = self.hcm;
        for f in &hcm.chain.filters {
            let mut ctx = Ctx {
                worker: self.worker,
                info: &mut self.info,
                route: self.matched.as_ref(),
                state: &mut self.state,
            };
            f.complete(&self.request, response, self.trailers.as_ref(), &mut ctx);
        }
        if let Some(span) = self.span.take() {
            span.finish(&FormatContext {
                response,
                trailers: self.trailers.as_ref(),
                ..FormatContext::request(&self.request, &self.info)
            });
        }
        hcm.log.log(&FormatContext {
            response,
            trailers: self.trailers.as_ref(),
            log_type: LogType::DownstreamEnd,
            ..FormatContext::request(&self.request, &self.info)
        });
        hcm.recycle(std::mem::take(&mut self.request));
        hcm.recycle(std::mem::take(&mut self.response));
    }
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.broken(Broken::Downstream(CodecError::Closed));
            self.finish();
        }
    }
}

/// Whether a response with this status turns the exchange into a tunnel. An upgrade over HTTP/2 is 101 here too: its codec
/// translates.
pub(super) fn opens_tunnel(asked: Tunnel, status: u16) -> bool {
    match asked {
        Tunnel::No => false,
        Tunnel::Upgrade => status == 101,
        Tunnel::Connect => (200..300).contains(&status),
    }
}

/// Kept here because both ways to a cluster use it: an automatic host rewrite once the endpoint is known.
pub(super) fn auto_host(head: &mut Head, hostname: Option<&str>, append_x_forwarded_host: bool) {
    if let Some(h) = hostname {
        rewrite::set_host(head, h.as_bytes(), append_x_forwarded_host);
    }
}
