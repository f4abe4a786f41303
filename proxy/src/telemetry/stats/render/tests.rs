use std::sync::Arc;

use super::*;
use crate::config::bootstrap::StatsConfig;
use crate::telemetry::stats::{Tags, Unit};

fn filled() -> Stats {
    let stats = Stats::default();
    stats.text("control_plane.identifier").set("istiod");
    stats.counter("cluster.up.upstream_rq_200").add(3);
    stats.counter("cluster.up.upstream_rq_timeout");
    stats.gauge("cluster.up.upstream_cx_active").inc();
    let h = stats.histogram("cluster.up.upstream_rq_time", Unit::Milliseconds);
    h.record(0);
    h.record(3);
    stats.histogram("server.initialization_time_ms", Unit::Milliseconds).record(155);
    stats.histogram("server.unused", Unit::Bytes);
    let tags: Tags = Arc::new([("reporter".into(), "source".into()), ("dst".into(), "a\"b".into())]);
    stats.tagged_counter(&"istiocustom.istio_requests_total".into(), &tags).inc();
    stats
}

#[test]
fn text_is_envoys() {
    assert_eq!(
        filled().text_page(&Query::default()),
        "control_plane.identifier: \"istiod\"\n\
         cluster.up.upstream_cx_active: 1\n\
         cluster.up.upstream_rq_200: 3\n\
         cluster.up.upstream_rq_timeout: 0\n\
         istiocustom.istio_requests_total.reporter.source.dst.a\"b: 1\n\
         cluster.up.upstream_rq_time: P0(nan,0) P25(nan,0) P50(nan,0) P75(nan,3.05) P90(nan,3.05) P95(nan,3.05) P99(nan,3.05) P99.5(nan,3.05) P99.9(nan,3.05) P100(nan,3.05)\n\
         server.initialization_time_ms: P0(nan,155) P25(nan,155) P50(nan,155) P75(nan,155) P90(nan,155) P95(nan,155) P99(nan,155) P99.5(nan,155) P99.9(nan,155) P100(nan,155)\n\
         server.unused: No recorded values\n"
    );
    let query = Query {
        used_only: true,
        filter: Some(Regex::new("rq_").unwrap()),
        buckets: Buckets::Disjoint,
        ..Query::default()
    };
    let text = filled().text_page(&query);
    assert!(
        text.starts_with(
            "cluster.up.upstream_rq_200: 3\ncluster.up.upstream_rq_time: B0.5(0,1) B1(0,0) B5(0,1) "
        ),
        "{text}"
    );
    assert!(text.ends_with("B1.8e+06(0,0) B3.6e+06(0,0)\n"));
}

#[test]
fn json_keeps_envoys_shape() {
    let query = Query { filter: Some(Regex::new("rq_time$|identifier|unused").unwrap()), ..Query::default() };
    let json: serde_json::Value = serde_json::from_str(&filled().json_page(&query)).unwrap();
    let stats = json["stats"].as_array().unwrap();
    assert_eq!(stats[0], serde_json::json!({"name": "control_plane.identifier", "value": "istiod"}));
    let h = &stats[1]["histograms"];
    assert_eq!(h["supported_quantiles"].to_string(), "[0,25,50,75,90,95,99,99.5,99.9,100]");
    assert_eq!(h["computed_quantiles"][0]["values"][9].to_string(), r#"{"cumulative":3.05,"interval":null}"#);
    assert_eq!(h["computed_quantiles"][1]["values"][0].to_string(), r#"{"cumulative":null,"interval":null}"#);
}

#[test]
fn prometheus_is_envoys() {
    let tagger = Tagger::new(&StatsConfig { use_default_tags: true, ..StatsConfig::default() });
    let query = Query { used_only: true, ..Query::default() };
    let page = filled().prometheus_page(&query, &tagger);
    assert!(
        page.starts_with(
            "# TYPE envoy_cluster_upstream_rq counter\n\
             envoy_cluster_upstream_rq{envoy_response_code=\"200\",envoy_cluster_name=\"up\"} 3\n\
             # TYPE istio_requests_total counter\n\
             istio_requests_total{reporter=\"source\",dst=\"a\\\"b\"} 1\n\
             # TYPE envoy_cluster_upstream_cx_active gauge\n\
             envoy_cluster_upstream_cx_active{envoy_cluster_name=\"up\"} 1\n\
             # TYPE envoy_cluster_upstream_rq_time histogram\n\
             envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"up\",le=\"0.5\"} 1\n"
        ),
        "{page}"
    );
    assert!(
        page.ends_with(
            "envoy_server_initialization_time_ms_bucket{le=\"3600000\"} 1\n\
             envoy_server_initialization_time_ms_bucket{le=\"+Inf\"} 1\n\
             envoy_server_initialization_time_ms_sum{} 154.83870967741935942285635974258\n\
             envoy_server_initialization_time_ms_count{} 1\n"
        ),
        "{page}"
    );
}

#[test]
fn numbers_print_as_c_prints_them() {
    for (x, digits, want) in [
        (1_800_000.0, 6, "1.8e+06"),
        (99.5, 6, "99.5"),
        (0.000_01, 6, "1e-05"),
        (1_800_000.0, 32, "1800000"),
        (5.049_504_950_495_049_5, 32, "5.049504950495049548919723747531"),
        (123_456.7, 6, "123457"),
    ] {
        assert_eq!(general(x, digits), want);
    }
}
