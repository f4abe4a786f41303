//! Access loggers and filters. Source: envoy/config/accesslog/v3, envoy/extensions/access_loggers.

use std::sync::Arc;

use envoy_types::pb::envoy::config::accesslog::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core_pb;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3 as file;
use envoy_types::pb::envoy::extensions::access_loggers::filters::cel::v3 as cel_pb;
use envoy_types::pb::envoy::extensions::access_loggers::stream::v3 as stream;

use super::any::Extension;
use super::{Ctx, Result, core, format, matcher, take};
use crate::config::access_log::{AccessLog, Comparison, Filter, LogFormat, Op, Sink};
use crate::config::matcher::Fraction;
use crate::stream_info::{FLAGS, ResponseFlags};

/// Envoy's default format for HTTP and TCP.
const DEFAULT_FORMAT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \
\"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

pub fn access_logs(ctx: &Ctx<'_>, field: &str, list: Vec<pb::AccessLog>) -> Result<Vec<AccessLog>> {
    ctx.each(field, list, access_log)
}

fn access_log(ctx: &Ctx<'_>, m: pb::AccessLog) -> Result<AccessLog> {
    take!(ctx, m, pb::AccessLog { filter, config_type; harmless name = "the logger is told by its type" });
    let filter = filter.map(|f| self::filter(&ctx.field("filter"), f)).transpose()?;
    let pb::access_log::ConfigType::TypedConfig(any) = ctx.required("typed_config", config_type)?;
    let ctx = ctx.field("typed_config");
    let extension = Extension::open(&ctx, any)?;
    let (sink, format) = match extension.message.as_str() {
        "envoy.extensions.access_loggers.file.v3.FileAccessLog" => {
            use file::file_access_log::AccessLogFormat as F;
            take!(ctx, extension.decode(&ctx)?, file::FileAccessLog { path, access_log_format });
            if path.is_empty() {
                return ctx.bad("path", "is required");
            }
            let format = match access_log_format {
                None => default_format(&ctx)?,
                Some(F::Format(t)) => LogFormat::Text(format::parse(&ctx.field("format"), &t, false)?),
                Some(F::JsonFormat(s)) => {
                    LogFormat::Json(format::json(&ctx.field("json_format"), &s, false)?)
                }
                Some(F::TypedJsonFormat(s)) => {
                    LogFormat::Json(format::json(&ctx.field("typed_json_format"), &s, false)?)
                }
                Some(F::LogFormat(f)) => log_format(&ctx, f)?,
            };
            let sink = match path.as_str() {
                "/dev/stdout" => Sink::Stdout,
                "/dev/stderr" => Sink::Stderr,
                _ => Sink::File(path.into()),
            };
            (sink, format)
        }
        "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog" => {
            use stream::stdout_access_log::AccessLogFormat as F;
            take!(ctx, extension.decode(&ctx)?, stream::StdoutAccessLog { access_log_format });
            let format = match access_log_format {
                None => default_format(&ctx)?,
                Some(F::LogFormat(f)) => log_format(&ctx, f)?,
            };
            (Sink::Stdout, format)
        }
        "envoy.extensions.access_loggers.stream.v3.StderrAccessLog" => {
            use stream::stderr_access_log::AccessLogFormat as F;
            take!(ctx, extension.decode(&ctx)?, stream::StderrAccessLog { access_log_format });
            let format = match access_log_format {
                None => default_format(&ctx)?,
                Some(F::LogFormat(f)) => log_format(&ctx, f)?,
            };
            (Sink::Stderr, format)
        }
        _ => {
            return extension.unknown(
                &ctx,
                "access logger",
                "envoy.access_loggers.file, envoy.access_loggers.stdout, envoy.access_loggers.stderr",
            );
        }
    };
    Ok(AccessLog { filter, sink, format })
}

fn default_format(ctx: &Ctx<'_>) -> Result<LogFormat> {
    Ok(LogFormat::Text(format::parse(ctx, DEFAULT_FORMAT, false)?))
}

fn log_format(ctx: &Ctx<'_>, m: core_pb::SubstitutionFormatString) -> Result<LogFormat> {
    Ok(format::substitution(&ctx.field("log_format"), m)?.format)
}

/// A log with the default format to a file: `access_log_path` of the admin.
pub fn file(ctx: &Ctx<'_>, path: &str) -> Result<AccessLog> {
    Ok(AccessLog { filter: None, sink: Sink::File(path.into()), format: default_format(ctx)? })
}

pub fn filter(ctx: &Ctx<'_>, m: pb::AccessLogFilter) -> Result<Filter> {
    use pb::access_log_filter::FilterSpecifier as S;
    take!(ctx, m, pb::AccessLogFilter { filter_specifier });
    Ok(match ctx.required("filter_specifier", filter_specifier)? {
        S::StatusCodeFilter(f) => {
            let ctx = ctx.field("status_code_filter");
            take!(ctx, f, pb::StatusCodeFilter { comparison });
            Filter::StatusCode(self::comparison(
                &ctx.field("comparison"),
                ctx.required("comparison", comparison)?,
            )?)
        }
        S::DurationFilter(f) => {
            let ctx = ctx.field("duration_filter");
            take!(ctx, f, pb::DurationFilter { comparison });
            Filter::Duration(self::comparison(
                &ctx.field("comparison"),
                ctx.required("comparison", comparison)?,
            )?)
        }
        S::NotHealthCheckFilter(pb::NotHealthCheckFilter {}) => Filter::NotHealthCheck,
        S::TraceableFilter(pb::TraceableFilter {}) => Filter::Traceable,
        S::RuntimeFilter(f) => {
            let ctx = ctx.field("runtime_filter");
            take!(ctx, f, pb::RuntimeFilter { runtime_key, percent_sampled, use_independent_randomness });
            let default = match percent_sampled {
                Some(p) => core::fractional(&ctx.field("percent_sampled"), p)?,
                None => Fraction { numerator: 0, denominator: 100 },
            };
            let share =
                ctx.env().runtime(&runtime_key).map_or(default, |v| core::runtime_override(v, default));
            Filter::Runtime { share, independent: use_independent_randomness }
        }
        S::AndFilter(pb::AndFilter { filters }) => Filter::And(several(&ctx.field("and_filter"), filters)?),
        S::OrFilter(pb::OrFilter { filters }) => Filter::Or(several(&ctx.field("or_filter"), filters)?),
        S::HeaderFilter(pb::HeaderFilter { header }) => {
            let ctx = ctx.field("header_filter");
            Filter::Header(matcher::header(&ctx.field("header"), ctx.required("header", header)?)?)
        }
        S::ResponseFlagFilter(pb::ResponseFlagFilter { flags }) => {
            let ctx = ctx.field("response_flag_filter");
            let mut bits = ResponseFlags::NONE;
            for (i, flag) in flags.iter().enumerate() {
                match FLAGS.iter().find(|(_, short, _)| short == flag) {
                    Some((bit, _, _)) => bits.set(*bit),
                    None => {
                        return Err(ctx.index("flags", i).err(format!("{flag:?} is not a response flag")));
                    }
                }
            }
            Filter::ResponseFlag(bits)
        }
        S::GrpcStatusFilter(pb::GrpcStatusFilter { statuses, exclude }) => {
            let ctx = ctx.field("grpc_status_filter");
            let statuses = ctx.each("statuses", statuses, |c, s| {
                u32::try_from(s)
                    .ok()
                    .filter(|s| *s <= 16)
                    .ok_or_else(|| c.err(format!("{s} is not a gRPC status; 0 to 16 is accepted")))
            })?;
            Filter::GrpcStatus { statuses, exclude }
        }
        S::LogTypeFilter(pb::LogTypeFilter { types, exclude }) => Filter::LogType {
            types: types.into_iter().filter_map(|t| u32::try_from(t).ok()).collect(),
            exclude,
        },
        S::MetadataFilter(f) => {
            return ctx.bad(
                "metadata_filter",
                format!(
                    "{} is not served; an extension_filter with CEL over metadata is accepted",
                    super::show(&f)
                ),
            );
        }
        S::ExtensionFilter(f) => {
            let ctx = ctx.field("extension_filter");
            take!(ctx, f, pb::ExtensionFilter { config_type; harmless name = "the filter is told by its type" });
            let pb::extension_filter::ConfigType::TypedConfig(any) =
                ctx.required("typed_config", config_type)?;
            let ctx = ctx.field("typed_config");
            let extension = Extension::open(&ctx, any)?;
            match extension.message.as_str() {
                "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter" => {
                    take!(ctx, extension.decode(&ctx)?, cel_pb::ExpressionFilter {
                        expression; harmless cel_config = "string conversion, concatenation and functions are always on"
                    });
                    Filter::Cel(cel_expression(&ctx.field("expression"), &expression)?)
                }
                _ => {
                    return extension.unknown(
                        &ctx,
                        "access log filter",
                        "envoy.access_loggers.extension_filters.cel",
                    );
                }
            }
        }
    })
}

/// Checks that a CEL expression parses.
pub fn cel_expression(ctx: &Ctx<'_>, expression: &str) -> Result<Arc<str>> {
    cel::Program::compile(expression).map_err(|e| ctx.err(format!("{expression:?} does not parse: {e}")))?;
    Ok(expression.into())
}

fn several(ctx: &Ctx<'_>, filters: Vec<pb::AccessLogFilter>) -> Result<Vec<Filter>> {
    if filters.len() < 2 {
        return ctx.bad("filters", "at least two filters are required");
    }
    ctx.each("filters", filters, filter)
}

fn comparison(ctx: &Ctx<'_>, m: pb::ComparisonFilter) -> Result<Comparison> {
    use pb::comparison_filter::Op as P;
    take!(ctx, m, pb::ComparisonFilter { op, value });
    let op = match ctx.enumeration("op", op)? {
        P::Eq => Op::Eq,
        P::Ge => Op::Ge,
        P::Le => Op::Le,
        P::Ne => Op::Ne,
    };
    Ok(Comparison { op, value: u64::from(core::runtime_u32(ctx, ctx.required("value", value)?)) })
}
