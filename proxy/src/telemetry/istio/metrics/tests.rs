use super::*;
use crate::config::filter::{MetricDefinition, MetricOverride};
use crate::stream_info::{Peer, ResponseFlags, TlsInfo};
use crate::telemetry::format::tests::{info, request};
use crate::telemetry::stats::Value;

fn labels_of(stats: &Stats, metric: &str) -> Vec<String> {
    let name = format!("{NAMESPACE}istio_{metric}");
    let mut all = Vec::new();
    for stat in stats.collect() {
        let Some((n, tags)) = &stat.explicit else { continue };
        if **n == *name {
            let tags: Vec<String> = tags.iter().map(|(k, v)| format!("{k}={v}")).collect();
            let value = match &stat.value {
                Value::Counter(n) | Value::Gauge(n) => n.to_string(),
                Value::Histogram(h) => format!("{}", h.cumulative.count()),
                Value::Text(t) => t.clone(),
            };
            all.push(format!("{} {value}", tags.join(",")));
        }
    }
    all
}

fn peer() -> Arc<Peer> {
    Arc::new(Peer {
        workload: "frontend".into(),
        namespace: "demo".into(),
        canonical_service: "frontend".into(),
        app: "frontend".into(),
        version: "v1".into(),
        cluster_id: "Kubernetes".into(),
        ..Peer::default()
    })
}

#[test]
fn names_stand_in_the_enums_order() {
    for (i, (metric, _)) in METRICS.iter().enumerate() {
        assert_eq!(*metric as usize, i);
    }
    assert_eq!(&**name(Metric::TcpReceived), "istiocustom.istio_tcp_received_bytes_total");
}

#[test]
fn a_server_reports_its_caller_and_counts_a_series_once() {
    let stats = Stats::default();
    let metrics = IstioMetrics::new(&Config::default(), Direction::Inbound, &stats);
    let (request, mut info) = (request(), info());
    info.flags = ResponseFlags::UPSTREAM_CONNECTION_FAILURE;
    info.downstream_peer = Some(peer());
    let tls = TlsInfo {
        peer_uri_sans: vec!["spiffe://cluster.local/ns/elsewhere/sa/frontend".into()],
        local_uri_sans: vec!["spiffe://cluster.local/ns/podinfo/sa/podinfo".into()],
        ..TlsInfo::default()
    };
    Rc::get_mut(&mut info.conn).unwrap().tls = Some(Arc::new(tls));
    info.upstream.cluster = Some("inbound|9898||".into());
    let services = serde_json::json!({"istio": {"services": [
        {"host": "podinfo.podinfo.svc.cluster.local", "name": "podinfo", "namespace": "podinfo"}]}});
    info.upstream.cluster_metadata = services.as_object().cloned().map(Arc::new);
    let ctx = FormatContext::new(Some(&request), &info);
    metrics.request(&ctx, false);
    metrics.request(&ctx, false);
    let want = "reporter=destination,source_workload=frontend,source_canonical_service=frontend,\
        source_canonical_revision=latest,source_workload_namespace=elsewhere,\
        source_principal=spiffe://cluster.local/ns/elsewhere/sa/frontend,source_app=frontend,source_version=v1,\
        source_cluster=Kubernetes,destination_workload=,destination_workload_namespace=,\
        destination_principal=spiffe://cluster.local/ns/podinfo/sa/podinfo,destination_app=,destination_version=,\
        destination_service=podinfo.podinfo.svc.cluster.local,destination_canonical_service=,\
        destination_canonical_revision=,destination_service_name=podinfo,destination_service_namespace=,\
        destination_cluster=,request_protocol=http,response_code=503,grpc_response_status=,response_flags=UF,\
        connection_security_policy=mutual_tls 2";
    assert_eq!(labels_of(&stats, "requests_total"), [want]);
    assert_eq!(labels_of(&stats, "request_duration_milliseconds"), [want]);
    assert_eq!(metrics.http.borrow().len(), 1);
    assert_eq!(labels_of(&stats, "build"), ["component=proxy,tag=unknown 1"]);
}

#[test]
fn a_client_falls_back_to_the_endpoints_metadata_and_the_host() {
    let stats = Stats::default();
    let metrics = IstioMetrics::new(&Config::default(), Direction::Outbound, &stats);
    let (request, mut info) = (request(), info());
    info.flags = ResponseFlags::NONE;
    let endpoint = serde_json::json!({"istio": {"workload": "podinfo;podinfo;podinfo;stable;Kubernetes"}});
    info.upstream.host_metadata = endpoint.as_object().cloned().map(Arc::new);
    info.upstream.cluster = Some("PassthroughCluster".into());
    metrics.request(&FormatContext::new(Some(&request), &info), true);
    let all = labels_of(&stats, "requests_total");
    for part in [
        "reporter=source,",
        ",source_principal=unknown,",
        ",destination_workload=podinfo,destination_workload_namespace=podinfo,destination_principal=unknown,",
        ",destination_app=unknown,destination_version=unknown,destination_service=example.com:80,",
        ",destination_canonical_service=podinfo,destination_canonical_revision=stable,",
        ",destination_service_name=PassthroughCluster,destination_service_namespace=podinfo,",
        ",request_protocol=grpc,response_code=503,grpc_response_status=14,response_flags=-,",
        "connection_security_policy=unknown 1",
    ] {
        assert!(all[0].contains(part), "{part} in {all:?}");
    }
}

#[test]
fn a_tcp_connection_is_counted_as_it_goes() {
    let stats = Stats::default();
    let metrics = IstioMetrics::new(&Config::default(), Direction::Inbound, &stats);
    let mut info = info();
    let mut report = metrics.tcp_open(&FormatContext::new(None, &info));
    info.downstream_wire_sent = 10;
    report.progress(&info);
    info.downstream_wire_sent = 15;
    info.downstream_wire_received = 3;
    metrics.tcp_close(report, &FormatContext::new(None, &info));
    let value = |metric| labels_of(&stats, metric)[0].rsplit(' ').next().unwrap().to_owned();
    assert_eq!(
        [
            "tcp_connections_opened_total",
            "tcp_connections_closed_total",
            "tcp_sent_bytes_total",
            "tcp_received_bytes_total"
        ]
        .map(value),
        ["1", "1", "15", "3"]
    );
    assert!(
        labels_of(&stats, "tcp_sent_bytes_total")[0].contains(",request_protocol=tcp,response_flags=UF,URX,")
    );
}

#[test]
fn overrides_change_remove_add_and_drop() {
    let stats = Stats::default();
    let over = |name: &str, dimensions: &[(&str, &str)], remove: &[&str], drop| MetricOverride {
        name: name.into(),
        dimensions: dimensions.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
        tags_to_remove: remove.iter().map(|t| (*t).into()).collect(),
        match_expr: None,
        drop,
    };
    let config = Config {
        metrics: vec![
            over(
                "",
                &[("method", "request.method"), ("response_code", "'c' + string(response.code)")],
                &["source_app"],
                false,
            ),
            over("request_bytes", &[], &[], true),
        ],
        definitions: vec![MetricDefinition { name: "odd".into(), value: "1 + 1".into(), kind: 0 }],
        ..Config::default()
    };
    let metrics = IstioMetrics::new(&config, Direction::Outbound, &stats);
    let (request, info) = (request(), info());
    metrics.request(&FormatContext::new(Some(&request), &info), false);
    let all = labels_of(&stats, "requests_total");
    assert!(all[0].contains(",response_code=c503,") && all[0].ends_with(",method=GET 1"), "{all:?}");
    assert!(!all[0].contains("source_app"));
    assert!(labels_of(&stats, "request_bytes").is_empty());
    assert_eq!(labels_of(&stats, "odd"), ["method=GET,response_code=c503 2"]);
}
