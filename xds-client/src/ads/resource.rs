//! What a response carries, in one form for both variants of the protocol, and the answer to it.

use std::time::Duration;

use bytes::Bytes;

/// One resource as the control plane sent it; nothing in it has been looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// The resource's name. In the state of the world it is read from the body; empty for a type without names.
    pub name: String,
    /// The resource's version (delta) or the response's (state of the world).
    pub version: String,
    /// The encoded message.
    pub body: Bytes,
    /// Other names of the same resource (`Resource.aliases`), which subscriptions may have used.
    pub aliases: Vec<String>,
    /// How long the resource lives without being sent again. [`super::AdsEvent::Expired`] tells when it is over.
    pub ttl: Option<Duration>,
}

/// The content of one response; answer it with [`super::AdsHandle::ack`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The type of every resource in it.
    pub type_url: String,
    /// The version of the whole (`system_version_info`, `version_info`), for people.
    pub version: String,
    /// Resources that are new or changed.
    pub added: Vec<Resource>,
    /// Names that are gone, or that the control plane does not know.
    pub removed: Vec<String>,
    /// Belongs into the answer.
    pub nonce: String,
    /// `control_plane.identifier`, if given.
    pub control_plane: String,
}

/// The answer to a response: empty is an ACK.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The resources that were not applied. All others were.
    pub rejected: Vec<Rejection>,
}

/// A resource that was not applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Its name.
    pub name: String,
    /// What is wrong with it, and where.
    pub reason: String,
}

impl Verdict {
    /// Everything was applied.
    #[must_use]
    pub fn accepted() -> Self {
        Self::default()
    }

    /// Adds a resource that was not applied.
    pub fn reject(&mut self, name: impl Into<String>, reason: impl Into<String>) {
        self.rejected.push(Rejection { name: name.into(), reason: reason.into() });
    }

    /// The text of the NACK, in the form of Envoy's `Error adding/updating …`; `None` for an ACK.
    #[must_use]
    pub fn error_text(&self, type_url: &str) -> Option<String> {
        if self.rejected.is_empty() {
            return None;
        }
        let kind = crate::type_url::message_name(type_url).rsplit('.').next().unwrap_or("resource");
        let lines: Vec<String> = self
            .rejected
            .iter()
            .map(|rejection| format!("{kind} {}: {}", rejection.name, rejection.reason))
            .collect();
        Some(lines.join("\n"))
    }
}
