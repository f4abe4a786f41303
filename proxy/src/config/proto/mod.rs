//! Protobuf → internal representation. Each message is taken apart with `take!`, which names every field: served, refused or
//! harmless (with its reason); docs/COMPATIBILITY.md is made from those lists (see `compatibility`).
//! Sources: the v3 API's protos and their comments, for the defaults.

// Deprecated fields are read as long as control planes send them.
#![allow(deprecated)]

pub mod access_log;
pub mod any;
pub mod bootstrap;
pub mod cluster;
mod cluster_limits;
pub mod core;
pub mod endpoint;
pub mod fault;
pub mod filter_misc;
pub mod format;
pub mod hcm;
pub mod health_check;
pub mod http_filter;
pub mod http_options;
pub mod istio;
pub mod lb;
pub mod listener;
pub mod matcher;
pub mod network_filter;
pub mod rbac;
pub mod retry;
pub mod route;
pub mod route_action;
pub mod tls;
pub mod trace;

#[cfg(test)]
mod compatibility;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::fmt::{Debug, Write as _};
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::google::protobuf as wkt;

use super::bootstrap::ConfigSource;
use super::listener::Direction;
use crate::head::HeaderName;

/// Why a configuration was not taken: which resource, which field, and what would be accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{resource}: {}{reason}", if path.is_empty() { String::new() } else { format!("{path}: ") })]
pub struct ConfigError {
    /// Kind and name: `cluster 'a'`.
    pub resource: String,
    /// From the resource's message: `load_assignment.endpoints[0].locality`.
    pub path: String,
    pub reason: String,
}

pub type Result<T, E = ConfigError> = std::result::Result<T, E>;

/// What conversion needs to know besides the message.
#[derive(Clone, Debug, Default)]
pub struct Env {
    /// The static layers of `layered_runtime`, merged: what a `runtime_key` resolves to.
    pub runtime: Arc<[(Arc<str>, serde_json::Value)]>,
    /// The resource comes from the bootstrap.
    pub is_static: bool,
}

impl Env {
    fn runtime(&self, key: &str) -> Option<&serde_json::Value> {
        if key.is_empty() {
            return None;
        }
        self.runtime.iter().find(|(k, _)| &**k == key).map(|(_, v)| v)
    }
}

/// One conversion: the resource's name for errors, the environment, and what outer messages tell inner ones.
#[derive(Debug)]
pub struct Root<'e> {
    resource: String,
    env: &'e Env,
    direction: Cell<Direction>,
    needs: RefCell<Vec<Need>>,
}

/// Another resource that one needs before it can serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    pub kind: NeedKind,
    /// EDS service name, route configuration's name, secret's name.
    pub name: Arc<str>,
    /// `None`: the secret store of this process (a static secret, or Istio's agent).
    pub source: Option<ConfigSource>,
    /// How long it is waited for; `None`: for ever.
    pub fetch_timeout: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NeedKind {
    Endpoints,
    Routes,
    Secret,
}

impl<'e> Root<'e> {
    /// `kind` as an operator would call it: `cluster`, `listener`.
    pub fn new(kind: &str, name: &str, env: &'e Env) -> Root<'e> {
        let resource = if name.is_empty() { kind.to_owned() } else { format!("{kind} '{name}'") };
        Root { resource, env, direction: Cell::new(Direction::Unspecified), needs: RefCell::default() }
    }

    /// What the resource needs, each once.
    pub fn needs(self) -> Vec<Need> {
        let mut out: Vec<Need> = Vec::new();
        for need in self.needs.into_inner() {
            if !out.iter().any(|o| o.kind == need.kind && o.name == need.name) {
                out.push(need);
            }
        }
        out
    }

    /// The context of the resource's own message.
    pub fn ctx(&self) -> Ctx<'_> {
        Ctx { root: self, parent: None, seg: Seg::Root }
    }
}

#[derive(Clone, Copy, Debug)]
enum Seg<'a> {
    Root,
    Field(&'a str),
    Index(&'a str, usize),
    Key(&'a str, &'a str),
}

/// Where in the resource the conversion stands.
#[derive(Clone, Copy, Debug)]
pub struct Ctx<'a> {
    root: &'a Root<'a>,
    parent: Option<&'a Ctx<'a>>,
    seg: Seg<'a>,
}

impl<'a> Ctx<'a> {
    /// Inside a field.
    pub fn field<'b>(&'b self, name: &'b str) -> Ctx<'b> {
        Ctx { root: self.root, parent: Some(self), seg: Seg::Field(name) }
    }

    /// Inside an element of a repeated field.
    pub fn index<'b>(&'b self, name: &'b str, i: usize) -> Ctx<'b> {
        Ctx { root: self.root, parent: Some(self), seg: Seg::Index(name, i) }
    }

    /// Inside a value of a map field.
    pub fn key<'b>(&'b self, name: &'b str, key: &'b str) -> Ctx<'b> {
        Ctx { root: self.root, parent: Some(self), seg: Seg::Key(name, key) }
    }

    pub fn env(&self) -> &'a Env {
        self.root.env
    }

    /// Notes a resource that this one needs.
    fn need(
        &self,
        kind: NeedKind,
        name: &str,
        source: Option<ConfigSource>,
        fetch_timeout: Option<Duration>,
    ) {
        self.root.needs.borrow_mut().push(Need { kind, name: name.into(), source, fetch_timeout });
    }

    fn direction(&self) -> Direction {
        self.root.direction.get()
    }

    fn path(&self) -> String {
        let mut chain = Vec::new();
        let mut at = Some(self);
        while let Some(ctx) = at {
            chain.push(ctx.seg);
            at = ctx.parent;
        }
        let mut out = String::new();
        for seg in chain.iter().rev() {
            if !out.is_empty() {
                out.push('.');
            }
            // Writing to a string does not fail.
            let _ = match seg {
                Seg::Root => Ok(()),
                Seg::Field(name) => write!(out, "{name}"),
                Seg::Index(name, i) => write!(out, "{name}[{i}]"),
                Seg::Key(name, key) => write!(out, "{name}[\"{key}\"]"),
            };
        }
        out
    }

    /// An error at this place.
    pub fn err(&self, reason: impl Into<String>) -> ConfigError {
        ConfigError { resource: self.root.resource.clone(), path: self.path(), reason: reason.into() }
    }

    /// An error in a field of this message.
    pub fn bad<T>(&self, field: &str, reason: impl Into<String>) -> Result<T> {
        Err(self.field(field).err(reason))
    }

    /// Refuses a field that is set to something else than its default.
    pub fn refuse<T: Default + PartialEq + Debug>(
        &self,
        field: &str,
        value: &T,
        instead: &str,
    ) -> Result<()> {
        if *value == T::default() {
            return Ok(());
        }
        Err(self
            .field(field.trim_start_matches("r#"))
            .err(format!("{} is not served; {instead}", show(value))))
    }

    /// A required message.
    pub fn required<T>(&self, field: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.field(field).err("is required"))
    }

    /// A protobuf duration; negative ones are refused.
    pub fn duration(&self, field: &str, value: Option<wkt::Duration>) -> Result<Option<Duration>> {
        let Some(d) = value else { return Ok(None) };
        let (Ok(secs), Ok(nanos)) = (u64::try_from(d.seconds), u32::try_from(d.nanos)) else {
            return self.bad(
                field,
                format!(
                    "{}.{:09}s is negative; a duration of zero or more is accepted",
                    d.seconds,
                    d.nanos.unsigned_abs()
                ),
            );
        };
        if nanos > 999_999_999 || secs > 315_576_000_000 {
            return self.bad(field, "is out of the range of a protobuf duration");
        }
        Ok(Some(Duration::new(secs, nanos)))
    }

    /// A duration that must be more than zero where it is set.
    pub fn positive(&self, field: &str, value: Option<wkt::Duration>) -> Result<Option<Duration>> {
        match self.duration(field, value)? {
            Some(Duration::ZERO) => self.bad(field, "0s is not accepted; it must be greater than zero"),
            d => Ok(d),
        }
    }

    /// A duration for which zero means "off": `None`. `default` is used where the field is absent.
    pub fn timeout(
        &self,
        field: &str,
        value: Option<wkt::Duration>,
        default: Option<Duration>,
    ) -> Result<Option<Duration>> {
        Ok(match self.duration(field, value)? {
            None => default,
            Some(Duration::ZERO) => None,
            Some(d) => Some(d),
        })
    }

    /// An enumeration's value by number.
    pub fn enumeration<E: TryFrom<i32>>(&self, field: &str, value: i32) -> Result<E> {
        E::try_from(value)
            .map_err(|_| self.field(field).err(format!("{value} is not a value of the enumeration")))
    }

    /// A header's name: not empty, and made of token characters (a leading `:` is allowed).
    pub fn header_name(&self, field: &str, name: &str) -> Result<HeaderName> {
        let rest = name.strip_prefix(':').unwrap_or(name);
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if rest.is_empty() || !rest.bytes().all(token) {
            return self.bad(field, format!("{name:?} is not a header name"));
        }
        Ok(HeaderName::new(name))
    }

    /// A port: 0 to 65535.
    pub fn port(&self, field: &str, value: u32) -> Result<u16> {
        u16::try_from(value)
            .map_err(|_| self.field(field).err(format!("{value} is not a port; 0 to 65535 is accepted")))
    }

    /// Converts each element of a repeated field.
    pub fn each<T, R>(
        &self,
        field: &str,
        values: impl IntoIterator<Item = T>,
        mut convert: impl FnMut(&Ctx<'_>, T) -> Result<R>,
    ) -> Result<Vec<R>> {
        values.into_iter().enumerate().map(|(i, v)| convert(&self.index(field, i), v)).collect()
    }
}

/// A value for an error message: its debug form without protobuf's wrappers, cut to a readable length.
fn show<T: Debug>(value: &T) -> String {
    let mut text = format!("{value:?}");
    while let Some(inner) = text.strip_prefix("Some(").and_then(|t| t.strip_suffix(')')) {
        text = inner.to_owned();
    }
    for wrapper in
        ["BoolValue { value: ", "UInt32Value { value: ", "UInt64Value { value: ", "DoubleValue { value: "]
    {
        if let Some(inner) = text.strip_prefix(wrapper).and_then(|t| t.strip_suffix(" }")) {
            text = inner.to_owned();
        }
    }
    if text.len() > 120 {
        let cut = (0..=117).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(cut);
        text.push_str("...");
    }
    text
}

/// An optional string: empty is `None`.
pub(crate) fn text(s: String) -> Option<Arc<str>> {
    if s.is_empty() { None } else { Some(s.into()) }
}

/// A `BoolValue` with the field's default.
pub(crate) fn flag(value: Option<wkt::BoolValue>, default: bool) -> bool {
    value.map_or(default, |v| v.value)
}

/// A `UInt32Value`, if set.
pub(crate) fn uint(value: Option<wkt::UInt32Value>) -> Option<u32> {
    value.map(|v| v.value)
}

/// Takes a message apart: fields before `refuse` become variables; those after `refuse` must have their default, the text says
/// what would be accepted; those after `harmless` may have any value, the text says why they need nothing.
macro_rules! take {
    ($ctx:expr, $message:expr, $ty:path {
        $($served:ident),* $(,)?
        $(; refuse $($refused:ident = $instead:literal),* $(,)?)?
        $(; harmless $($harmless:ident = $reason:literal),* $(,)?)?
    }) => {
        let $ty { $($served,)* $($($refused,)*)? $($($harmless,)*)? } = $message;
        // A message without refused fields needs no place.
        let _ = &$ctx;
        $($($ctx.refuse(stringify!($refused), &$refused, $instead)?;)*)?
        $($(let _ = $harmless;)*)?
    };
}
pub(crate) use take;
