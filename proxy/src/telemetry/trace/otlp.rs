//! Finished spans as OTLP messages (opentelemetry.io/docs/specs/otlp).

use std::sync::Arc;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{
    ResourceSpans, ScopeSpans, Span, Status, span::SpanKind, status::StatusCode,
};

use super::span::Finished;
use crate::config::trace::Provider;

/// `SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE`: the next bit says whether the parent is remote.
const HAS_IS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

/// One export request with all spans of a provider.
pub(super) fn request(provider: &Provider, spans: Vec<Finished>) -> ExportTraceServiceRequest {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let mut attributes = vec![
        pair("telemetry.sdk.name", "outrigger".to_owned()),
        pair("telemetry.sdk.language", "rust".to_owned()),
        pair("telemetry.sdk.version", version.clone()),
    ];
    let service_name =
        if provider.service_name.is_empty() { "unknown_service:envoy" } else { &provider.service_name };
    attributes.push(pair("service.name", service_name.to_owned()));
    for (key, value) in &provider.resource_attributes {
        attributes.retain(|a| *a.key != **key);
        attributes.push(pair(key, value.to_string()));
    }
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes, ..Resource::default() }),
            scope_spans: vec![ScopeSpans {
                scope: Some(InstrumentationScope {
                    name: "outrigger".to_owned(),
                    version,
                    ..Default::default()
                }),
                spans: spans.into_iter().map(span).collect(),
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    }
}

fn span(s: Finished) -> Span {
    let nanos = |d: std::time::Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
    let remote = if s.remote_parent { IS_REMOTE } else { 0 };
    Span {
        trace_id: s.context.trace_id.to_vec(),
        span_id: s.context.span_id.to_vec(),
        trace_state: s.context.state,
        parent_span_id: s.parent.map(|p| p.to_vec()).unwrap_or_default(),
        flags: u32::from(s.context.sampled) | HAS_IS_REMOTE | remote,
        name: s.name,
        kind: if s.client { SpanKind::Client } else { SpanKind::Server }.into(),
        start_time_unix_nano: nanos(s.start),
        end_time_unix_nano: nanos(s.end),
        attributes: s.attributes.into_iter().map(|(k, v)| pair(&k, v)).collect::<Vec<_>>(),
        status: s.error.then(|| Status { code: StatusCode::Error.into(), ..Status::default() }),
        ..Span::default()
    }
}

fn pair(key: &str, value: String) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(any_value::Value::StringValue(value)) }),
        ..KeyValue::default()
    }
}

/// Spans by provider, in the order of their first span.
pub(super) fn by_provider(spans: Vec<Finished>) -> Vec<(Arc<Provider>, Vec<Finished>)> {
    let mut groups: Vec<(Arc<Provider>, Vec<Finished>)> = Vec::new();
    for s in spans {
        match groups.iter_mut().find(|(p, _)| Arc::ptr_eq(p, &s.provider) || **p == *s.provider) {
            Some((_, group)) => group.push(s),
            None => groups.push((s.provider.clone(), vec![s])),
        }
    }
    groups
}
