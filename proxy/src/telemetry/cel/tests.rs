use super::*;
use crate::telemetry::format::tests::{info, request};

#[test]
fn expressions_over_a_stream() {
    let (request, info) = (request(), info());
    let ctx = FormatContext::new(Some(&request), &info);
    for (expression, want) in [
        ("request.method", Some("GET")),
        ("request.url_path", Some("/a/b")),
        ("request.query", Some("x=1")),
        ("request.headers['user-agent']", Some("curl/8")),
        ("request.headers['absent']", None),
        ("'absent' in request.headers", Some("false")),
        ("response.code", Some("503")),
        ("response.code >= 500 && request.method == 'GET'", Some("true")),
        ("destination.port", Some("8080")),
        ("source.address", Some("10.0.0.1:4000")),
        ("connection.mtls", Some("false")),
        ("xds.route_name", Some("my route")),
        ("metadata.filter_metadata['a.b']['k']", Some("v")),
        ("upstream_peer.workload", None),
        ("request.path.startsWith('/a') ? 'yes' : 'no'", Some("yes")),
        ("request.path.matches('^/a/.*')", Some("true")),
        ("nonsense.field", None),
    ] {
        let e = Expression::compile(expression).unwrap();
        assert_eq!(e.text(&ctx).as_deref(), want, "{expression}");
    }
    assert!(Expression::compile("a +").is_err());
    assert!(matches(&"response.code == 503".into(), &ctx));
    assert!(!matches(&"response.code".into(), &ctx));
}
