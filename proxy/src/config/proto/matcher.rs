//! String, header, query and metadata matchers. Source: envoy/type/matcher/v3, envoy/config/route/v3/route_components.proto.
//! RE2's syntax is the regex crate's for all but a few escapes, which are refused.

use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::r#type::matcher::v3 as pb;
use envoy_types::pb::envoy::r#type::v3 as ty;

use super::{Ctx, Result, take};
use crate::config::filter::{MetadataMatcher, ValueMatcher};
use crate::config::matcher::{HeaderMatch, HeaderMatcher, QueryMatcher, StringMatcher};
use crate::config::route::RegexRewrite;

/// A pattern as the regex crate reads it; RE2's `\C`, `\Z` and the like are refused by the compiler, `\C` here.
fn pattern(ctx: &Ctx<'_>, m: pb::RegexMatcher) -> Result<String> {
    take!(ctx, m, pb::RegexMatcher { regex; harmless engine_type = "RE2 and the regex crate both match in linear time; program size limits are the crate's" });
    if regex.is_empty() {
        return ctx.bad("regex", "is required");
    }
    if regex.replace("\\\\", "").contains("\\C") {
        return ctx.bad("regex", format!("{regex:?}: \\C (a single byte) is not served"));
    }
    Ok(regex)
}

fn failed<T>(ctx: &Ctx<'_>, regex: &str, e: &regex::Error) -> Result<T> {
    let reason = e.to_string();
    let reason = reason.lines().last().unwrap_or_default().trim().to_owned();
    ctx.bad("regex", format!("{regex:?}: {reason}"))
}

/// A regex that matches the whole value, over bytes.
pub fn regex_bytes(ctx: &Ctx<'_>, m: pb::RegexMatcher) -> Result<regex::bytes::Regex> {
    let p = pattern(ctx, m)?;
    regex::bytes::Regex::new(&format!("^(?:{p})$")).or_else(|e| failed(ctx, &p, &e))
}

/// A regex that matches the whole value, over text.
pub fn regex_full(ctx: &Ctx<'_>, m: pb::RegexMatcher) -> Result<regex::Regex> {
    let p = pattern(ctx, m)?;
    regex::Regex::new(&format!("^(?:{p})$")).or_else(|e| failed(ctx, &p, &e))
}

/// A pattern that is searched for and its substitution.
pub fn rewrite(ctx: &Ctx<'_>, m: pb::RegexMatchAndSubstitute) -> Result<RegexRewrite> {
    take!(ctx, m, pb::RegexMatchAndSubstitute { pattern, substitution });
    let ctx2 = ctx.field("pattern");
    let p = self::pattern(&ctx2, ctx.required("pattern", pattern)?)?;
    let pattern = regex::Regex::new(&p).or_else(|e| failed(&ctx2, &p, &e))?;
    let substitution =
        substitution_of(&ctx.field("substitution"), &substitution, pattern.captures_len() - 1)?;
    Ok(RegexRewrite { pattern, substitution: substitution.into() })
}

/// `\1` → `${1}`, `\\` → `\`, `$` → `$$`.
fn substitution_of(ctx: &Ctx<'_>, text: &str, groups: usize) -> Result<String> {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('\\') => out.push('\\'),
                Some(d) if d.is_ascii_digit() => {
                    if d.to_digit(10).unwrap_or(0) as usize > groups {
                        return Err(ctx.err(format!("{text:?}: \\{d} but the pattern has {groups} groups")));
                    }
                    out.push_str("${");
                    out.push(d);
                    out.push('}');
                }
                _ => {
                    return Err(
                        ctx.err(format!("{text:?}: a backslash must be followed by a digit or a backslash"))
                    );
                }
            },
            '$' => out.push_str("$$"),
            c => out.push(c),
        }
    }
    Ok(out)
}

pub fn string(ctx: &Ctx<'_>, m: pb::StringMatcher) -> Result<StringMatcher> {
    use pb::string_matcher::MatchPattern as P;
    take!(ctx, m, pb::StringMatcher { ignore_case, match_pattern });
    let lower = |s: String| -> std::sync::Arc<str> {
        if ignore_case { s.to_ascii_lowercase().into() } else { s.into() }
    };
    let some = |field: &str, s: String| {
        if s.is_empty() { ctx.bad(field, "must not be empty") } else { Ok(lower(s)) }
    };
    Ok(match ctx.required("match_pattern", match_pattern)? {
        P::Exact(s) => StringMatcher::Exact { value: lower(s), ignore_case },
        P::Prefix(s) => StringMatcher::Prefix { value: some("prefix", s)?, ignore_case },
        P::Suffix(s) => StringMatcher::Suffix { value: some("suffix", s)?, ignore_case },
        P::Contains(s) => StringMatcher::Contains { value: some("contains", s)?, ignore_case },
        P::SafeRegex(r) => {
            if ignore_case {
                return ctx.bad("ignore_case", "does not go with safe_regex; write (?i) in the pattern");
            }
            StringMatcher::Regex(regex_bytes(&ctx.field("safe_regex"), r)?)
        }
        P::Custom(c) => {
            return ctx.bad(
                "custom",
                format!(
                    "{:?} is not served; exact, prefix, suffix, contains, safe_regex are accepted",
                    c.name
                ),
            );
        }
    })
}

pub fn header(ctx: &Ctx<'_>, m: route::HeaderMatcher) -> Result<HeaderMatcher> {
    use route::header_matcher::HeaderMatchSpecifier as S;
    take!(
        ctx,
        m,
        route::HeaderMatcher { name, invert_match, treat_missing_header_as_empty, header_match_specifier }
    );
    let plain = |value: String, make: fn(std::sync::Arc<str>) -> StringMatcher| {
        HeaderMatch::String(make(value.into()))
    };
    let kind = match header_match_specifier {
        None => HeaderMatch::Present(true),
        Some(S::PresentMatch(present)) => HeaderMatch::Present(present),
        Some(S::StringMatch(s)) => HeaderMatch::String(string(&ctx.field("string_match"), s)?),
        Some(S::RangeMatch(ty::Int64Range { start, end })) => HeaderMatch::Range { start, end },
        Some(S::SafeRegexMatch(r)) => {
            HeaderMatch::String(StringMatcher::Regex(regex_bytes(&ctx.field("safe_regex_match"), r)?))
        }
        Some(S::ExactMatch(v)) => plain(v, |value| StringMatcher::Exact { value, ignore_case: false }),
        Some(S::PrefixMatch(v)) => plain(v, |value| StringMatcher::Prefix { value, ignore_case: false }),
        Some(S::SuffixMatch(v)) => plain(v, |value| StringMatcher::Suffix { value, ignore_case: false }),
        Some(S::ContainsMatch(v)) => plain(v, |value| StringMatcher::Contains { value, ignore_case: false }),
    };
    Ok(HeaderMatcher {
        name: ctx.header_name("name", &name)?,
        kind,
        invert: invert_match,
        treat_missing_as_empty: treat_missing_header_as_empty,
    })
}

pub fn headers(ctx: &Ctx<'_>, field: &str, list: Vec<route::HeaderMatcher>) -> Result<Vec<HeaderMatcher>> {
    ctx.each(field, list, header)
}

pub fn query(ctx: &Ctx<'_>, m: route::QueryParameterMatcher) -> Result<QueryMatcher> {
    use route::query_parameter_matcher::QueryParameterMatchSpecifier as S;
    take!(ctx, m, route::QueryParameterMatcher { name, query_parameter_match_specifier });
    if name.is_empty() {
        return ctx.bad("name", "is required");
    }
    let value = match query_parameter_match_specifier {
        None | Some(S::PresentMatch(true)) => None,
        Some(S::PresentMatch(false)) => {
            return ctx.bad("present_match", "false is not served; true is accepted");
        }
        Some(S::StringMatch(s)) => Some(string(&ctx.field("string_match"), s)?),
    };
    Ok(QueryMatcher { name: name.into(), value })
}

pub fn path(ctx: &Ctx<'_>, m: pb::PathMatcher) -> Result<StringMatcher> {
    take!(ctx, m, pb::PathMatcher { rule });
    match ctx.required("path", rule)? {
        pb::path_matcher::Rule::Path(s) => string(&ctx.field("path"), s),
    }
}

pub fn metadata(ctx: &Ctx<'_>, m: pb::MetadataMatcher) -> Result<MetadataMatcher> {
    use pb::metadata_matcher::path_segment::Segment;
    take!(ctx, m, pb::MetadataMatcher { filter, path, value, invert });
    if filter.is_empty() {
        return ctx.bad("filter", "is required");
    }
    let path = ctx.each("path", path, |c, p| {
        take!(c, p, pb::metadata_matcher::PathSegment { segment });
        let Segment::Key(key) = c.required("key", segment)?;
        Ok(key.into())
    })?;
    if path.is_empty() {
        return ctx.bad("path", "is required");
    }
    let value = value_matcher(&ctx.field("value"), ctx.required("value", value)?)?;
    Ok(MetadataMatcher { filter: filter.into(), path, value, invert })
}

fn value_matcher(ctx: &Ctx<'_>, m: pb::ValueMatcher) -> Result<ValueMatcher> {
    use pb::value_matcher::MatchPattern as P;
    take!(ctx, m, pb::ValueMatcher { match_pattern });
    Ok(match ctx.required("match_pattern", match_pattern)? {
        P::NullMatch(pb::value_matcher::NullMatch {}) => ValueMatcher::Null,
        P::DoubleMatch(d) => {
            take!(ctx, d, pb::DoubleMatcher { match_pattern });
            match ctx.required("double_match", match_pattern)? {
                pb::double_matcher::MatchPattern::Range(ty::DoubleRange { start, end }) => {
                    ValueMatcher::DoubleRange(start, end)
                }
                pb::double_matcher::MatchPattern::Exact(v) => ValueMatcher::Double(v),
            }
        }
        P::StringMatch(s) => ValueMatcher::String(string(&ctx.field("string_match"), s)?),
        P::BoolMatch(b) => ValueMatcher::Bool(b),
        P::PresentMatch(p) => ValueMatcher::Present(p),
        P::ListMatch(l) => {
            take!(ctx, *l, pb::ListMatcher { match_pattern });
            let pb::list_matcher::MatchPattern::OneOf(one) = ctx.required("list_match", match_pattern)?;
            ValueMatcher::ListOneOf(Box::new(value_matcher(&ctx.field("list_match"), *one)?))
        }
        P::OrMatch(o) => {
            take!(ctx, o, pb::OrMatcher { value_matchers });
            ValueMatcher::Or(ctx.each("or_match", value_matchers, value_matcher)?)
        }
    })
}
