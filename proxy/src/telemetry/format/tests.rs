use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::config::access_log::Json;
use crate::config::format::{Command, GrpcStatusFormat, Simple, TimePoint};
use crate::config::hcm::Protocol;
use crate::config::listener::Direction;
use crate::head::{HeaderId, HeaderName};
use crate::stream_info::{ConnInfo, ResponseFlags};

pub(crate) fn request() -> Head {
    let mut h = Head::new();
    h.append_id(HeaderId::Method, b"GET");
    h.append_id(HeaderId::Path, b"/a/b?x=1");
    h.append_id(HeaderId::Authority, b"example.com:80");
    h.append_id(HeaderId::UserAgent, b"curl/8");
    h.append(b"x-quote", b"a\"b\\c\td\xc3\xa9");
    h
}

pub(crate) fn info() -> StreamInfo {
    let addr = |s: &str| s.parse::<SocketAddr>().unwrap();
    let now = tokio::time::Instant::now();
    let start_time = UNIX_EPOCH + Duration::new(1_700_000_000, 12_345_678);
    let conn = ConnInfo {
        id: 7,
        remote: addr("10.0.0.1:4000"),
        direct_remote: addr("[::1]:4001"),
        local: addr("10.0.0.2:8080"),
        direct_local: addr("127.0.0.1:15006"),
        local_restored: true,
        sni: None,
        transport_protocol: "raw_buffer",
        tls: None,
        listener_name: "l".into(),
        listener_stat: "l".into(),
        filter_chain_name: "".into(),
        direction: Direction::Inbound,
        start: now,
        start_time,
        is_unix: false,
    };
    let mut info = StreamInfo::new(Rc::new(conn), now, start_time);
    info.protocol = Some(Protocol::Http11);
    info.response_code = Some(503);
    info.details = Some("upstream reset: x".into());
    info.flags.set(ResponseFlags::UPSTREAM_CONNECTION_FAILURE);
    info.flags.set(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
    info.bytes_sent = 91;
    info.times.complete = Some(Duration::from_micros(12_999));
    info.times.upstream_rx_begin = Some(Duration::from_millis(3));
    info.times.downstream_tx_end = Some(Duration::from_millis(11));
    info.route_name = Some("my route".into());
    info.attempt_count = 2;
    let metadata = serde_json::json!({"a.b": {"k": "v", "n": 3, "o": {"x": [1, true]}}});
    info.metadata = metadata.as_object().cloned().map(Box::new);
    info
}

fn one(command: Command) -> Format {
    Format { parts: vec![Part::Command(command, None)], omit_empty: false }
}

fn show(format: &Format, ctx: &FormatContext<'_>) -> String {
    to_string(format, ctx)
}

#[test]
fn commands_print_as_envoys() {
    let (request, info) = (request(), info());
    let ctx = FormatContext::new(Some(&request), &info);
    let name = HeaderName::new;
    let path = |p: &[&str]| Command::DynamicMetadata(p.iter().map(|s| (*s).into()).collect());
    for (command, want) in [
        (Command::Req(name("x-absent"), Some(name(":path"))), "/a/b?x=1"),
        (Command::Req(name("x-absent"), None), "-"),
        (Command::Resp(name("server"), None), "-"),
        (Command::Simple(Simple::Protocol), "HTTP/1.1"),
        (Command::Simple(Simple::UpstreamProtocol), "-"),
        (Command::Simple(Simple::ResponseCode), "503"),
        (Command::Simple(Simple::ResponseCodeDetails), "upstream_reset:_x"),
        (Command::Simple(Simple::ResponseFlags), "UF,URX"),
        (Command::Simple(Simple::ResponseFlagsLong), "UpstreamConnectionFailure,UpstreamRetryLimitExceeded"),
        (Command::Simple(Simple::BytesSent), "91"),
        (Command::Simple(Simple::Duration), "12"),
        (Command::Simple(Simple::RequestDuration), "-"),
        (Command::Simple(Simple::ResponseTxDuration), "8"),
        (Command::Simple(Simple::DownstreamRemoteAddress), "10.0.0.1:4000"),
        (Command::Simple(Simple::DownstreamDirectRemoteAddress), "[::1]:4001"),
        (Command::Simple(Simple::DownstreamDirectRemoteAddressWithoutPort), "::1"),
        (Command::Simple(Simple::DownstreamLocalPort), "8080"),
        (Command::Simple(Simple::UpstreamHost), "-"),
        (Command::Simple(Simple::RouteName), "my route"),
        (Command::Simple(Simple::FilterChainName), "-"),
        (Command::Simple(Simple::ConnectionId), "7"),
        (Command::Simple(Simple::UpstreamRequestAttemptCount), "2"),
        (Command::Time(TimePoint::Start, None), "2023-11-14T22:13:20.012Z"),
        (
            Command::Time(TimePoint::Start, Some("%s %3f %f %6f %Y/%m/%d %E6S %a %b %e %j %%".into())),
            "1700000000 012 012345678 012345 2023/11/14 20.012345 Tue Nov 14 318 %",
        ),
        (Command::Time(TimePoint::UpstreamTxBegin, None), "-"),
        (Command::GrpcStatus(GrpcStatusFormat::Camel), "-"),
        (path(&["a.b", "k"]), "v"),
        (path(&["a.b", "n"]), "3"),
        (path(&["a.b", "o"]), r#"{"x":[1,true]}"#),
        (path(&["a.b", "absent"]), "-"),
        (Command::Cel("request.method + '!'".into()), "GET!"),
        (Command::Cel("request.headers['none']".into()), "-"),
    ] {
        let text = format!("{command:?}");
        assert_eq!(show(&one(command), &ctx), want, "{text}");
    }
}

#[test]
fn a_length_cuts_and_an_empty_value_may_be_left_out() {
    let (request, info) = (request(), info());
    let ctx = FormatContext::new(Some(&request), &info);
    let parts = vec![
        Part::Literal("[".into()),
        Part::Command(Command::Req(HeaderName::new(":path"), None), Some(3)),
        Part::Literal("|".into()),
        Part::Command(Command::Simple(Simple::UpstreamHost), None),
        Part::Literal("]".into()),
    ];
    let mut format = Format { parts, omit_empty: false };
    assert_eq!(show(&format, &ctx), "[/a/|-]");
    format.omit_empty = true;
    assert_eq!(show(&format, &ctx), "[/a/|]");
}

#[test]
fn json_keeps_types_and_escapes() {
    let (request, info) = (request(), info());
    let ctx = FormatContext::new(Some(&request), &info);
    let json = Json::Object(vec![
        ("code".into(), Json::Value(one(Command::Simple(Simple::ResponseCode)))),
        ("host".into(), Json::Value(one(Command::Simple(Simple::UpstreamHost)))),
        ("meta".into(), Json::Value(one(Command::DynamicMetadata(["a.b".into(), "o".into()].into())))),
        ("n".into(), Json::List(vec![Json::Number(1.0), Json::Number(1.5), Json::Bool(true), Json::Null])),
        ("quote".into(), Json::Value(one(Command::Req(HeaderName::new("x-quote"), None)))),
    ]);
    let mut out = Vec::new();
    write_json(&json, &ctx, &mut out);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "{\"code\":503,\"host\":null,\"meta\":{\"x\":[1,true]},\"n\":[1,1.5,true,null],\"quote\":\"a\\\"b\\\\c\\tdé\"}"
    );
    let mut absent = one(Command::Simple(Simple::UpstreamHost));
    absent.omit_empty = true;
    let json = Json::Object(vec![("a".into(), Json::Value(absent)), ("b".into(), Json::Number(1.0))]);
    let mut out = Vec::new();
    write_json(&json, &ctx, &mut out);
    assert_eq!(out, br#"{"b":1}"#);
    let mut out = Vec::new();
    json::string(b"\xff\x01", &mut out);
    assert_eq!(out, br#""\\377\u0001""#);
}
