//! Tracing: Envoy's OpenTelemetry tracer (Envoy docs: intro/arch_overview/observability/tracing).
//!
//! `decision` says whether a request is sampled, `context` carries W3C trace context in and out, `span` is one span from
//! its start to its finish with the attributes that Envoy sets, `export` collects finished spans and sends them by OTLP.

mod attributes;
mod context;
mod decision;
mod export;
mod otlp;
mod span;

pub use context::TraceContext;
pub use decision::{Reason, Sampling, TracingStats};
pub use export::{ByteStream, Connect, ExportOptions, Exporter, SpanSender};
pub use span::{Span, Tracer};

#[cfg(test)]
mod tests;
