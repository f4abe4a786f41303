//! String, header, query and fraction matchers: `envoy.type.matcher.v3.StringMatcher`, `envoy.config.route.v3.HeaderMatcher`,
//! `QueryParameterMatcher`, `envoy.type.v3.FractionalPercent`.

use regex::bytes::Regex;
use std::sync::Arc;

use crate::head::HeaderName;

/// `envoy.type.matcher.v3.StringMatcher`. Patterns are lower-cased already where `ignore_case` is set.
#[derive(Clone, Debug)]
pub enum StringMatcher {
    Exact {
        value: Arc<str>,
        ignore_case: bool,
    },
    Prefix {
        value: Arc<str>,
        ignore_case: bool,
    },
    Suffix {
        value: Arc<str>,
        ignore_case: bool,
    },
    Contains {
        value: Arc<str>,
        ignore_case: bool,
    },
    /// Matches the whole value, as RE2's `FullMatch` does: the pattern is compiled as `^(?:…)$`.
    Regex(Regex),
}

impl StringMatcher {
    /// Whether `s` matches.
    pub fn matches(&self, s: &[u8]) -> bool {
        fn eq(a: &[u8], b: &[u8], ignore_case: bool) -> bool {
            if ignore_case { a.eq_ignore_ascii_case(b) } else { a == b }
        }
        match self {
            StringMatcher::Exact { value, ignore_case } => eq(s, value.as_bytes(), *ignore_case),
            StringMatcher::Prefix { value, ignore_case } => {
                s.len() >= value.len() && eq(&s[..value.len()], value.as_bytes(), *ignore_case)
            }
            StringMatcher::Suffix { value, ignore_case } => {
                s.len() >= value.len() && eq(&s[s.len() - value.len()..], value.as_bytes(), *ignore_case)
            }
            StringMatcher::Contains { value, ignore_case } => {
                value.is_empty() || s.windows(value.len()).any(|w| eq(w, value.as_bytes(), *ignore_case))
            }
            StringMatcher::Regex(r) => r.is_match(s),
        }
    }
}

/// `envoy.config.route.v3.HeaderMatcher`.
#[derive(Clone, Debug)]
pub struct HeaderMatcher {
    pub name: HeaderName,
    pub kind: HeaderMatch,
    pub invert: bool,
    /// `treat_missing_header_as_empty`: a missing header is matched as the empty string.
    pub treat_missing_as_empty: bool,
}

/// What a header's value is held against. Several values of one name are joined with `,` first, as Envoy does.
#[derive(Clone, Debug)]
pub enum HeaderMatch {
    /// `present_match`: true, the header is there; false, it is not.
    Present(bool),
    String(StringMatcher),
    /// `range_match`: a base-10 integer in `start..end`.
    Range {
        start: i64,
        end: i64,
    },
}

/// `envoy.config.route.v3.QueryParameterMatcher`.
#[derive(Clone, Debug)]
pub struct QueryMatcher {
    pub name: Arc<str>,
    /// `None`: present is enough.
    pub value: Option<StringMatcher>,
}

/// `envoy.type.v3.FractionalPercent`, with the runtime key's default applied: the share in millionths or so of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fraction {
    pub numerator: u32,
    /// 100, 10 000 or 1 000 000.
    pub denominator: u32,
}

impl Fraction {
    /// All requests.
    pub const ALL: Fraction = Fraction { numerator: 100, denominator: 100 };

    /// Whether `random`, uniform over `u64`, falls in the share.
    pub fn hit(&self, random: u64) -> bool {
        random % u64::from(self.denominator) < u64::from(self.numerator)
    }
}

/// `RuntimeFractionalPercent`: the key is kept for `/runtime` overrides of a static layer, resolved at conversion.
pub type RuntimeFraction = Fraction;
