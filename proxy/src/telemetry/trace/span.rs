//! A span from start to finish: names, parents, propagation, decorator operations.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::attributes;
use super::context::{Incoming, TraceContext};
use super::decision::Reason;
use super::export::SpanSender;
use crate::config::route::Decorator;
use crate::config::trace::{Provider, Tracing};
use crate::head::{Head, HeaderId};
use crate::telemetry::format::FormatContext;

/// The tracer of one connection manager on one worker.
#[derive(Debug)]
pub struct Tracer {
    config: Arc<Tracing>,
    spans: Option<SpanSender>,
}

/// A span under way. Dropped without `finish` it is not sent.
#[derive(Debug)]
pub struct Span {
    context: TraceContext,
    parent: Option<[u8; 8]>,
    /// The parent is another process's.
    remote_parent: bool,
    name: String,
    client: bool,
    start: SystemTime,
    /// Operation to tell the other side, if it should be told.
    propagate: Option<Arc<str>>,
    config: Arc<Tracing>,
    spans: Option<SpanSender>,
}

/// A finished span, on its way to the exporter.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) provider: Arc<Provider>,
    pub(super) context: TraceContext,
    pub(super) parent: Option<[u8; 8]>,
    pub(super) remote_parent: bool,
    pub(super) name: String,
    pub(super) client: bool,
    /// Since the epoch.
    pub(super) start: Duration,
    pub(super) end: Duration,
    pub(super) error: bool,
    pub(super) attributes: Vec<(Arc<str>, String)>,
}

impl Tracer {
    /// A tracer that sends what is sampled to `spans`; `None` where nothing is exported.
    pub fn new(config: Arc<Tracing>, spans: Option<SpanSender>) -> Tracer {
        Tracer { config, spans }
    }

    /// Starts the request's span, once its route is known. Takes an ingress request's `x-envoy-decorator-operation`, sets
    /// an egress request's. `None`: the request brings a `traceparent` that cannot be read, and is left alone.
    pub fn start(
        &self,
        request: &mut Head,
        reason: Reason,
        decorator: Option<&Decorator>,
        start: SystemTime,
    ) -> Option<Span> {
        let egress = self.config.egress;
        let (context, parent) = match TraceContext::from_request(request) {
            Incoming::Invalid => return None,
            Incoming::Parent(p) => (TraceContext { span_id: id(), ..p.clone() }, Some(p.span_id)),
            Incoming::None => {
                let (trace_id, state) = (id(), String::new());
                (TraceContext { trace_id, span_id: id(), sampled: reason.traced(), state }, None)
            }
        };
        let mut name = match decorator {
            Some(d) => d.operation.to_string(),
            None if egress => format!("egress {}", String::from_utf8_lossy(request.authority())),
            None => "ingress".to_owned(),
        };
        let mut propagate = decorator.filter(|d| d.propagate).map(|d| d.operation.clone());
        if egress {
            if let Some(operation) = &propagate {
                request.set(HeaderId::XEnvoyDecoratorOperation, operation.as_bytes());
            }
        } else if let Some(told) = request.get_str(HeaderId::XEnvoyDecoratorOperation) {
            name = told.to_owned();
            propagate = None;
            request.remove(HeaderId::XEnvoyDecoratorOperation);
        }
        Some(Span {
            context,
            parent,
            remote_parent: parent.is_some(),
            name,
            // A span of its own for each try makes this one the server's side of an inner hop.
            client: egress && !self.config.spawn_upstream_span,
            start,
            propagate,
            config: self.config.clone(),
            spans: self.spans.clone(),
        })
    }
}

impl Span {
    /// The span's own position, which calls made on its behalf carry.
    pub fn context(&self) -> &TraceContext {
        &self.context
    }

    /// Writes the position into a request that goes upstream.
    pub fn inject(&self, request: &mut Head) {
        self.context.inject(request);
    }

    /// The span of one try to `cluster`, with `spawn_upstream_span`; else `None`, and the request carries this span.
    pub fn upstream_try(&self, cluster: &str, start: SystemTime) -> Option<Span> {
        self.config.spawn_upstream_span.then(|| Span {
            context: TraceContext { span_id: id(), ..self.context.clone() },
            parent: Some(self.context.span_id),
            remote_parent: false,
            name: format!("router {cluster} egress"),
            client: true,
            start,
            propagate: None,
            config: self.config.clone(),
            spans: self.spans.clone(),
        })
    }

    /// A response's head: an egress span takes the other side's operation name, an ingress span tells its own.
    pub fn on_response(&mut self, response: &mut Head) {
        if self.config.egress {
            if let Some(told) = response.get_str(HeaderId::XEnvoyDecoratorOperation) {
                self.name = told.to_owned();
                response.remove(HeaderId::XEnvoyDecoratorOperation);
            }
        } else if let Some(operation) = &self.propagate {
            response.set(HeaderId::XEnvoyDecoratorOperation, operation.as_bytes());
        }
    }

    /// Ends a request's span at the stream's end.
    pub fn finish(self, ctx: &FormatContext<'_>) {
        self.send(ctx, ctx.info.response_code, |config| attributes::downstream(config, ctx));
    }

    /// Ends the span of a try; the context's upstream part and response are the try's.
    pub fn finish_try(self, ctx: &FormatContext<'_>, attempt: u32) {
        self.send(ctx, attributes::try_code(ctx), |config| attributes::upstream(config, ctx, attempt));
    }

    fn send(
        self,
        ctx: &FormatContext<'_>,
        code: Option<u16>,
        attributes: impl FnOnce(&Tracing) -> Vec<(Arc<str>, String)>,
    ) {
        let (Some(spans), true) = (&self.spans, self.context.sampled) else { return };
        let Some(provider) = self.config.provider.clone() else { return };
        let since_epoch = |t: SystemTime| t.duration_since(UNIX_EPOCH).unwrap_or_default();
        // The end is measured on the stream's steady clock, so that a wall clock set back makes no negative span.
        let end = since_epoch(ctx.info.start_time) + ctx.info.elapsed(tokio::time::Instant::now());
        let start = since_epoch(self.start);
        spans.send(Finished {
            provider,
            parent: self.parent,
            remote_parent: self.remote_parent,
            name: self.name,
            client: self.client,
            start,
            end: end.max(start),
            error: attributes::is_error(ctx, code),
            attributes: attributes(&self.config),
            context: self.context,
        });
    }
}

/// A random id that is not all zero.
fn id<const N: usize>() -> [u8; N] {
    use rand::RngCore as _;
    let mut bytes = [0; N];
    while bytes == [0; N] {
        rand::rng().fill_bytes(&mut bytes);
    }
    bytes
}
