//! An answer of the admin interface.

use serde::Serialize;

/// Status, content type, body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) status: u16,
    pub(super) content_type: &'static str,
    pub(super) body: String,
}

const TEXT: &str = "text/plain; charset=UTF-8";

impl Page {
    /// Plain text with status 200.
    pub(super) fn text(body: impl Into<String>) -> Page {
        Page { status: 200, content_type: TEXT, body: body.into() }
    }

    /// Plain text with another status.
    pub(super) fn error(status: u16, body: impl Into<String>) -> Page {
        Page { status, ..Page::text(body) }
    }

    /// What a change answers.
    pub(super) fn ok() -> Page {
        Page::text("OK\n")
    }

    /// HTML.
    pub(super) fn html(body: String) -> Page {
        Page { status: 200, content_type: "text/html; charset=UTF-8", body }
    }

    /// JSON that is written already.
    pub(super) fn json_text(body: String) -> Page {
        Page { status: 200, content_type: "application/json", body }
    }

    /// JSON as protobuf's printer lays it out: one space a level, `<` and `>` escaped.
    pub(super) fn json(value: &serde_json::Value) -> Page {
        let mut out = Vec::new();
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b" ");
        let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
        if let Err(error) = value.serialize(&mut serializer) {
            return Page::error(500, format!("{error}\n"));
        }
        // serde_json writes UTF-8 only.
        let text = String::from_utf8(out).unwrap_or_default();
        Page::json_text(text.replace('<', "\\u003c").replace('>', "\\u003e") + "\n")
    }
}
