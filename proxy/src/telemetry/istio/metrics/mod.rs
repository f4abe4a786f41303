//! Istio's standard metrics: `istio_requests_total` and its family, as the `istio.stats` filter reports them.
//!
//! `labels` says what each label's value is, `overrides` applies the filter's dimensions, removed tags, dropped and custom
//! metrics. A worker remembers the series of what it has seen under a key of identities (peer, cluster, certificate names,
//! code, flags), so that a request's report finds its counters without building a string.

mod key;
mod labels;
mod overrides;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};

use crate::config::filter::IstioStats as Config;
use crate::config::listener::Direction;
use crate::stream_info::StreamInfo;
use crate::telemetry::format::{FormatContext, grpc_status};
use crate::telemetry::stats::{Counter, Histogram, Stats, Tags, Unit};
use key::{Key, Seen};
pub use labels::Reporter;
use overrides::{Overrides, Values};

/// The standard metrics, by the name that overrides use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub(crate) enum Metric {
    Requests,
    RequestDuration,
    RequestBytes,
    ResponseBytes,
    RequestMessages,
    ResponseMessages,
    TcpOpened,
    TcpClosed,
    TcpSent,
    TcpReceived,
}

/// Metric names without `istio_`, in the enum's order.
pub(crate) const METRICS: [(Metric, &str); 10] = [
    (Metric::Requests, "requests_total"),
    (Metric::RequestDuration, "request_duration_milliseconds"),
    (Metric::RequestBytes, "request_bytes"),
    (Metric::ResponseBytes, "response_bytes"),
    (Metric::RequestMessages, "request_messages_total"),
    (Metric::ResponseMessages, "response_messages_total"),
    (Metric::TcpOpened, "tcp_connections_opened_total"),
    (Metric::TcpClosed, "tcp_connections_closed_total"),
    (Metric::TcpSent, "tcp_sent_bytes_total"),
    (Metric::TcpReceived, "tcp_received_bytes_total"),
];

/// Under this prefix a stat is printed to Prometheus without it and without `envoy_`.
pub(crate) const NAMESPACE: &str = "istiocustom.";

/// How many series a worker remembers before it starts afresh; the values live on in the registry.
const REMEMBER: usize = 8192;

/// The filter's reports on one worker.
#[derive(Debug)]
pub struct IstioMetrics {
    stats: Stats,
    reporter: Reporter,
    host_fallback: bool,
    overrides: Option<Overrides>,
    http: Memory<HttpSeries>,
    messages: Memory<MessageSeries>,
    tcp: Memory<TcpSeries>,
}

#[derive(Debug, Default)]
struct HttpSeries {
    requests: Counter,
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
}

#[derive(Debug, Default)]
struct MessageSeries {
    request: Counter,
    response: Counter,
}

#[derive(Debug, Default)]
struct TcpSeries {
    opened: Counter,
    closed: Counter,
    sent: Counter,
    received: Counter,
}

/// The report of one TCP connection between its opening and its close.
#[derive(Debug)]
pub struct TcpReport {
    series: Rc<TcpSeries>,
    sent: u64,
    received: u64,
}

impl IstioMetrics {
    /// The filter of `config` on a listener of `direction`.
    pub fn new(config: &Config, direction: Direction, stats: &Stats) -> IstioMetrics {
        record_build(stats);
        let reporter = match direction {
            _ if config.server_gateway_reporter => Reporter::ServerGateway,
            Direction::Inbound => Reporter::ServerSidecar,
            Direction::Outbound | Direction::Unspecified => Reporter::ClientSidecar,
        };
        IstioMetrics {
            stats: stats.clone(),
            reporter,
            host_fallback: !config.disable_host_header_fallback,
            overrides: Overrides::new(config),
            http: RefCell::default(),
            messages: RefCell::default(),
            tcp: RefCell::default(),
        }
    }

    /// Reports a finished HTTP stream. `is_grpc`: by the request's content type.
    pub fn request(&self, ctx: &FormatContext<'_>, is_grpc: bool) {
        let values = self.overrides.as_ref().map(|o| o.evaluate(ctx));
        let seen = Seen {
            code: ctx.info.response_code.unwrap_or(0),
            flags: ctx.info.flags.0,
            grpc: is_grpc.then(|| grpc_status(ctx)),
            ..self.seen(ctx, values.as_ref())
        };
        let series = remembered(&self.http, &seen, || self.http_series(ctx, &seen, values.as_ref()));
        let info = ctx.info;
        series.requests.inc();
        if let Some(complete) = info.times.complete {
            series.duration.record_time(complete, Unit::Milliseconds);
        }
        series.request_bytes.record(info.downstream_wire_received);
        series.response_bytes.record(info.downstream_wire_sent);
        if let (Some(o), Some(v)) = (&self.overrides, &values) {
            o.record_custom(&self.stats, v);
        }
    }

    /// Reports gRPC messages since the last report of the stream: at its end, and every five seconds before.
    pub fn grpc_messages(&self, ctx: &FormatContext<'_>, request: u64, response: u64) {
        let values = self.overrides.as_ref().map(|o| o.evaluate(ctx));
        let seen = self.seen(ctx, values.as_ref());
        let series = remembered(&self.messages, &seen, || {
            let tags = labels::peer(self.reporter, ctx, self.host_fallback).tags;
            let counter = |m| self.counter(m, &tags, values.as_ref());
            MessageSeries {
                request: counter(Metric::RequestMessages),
                response: counter(Metric::ResponseMessages),
            }
        });
        series.request.add(request);
        series.response.add(response);
    }

    /// Reports a TCP connection's opening, once its peer is known or it is over.
    pub fn tcp_open(&self, ctx: &FormatContext<'_>) -> TcpReport {
        let values = self.overrides.as_ref().map(|o| o.evaluate(ctx));
        let seen = Seen { flags: ctx.info.flags.0, ..self.seen(ctx, values.as_ref()) };
        let series = remembered(&self.tcp, &seen, || {
            let labels = labels::peer(self.reporter, ctx, self.host_fallback);
            let tags = labels.for_tcp(ctx.info);
            let counter = |m| self.counter(m, &tags, values.as_ref());
            TcpSeries {
                opened: counter(Metric::TcpOpened),
                closed: counter(Metric::TcpClosed),
                sent: counter(Metric::TcpSent),
                received: counter(Metric::TcpReceived),
            }
        });
        series.opened.inc();
        TcpReport { series, sent: 0, received: 0 }
    }

    /// Reports the end of a TCP connection.
    pub fn tcp_close(&self, mut report: TcpReport, ctx: &FormatContext<'_>) {
        report.progress(ctx.info);
        report.series.closed.inc();
        if let Some(o) = &self.overrides {
            o.record_custom(&self.stats, &o.evaluate(ctx));
        }
    }

    fn seen<'a>(&self, ctx: &FormatContext<'a>, values: Option<&Values>) -> Seen<'a> {
        Seen::new(self.reporter, ctx, self.host_fallback, values.map_or(0, Values::hash))
    }

    fn http_series(&self, ctx: &FormatContext<'_>, seen: &Seen<'_>, values: Option<&Values>) -> HttpSeries {
        let tags = labels::peer(self.reporter, ctx, self.host_fallback).for_http(ctx.info, seen.grpc);
        let histogram = |m: Metric, unit| match self.tags(m, &tags, values) {
            Some(tags) => self.stats.tagged_histogram(name(m), &tags, unit),
            None => Histogram::default(),
        };
        HttpSeries {
            requests: self.counter(Metric::Requests, &tags, values),
            duration: histogram(Metric::RequestDuration, Unit::Milliseconds),
            request_bytes: histogram(Metric::RequestBytes, Unit::Bytes),
            response_bytes: histogram(Metric::ResponseBytes, Unit::Bytes),
        }
    }

    fn counter(&self, metric: Metric, tags: &Tags, values: Option<&Values>) -> Counter {
        match self.tags(metric, tags, values) {
            Some(tags) => self.stats.tagged_counter(name(metric), &tags),
            None => Counter::default(),
        }
    }

    /// The metric's tags after overrides; `None` if it is dropped.
    fn tags(&self, metric: Metric, tags: &Tags, values: Option<&Values>) -> Option<Tags> {
        match (&self.overrides, values) {
            (Some(o), Some(v)) => o.apply(metric, tags, v),
            _ => Some(tags.clone()),
        }
    }
}

impl TcpReport {
    /// Reports the bytes since the last report: every `tcp_reporting_duration` (default five seconds).
    pub fn progress(&mut self, info: &StreamInfo) {
        self.series.sent.add(info.downstream_wire_sent.saturating_sub(self.sent));
        self.series.received.add(info.downstream_wire_received.saturating_sub(self.received));
        (self.sent, self.received) = (info.downstream_wire_sent, info.downstream_wire_received);
    }
}

type Memory<S> = RefCell<HashMap<u64, Vec<(Key, Rc<S>)>>>;

fn remembered<S>(memory: &Memory<S>, seen: &Seen<'_>, new: impl FnOnce() -> S) -> Rc<S> {
    let hash = seen.hash();
    let mut all = memory.borrow_mut();
    if let Some((_, series)) = all.get(&hash).and_then(|same| same.iter().find(|(k, _)| k.is(seen))) {
        return series.clone();
    }
    if all.len() >= REMEMBER {
        all.clear();
    }
    let series = Rc::new(new());
    all.entry(hash).or_default().push((seen.to_key(), series.clone()));
    series
}

fn name(metric: Metric) -> &'static Arc<str> {
    static NAMES: LazyLock<Vec<Arc<str>>> =
        LazyLock::new(|| METRICS.iter().map(|(_, n)| format!("{NAMESPACE}istio_{n}").into()).collect());
    // The table is in the enum's order, and a test holds it to that.
    &NAMES[metric as usize]
}

/// `istio_build{component="proxy",tag="1.31.0"} 1`.
fn record_build(stats: &Stats) {
    let version = labels::node_text("ISTIO_VERSION");
    let version = if version.is_empty() { "unknown".into() } else { version };
    let tags: Tags = Arc::new([("component".into(), "proxy".into()), ("tag".into(), version)]);
    stats.set_tagged_gauge(&format!("{NAMESPACE}istio_build").into(), &tags, 1);
}

#[cfg(test)]
mod tests;
