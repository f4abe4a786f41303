//! Access loggers and their filters: `envoy.config.accesslog.v3.AccessLog` with the file, stdout and stderr loggers.

use std::sync::Arc;

use super::format::Format;
use super::matcher::{Fraction, HeaderMatcher};
use crate::stream_info::ResponseFlags;

/// One configured logger.
#[derive(Clone, Debug)]
pub struct AccessLog {
    pub filter: Option<Filter>,
    pub sink: Sink,
    pub format: LogFormat,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Sink {
    File(Arc<str>),
    Stdout,
    Stderr,
}

#[derive(Clone, Debug)]
pub enum LogFormat {
    Text(Format),
    /// `json_format`; keys in the order in which Envoy writes them (sorted), numbers stay numbers.
    Json(Json),
}

/// A JSON format: nested as `google.protobuf.Struct` nests.
#[derive(Clone, Debug)]
pub enum Json {
    /// A single command keeps its type (number, bool, null); several parts or a literal make a string.
    Value(Format),
    Number(f64),
    Bool(bool),
    Null,
    List(Vec<Json>),
    Object(Vec<(Arc<str>, Json)>),
}

/// `envoy.config.accesslog.v3.AccessLogFilter`.
#[derive(Clone, Debug)]
pub enum Filter {
    StatusCode(Comparison),
    /// Milliseconds.
    Duration(Comparison),
    NotHealthCheck,
    Traceable,
    /// `independent_randomness` false: the request id decides.
    Runtime {
        share: Fraction,
        independent: bool,
    },
    And(Vec<Filter>),
    Or(Vec<Filter>),
    Header(HeaderMatcher),
    /// Empty: any flag.
    ResponseFlag(ResponseFlags),
    GrpcStatus {
        statuses: Vec<u32>,
        exclude: bool,
    },
    /// `AccessLogType`s by their number.
    LogType {
        types: Vec<u32>,
        exclude: bool,
    },
    /// A CEL expression over Envoy's attributes.
    Cel(Arc<str>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison {
    pub op: Op,
    pub value: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Eq,
    Ge,
    Le,
    Ne,
}
