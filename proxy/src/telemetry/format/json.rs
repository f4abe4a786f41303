//! The JSON form of a format: `json_format`. A key with one command keeps the value's type; literals and several commands
//! make a string. Strings are escaped as Envoy's sanitizer does.

use std::cell::RefCell;

use super::{FormatContext, Wrote, command, write};
use crate::config::access_log::Json;
use crate::config::format::{Format, Part};

thread_local! {
    /// A value before its escaping; kept for the next.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Appends the evaluated JSON. `false`: nothing, because the value is absent and `omit_empty_values` is set.
pub fn write_json(json: &Json, ctx: &FormatContext<'_>, out: &mut Vec<u8>) -> bool {
    match json {
        Json::Value(format) => return value(format, ctx, out),
        Json::Number(n) if n.fract() == 0.0 && n.abs() < 1e15 => {
            out.extend_from_slice(itoa::Buffer::new().format(*n as i64).as_bytes());
        }
        Json::Number(n) => out.extend_from_slice(n.to_string().as_bytes()),
        Json::Bool(b) => out.extend_from_slice(if *b { b"true" } else { b"false" }),
        Json::Null => out.extend_from_slice(b"null"),
        Json::List(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                if !write_json(item, ctx, out) {
                    out.extend_from_slice(b"null");
                }
            }
            out.push(b']');
        }
        Json::Object(fields) => {
            out.push(b'{');
            let open = out.len();
            for (key, item) in fields {
                let start = out.len();
                if start > open {
                    out.push(b',');
                }
                string(key.as_bytes(), out);
                out.push(b':');
                if !write_json(item, ctx, out) {
                    out.truncate(start);
                }
            }
            out.push(b'}');
        }
    }
    true
}

fn value(format: &Format, ctx: &FormatContext<'_>, out: &mut Vec<u8>) -> bool {
    // Taken, not borrowed: a CEL operator may format within. The inner one then starts with a fresh buffer.
    let mut scratch = SCRATCH.take();
    scratch.clear();
    let mut written = true;
    match format.parts.as_slice() {
        [Part::Command(one, max)] => match command::write(one, ctx, &mut scratch) {
            Wrote::Absent if format.omit_empty => written = false,
            Wrote::Absent => out.extend_from_slice(b"null"),
            Wrote::Text => {
                let len = max.unwrap_or(usize::MAX).min(scratch.len());
                string(&scratch[..len], out);
            }
            Wrote::Number | Wrote::Json => out.extend_from_slice(&scratch),
        },
        _ => {
            write(format, ctx, &mut scratch);
            string(&scratch, out);
        }
    }
    SCRATCH.set(scratch);
    written
}

/// Appends a quoted, escaped string. Bytes that make the value no UTF-8 are written as `\ooo` octal text.
pub(crate) fn string(value: &[u8], out: &mut Vec<u8>) {
    let valid = std::str::from_utf8(value).is_ok();
    out.push(b'"');
    for b in value {
        match b {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            8 => out.extend_from_slice(b"\\b"),
            12 => out.extend_from_slice(b"\\f"),
            0..=31 | 127 => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[HEX[usize::from(b >> 4)], HEX[usize::from(b & 15)]]);
            }
            128.. if !valid => {
                out.extend_from_slice(&[b'\\', b'\\', b'0' + (b >> 6), b'0' + (b >> 3 & 7), b'0' + (b & 7)]);
            }
            b => out.push(*b),
        }
    }
    out.push(b'"');
}
