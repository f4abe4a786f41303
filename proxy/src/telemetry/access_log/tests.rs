use std::time::Duration;

use super::*;
use crate::config::access_log::{Comparison, Filter, Json, Op};
use crate::config::format::{Command, Format, Part, Simple};
use crate::config::matcher::{Fraction, HeaderMatch, HeaderMatcher, StringMatcher};
use crate::head::{HeaderId, HeaderName};
use crate::stream_info::ResponseFlags;
use crate::telemetry::format::LogType;
use crate::telemetry::format::tests::{info, request};
use crate::telemetry::stats::Stats;

fn code() -> Format {
    Format { parts: vec![Part::Command(Command::Simple(Simple::ResponseCode), None)], omit_empty: false }
}

#[test]
fn lines_of_two_workers_reach_one_file_and_survive_a_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let stats = Stats::default();
    let files = Files::new(Duration::from_secs(10), &stats);
    let sink = Sink::File(path.to_str().unwrap().into());
    let mut text = code();
    text.parts.push(Part::Literal("\n".into()));
    let logs = [
        AccessLog { filter: None, sink: sink.clone(), format: LogFormat::Text(text) },
        AccessLog {
            filter: None,
            sink,
            format: LogFormat::Json(Json::Object(vec![("c".into(), Json::Value(code()))])),
        },
    ];
    let (one, two) = (WorkerFiles::new(files.clone()), WorkerFiles::new(files.clone()));
    let (request, info) = (request(), info());
    let ctx = FormatContext::new(Some(&request), &info);
    AccessLogger::new(&logs, &one).log(&ctx);
    AccessLogger::new(&logs, &two).log(&ctx);
    assert!(std::fs::read(&path).unwrap().is_empty());
    one.flush();
    drop(two);
    files.sync();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "503\n{\"c\":503}\n503\n{\"c\":503}\n");
    std::fs::rename(&path, dir.path().join("old")).unwrap();
    files.reopen();
    AccessLogger::new(&logs[..1], &one).log(&ctx);
    one.flush();
    files.sync();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "503\n");
    assert_eq!(stats.value("filesystem.write_completed"), Some(3));
    assert_eq!(stats.value("filesystem.write_buffered"), Some(5));
    assert_eq!(stats.value("filesystem.write_total_buffered"), Some(0));
}

#[test]
fn a_full_buffer_does_not_wait_for_the_timer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let files = Files::new(Duration::from_secs(10), &Stats::default());
    let worker = WorkerFiles::new(files.clone());
    let format =
        LogFormat::Text(Format { parts: vec![Part::Literal("x".repeat(1000).into())], omit_empty: false });
    let log = AccessLog { filter: None, sink: Sink::File(path.to_str().unwrap().into()), format };
    let logger = AccessLogger::new(&[log], &worker);
    let info = info();
    for _ in 0..66 {
        logger.log(&FormatContext::new(None, &info));
    }
    files.sync();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 66_000);
}

#[test]
fn filters_decide_as_envoys() {
    let (mut request, info) = (request(), info());
    request.append_id(HeaderId::XRequestId, b"0000000a-1111-2222-3333-444444444444");
    let mut ctx = FormatContext::new(Some(&request), &info);
    ctx.log_type = LogType::DownstreamEnd;
    let status = |op, value| Filter::StatusCode(Comparison { op, value });
    let header = |name: &str, kind, invert| {
        Filter::Header(HeaderMatcher {
            name: HeaderName::new(name),
            kind,
            invert,
            treat_missing_as_empty: false,
        })
    };
    let exact = |v: &str| HeaderMatch::String(StringMatcher::Exact { value: v.into(), ignore_case: false });
    let share = |numerator| Fraction { numerator, denominator: 100 };
    for (filter, want) in [
        (status(Op::Ge, 500), true),
        (status(Op::Eq, 200), false),
        (status(Op::Ne, 200), true),
        (Filter::Duration(Comparison { op: Op::Le, value: 12 }), true),
        (Filter::NotHealthCheck, true),
        (Filter::Traceable, false),
        (Filter::Runtime { share: share(11), independent: false }, true),
        (Filter::Runtime { share: share(10), independent: false }, false),
        (Filter::And(vec![status(Op::Ge, 500), Filter::Traceable]), false),
        (Filter::Or(vec![status(Op::Ge, 500), Filter::Traceable]), true),
        (header("user-agent", exact("curl/8"), false), true),
        (header("user-agent", exact("curl/8"), true), false),
        (header("absent", exact("x"), true), false),
        (header("absent", HeaderMatch::Present(false), false), true),
        (Filter::ResponseFlag(ResponseFlags::NONE), true),
        (Filter::ResponseFlag(ResponseFlags::NO_ROUTE_FOUND), false),
        (Filter::GrpcStatus { statuses: vec![14], exclude: false }, true),
        (Filter::GrpcStatus { statuses: vec![14], exclude: true }, false),
        (Filter::LogType { types: vec![6], exclude: false }, true),
        (Filter::Cel("response.code == 503".into()), true),
    ] {
        assert_eq!(matches(&filter, &ctx), want, "{filter:?}");
    }
}
