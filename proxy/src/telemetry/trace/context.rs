//! W3C trace context: `traceparent` and `tracestate` (www.w3.org/TR/trace-context), as Envoy's OpenTelemetry tracer reads
//! and writes them.

use crate::head::{Head, HeaderId};

/// A position in a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    pub trace_id: [u8; 16],
    pub span_id: [u8; 8],
    pub sampled: bool,
    pub state: String,
}

/// What a request brings.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    /// No `traceparent`: a new trace.
    None,
    Parent(TraceContext),
    /// A `traceparent` that is none: the request is not traced here, and its headers pass as they are.
    Invalid,
}

impl TraceContext {
    pub(super) fn from_request(request: &Head) -> Incoming {
        let Some(value) = request.get(HeaderId::Traceparent) else { return Incoming::None };
        let state: Vec<_> = request.all_id(HeaderId::Tracestate).map(String::from_utf8_lossy).collect();
        match TraceContext::parse(value, state.join(",")) {
            Some(context) => Incoming::Parent(context),
            None => Incoming::Invalid,
        }
    }

    /// Parses `version-trace-span-flags`; exactly 55 characters, ids not all zero.
    fn parse(value: &[u8], state: String) -> Option<TraceContext> {
        let text = std::str::from_utf8(value).ok().filter(|t| t.len() == 55 && t.is_ascii())?;
        let mut parts = text.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if version.len() != 2 || parts.next().is_some() {
            return None;
        }
        hex::<1>(version)?;
        let (trace_id, span_id) = (hex::<16>(trace)?, hex::<8>(span)?);
        if trace_id == [0; 16] || span_id == [0; 8] {
            return None;
        }
        Some(TraceContext { trace_id, span_id, sampled: hex::<1>(flags)?[0] & 1 == 1, state })
    }

    /// Writes both headers, in place of what was there.
    pub fn inject(&self, head: &mut Head) {
        let mut value = String::with_capacity(55);
        value.push_str("00-");
        push_hex(&mut value, &self.trace_id);
        value.push('-');
        push_hex(&mut value, &self.span_id);
        value.push_str(if self.sampled { "-01" } else { "-00" });
        head.set(HeaderId::Traceparent, value.as_bytes());
        head.set(HeaderId::Tracestate, self.state.as_bytes());
    }

    /// The trace id in hex, for logs.
    pub fn trace_id_hex(&self) -> String {
        let mut out = String::with_capacity(32);
        push_hex(&mut out, &self.trace_id);
        out
    }

    /// The span id in hex, for logs.
    pub fn span_id_hex(&self) -> String {
        let mut out = String::with_capacity(16);
        push_hex(&mut out, &self.span_id);
        out
    }
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let bytes = text.as_bytes();
    if bytes.len() != 2 * N {
        return None;
    }
    let digit = |b: u8| char::from(b).to_digit(16).map(|d| d as u8);
    let mut out = [0; N];
    for (i, o) in out.iter_mut().enumerate() {
        *o = digit(bytes[2 * i])? << 4 | digit(bytes[2 * i + 1])?;
    }
    Some(out)
}

fn push_hex(out: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for b in bytes {
        out.push(char::from(DIGITS[usize::from(b >> 4)]));
        out.push(char::from(DIGITS[usize::from(b & 15)]));
    }
}
