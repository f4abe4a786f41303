use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};

use super::*;
use crate::config::matcher::Fraction;
use crate::config::route::Decorator;
use crate::config::trace::{CustomTag, Provider, TagSource, Tracing};
use crate::head::{Head, HeaderId};
use crate::telemetry::format::FormatContext;
use crate::telemetry::format::tests::{info, request};
use crate::telemetry::stats::Stats;

const ID: &[u8] = b"0000000a-1111-4222-8333-444444444444";

fn config(egress: bool, spawn: bool) -> Arc<Tracing> {
    Arc::new(Tracing {
        client: Fraction::ALL,
        random: Fraction::ALL,
        overall: Fraction::ALL,
        verbose: false,
        max_path_tag_length: 4,
        custom_tags: vec![
            CustomTag { tag: "lit".into(), source: TagSource::Literal("v".into()) },
            CustomTag {
                tag: "none".into(),
                source: TagSource::ClusterMetadata { path: ["a".into()].into(), default: None },
            },
        ],
        spawn_upstream_span: spawn,
        provider: Some(Arc::new(Provider {
            cluster: Some("otel".into()),
            authority: None,
            service_name: "svc.ns".into(),
            resource_attributes: Vec::new(),
            timeout_ms: 1000,
            http_path: None,
        })),
        egress,
    })
}

#[test]
fn the_decision_is_kept_in_the_request_id() {
    let share = |numerator| Fraction { numerator, denominator: 100 };
    let sampling = |client, random, overall| Sampling {
        client: share(client),
        random: share(random),
        overall: share(overall),
        pack_reason: true,
        by_request_id: true,
    };
    // Of this id the first eight digits are 10: in at 11 %, out at 10 %.
    for (sampling, id, headers, internal, want, written) in [
        (sampling(100, 11, 100), ID, &[][..], false, Reason::Sampling, b'9'),
        (sampling(100, 10, 100), ID, &[], false, Reason::NotTraceable, b'4'),
        (sampling(100, 100, 10), ID, &[], false, Reason::NotTraceable, b'4'),
        (sampling(100, 0, 100), ID, &["x-client-trace-id"], false, Reason::ClientForced, b'b'),
        (sampling(0, 0, 100), ID, &["x-client-trace-id"], false, Reason::NotTraceable, b'4'),
        (sampling(0, 0, 100), ID, &["x-envoy-force-trace"], true, Reason::ServiceForced, b'a'),
        (sampling(0, 0, 100), ID, &["x-envoy-force-trace"], false, Reason::NotTraceable, b'4'),
        (sampling(0, 0, 100), b"0000000a-1111-9222-8333-444444444444", &[], false, Reason::Sampling, b'9'),
    ] {
        let mut head = Head::new();
        head.append_id(HeaderId::XRequestId, id);
        for h in headers {
            head.append(h.as_bytes(), b"1");
        }
        assert_eq!(sampling.decide(&mut head, internal), want, "{sampling:?} {headers:?}");
        assert_eq!(head.get(HeaderId::XRequestId).unwrap()[14], written);
    }
    assert_eq!(sampling(100, 100, 100).decide(&mut Head::new(), true), Reason::NotTraceable);
}

#[test]
fn a_span_continues_the_trace_it_is_given() {
    let tracer = Tracer::new(config(false, false), None);
    let start = |traceparent: Option<&str>, reason| {
        let mut head = request();
        if let Some(t) = traceparent {
            head.append(b"traceparent", t.as_bytes());
            head.append(b"tracestate", b"a=b");
        }
        let span = tracer.start(&mut head, reason, None, SystemTime::now())?;
        span.inject(&mut head);
        let text = |id| String::from_utf8(head.get(id).unwrap().to_vec()).unwrap();
        Some((text(HeaderId::Traceparent), text(HeaderId::Tracestate), span.context().span_id_hex()))
    };
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let (parent, state, span) =
        start(Some(&format!("00-{trace}-b7ad6b7169203331-01")), Reason::NotTraceable).unwrap();
    assert_eq!((parent, state.as_str()), (format!("00-{trace}-{span}-01"), "a=b"));
    let (parent, ..) = start(Some(&format!("00-{trace}-b7ad6b7169203331-00")), Reason::Sampling).unwrap();
    assert!(parent.starts_with(&format!("00-{trace}-")) && parent.ends_with("-00"));
    let (parent, state, _) = start(None, Reason::Sampling).unwrap();
    assert!(parent.ends_with("-01") && state.is_empty());
    for bad in [
        "00-zz",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        &format!("0-{trace}-b7ad6b7169203331-011"),
    ] {
        assert_eq!(start(Some(bad), Reason::Sampling), None, "{bad}");
    }
}

#[test]
fn operations_pass_between_the_two_sides() {
    let decorator = Decorator { operation: "svc:80/*".into(), propagate: true };
    let mut head = request();
    let egress = Tracer::new(config(true, false), None);
    let mut span = egress.start(&mut head, Reason::Sampling, Some(&decorator), SystemTime::now()).unwrap();
    assert_eq!(head.get(HeaderId::XEnvoyDecoratorOperation).unwrap(), b"svc:80/*");
    let mut response = Head::new();
    response.append(b"x-envoy-decorator-operation", b"theirs");
    span.on_response(&mut response);
    assert!(response.is_empty() && format!("{span:?}").contains("name: \"theirs\""));
    // What the client told is used by the server, which then tells nothing back.
    let ingress = Tracer::new(config(false, false), None);
    let mut span = ingress.start(&mut head, Reason::Sampling, Some(&decorator), SystemTime::now()).unwrap();
    assert!(!head.contains(HeaderId::XEnvoyDecoratorOperation));
    span.on_response(&mut response);
    assert!(response.is_empty());
    let mut span = ingress.start(&mut head, Reason::Sampling, Some(&decorator), SystemTime::now()).unwrap();
    span.on_response(&mut response);
    assert!(response.contains(HeaderId::XEnvoyDecoratorOperation));
}

#[derive(Default, Clone)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test]
async fn spans_reach_a_grpc_collector_with_envoys_attributes() {
    let collector = Collector::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let service = TraceServiceServer::new(collector.clone());
    let server =
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    let connect: Connect = Arc::new(move |cluster| {
        assert_eq!(&*cluster, "otel");
        Box::pin(async move {
            Ok(Box::new(tokio::net::TcpStream::connect(address).await?) as Box<dyn ByteStream>)
        })
    });
    let stats = Stats::default();
    let options = ExportOptions { flush_interval: Duration::from_secs(60), ..ExportOptions::default() };
    let (sender, exporter) = Exporter::new(options, connect, &stats);
    let running = tokio::spawn(exporter.run());
    let tracer = Tracer::new(config(true, true), Some(sender));
    {
        let mut head = request();
        head.append_id(HeaderId::XRequestId, ID);
        head.append_id(HeaderId::XForwardedProto, b"https");
        let mut info = info();
        info.upstream.cluster = Some("up".into());
        info.upstream.host = Some("10.1.1.1:80".parse().unwrap());
        let span = tracer.start(&mut head, Reason::Sampling, None, info.start_time).unwrap();
        let attempt = span.upstream_try("up", info.start_time).unwrap();
        let unsampled = tracer.start(&mut head.clone(), Reason::NotTraceable, None, info.start_time).unwrap();
        let mut response = Head::new();
        response.set_status(200);
        let mut ctx = FormatContext::new(Some(&head), &info);
        ctx.response = Some(&response);
        attempt.finish_try(&ctx, 2);
        span.finish(&ctx);
        // Not sampled: not sent.
        unsampled.finish(&ctx);
    }
    drop(tracer);
    running.await.unwrap();
    server.abort();
    let got = collector.0.lock().unwrap().pop().unwrap();
    let group = &got.resource_spans[0];
    let show = |a: &[opentelemetry_proto::tonic::common::v1::KeyValue]| {
        let value = |v: &opentelemetry_proto::tonic::common::v1::KeyValue| {
            format!("{:?}", v.value.as_ref().unwrap().value.as_ref().unwrap())
                .trim_start_matches("StringValue(\"")
                .trim_end_matches("\")")
                .to_owned()
        };
        a.iter().map(|v| format!("{}={}", v.key, value(v))).collect::<Vec<_>>().join(" ")
    };
    assert!(show(&group.resource.as_ref().unwrap().attributes).ends_with("service.name=svc.ns"));
    let spans = &group.scope_spans[0].spans;
    assert_eq!(spans.len(), 2);
    assert_eq!(
        show(&spans[0].attributes),
        "retry.count=1 upstream_address=10.1.1.1:80 peer.address=10.1.1.1:80 component=proxy upstream_cluster=up \
         upstream_cluster.name=up http.status_code=200 response_flags=UF,URX lit=v"
    );
    assert_eq!(
        show(&spans[1].attributes),
        "node_id= zone= guid:x-request-id=0000000a-1111-4222-8333-444444444444 http.url=https://example.com:80/a/b \
         http.method=GET downstream_cluster=- user_agent=curl/8 http.protocol=HTTP/1.1 peer.address=::1 request_size=0 \
         response_size=91 component=proxy upstream_cluster=up upstream_cluster.name=up http.status_code=503 \
         response_flags=UF,URX error=true lit=v"
    );
    assert_eq!((spans[0].name.as_str(), spans[0].kind, spans[0].flags), ("router up egress", 3, 0x101));
    assert_eq!((spans[1].name.as_str(), spans[1].kind), ("egress example.com:80", 2));
    assert_eq!(spans[0].parent_span_id, spans[1].span_id);
    assert_eq!(stats.value("tracing.opentelemetry.spans_sent"), Some(2));
}
