//! What is kept of each resource besides its internal representation: the bytes, the version, and the error state that
//! `config_dump` shows (`envoy.admin.v3.UpdateFailureState`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use outrigger_xds::type_url;

use crate::config::proto::Need;

/// The kinds of resources that are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Cluster,
    Endpoints,
    Listener,
    Routes,
    Secret,
}

impl Kind {
    pub const ALL: [Kind; 5] = [Kind::Cluster, Kind::Endpoints, Kind::Listener, Kind::Routes, Kind::Secret];

    /// The kind of a type URL; `None` for types that this module does not apply.
    pub fn of(url: &str) -> Option<Kind> {
        Self::ALL.into_iter().find(|k| k.type_url() == url)
    }

    pub fn type_url(self) -> &'static str {
        match self {
            Kind::Cluster => type_url::CLUSTER,
            Kind::Endpoints => type_url::ENDPOINT,
            Kind::Listener => type_url::LISTENER,
            Kind::Routes => type_url::ROUTE,
            Kind::Secret => type_url::SECRET,
        }
    }
}

/// A version of a resource that was taken.
#[derive(Clone, Debug)]
pub struct Applied {
    pub version: Arc<str>,
    /// The encoded message, exactly as it came.
    pub body: Arc<[u8]>,
    pub at: SystemTime,
    pub(super) needs: Box<[Need]>,
}

/// A version that was not taken.
#[derive(Clone, Debug)]
pub struct ErrorState {
    pub version: Arc<str>,
    pub body: Arc<[u8]>,
    pub at: SystemTime,
    /// As in the NACK.
    pub details: String,
}

/// One resource.
#[derive(Clone, Debug, Default)]
pub struct Record {
    pub active: Option<Applied>,
    /// Waits for what it needs.
    pub warming: Option<Applied>,
    /// The last version was refused; gone with the next good one.
    pub error: Option<ErrorState>,
    /// From the bootstrap.
    pub is_static: bool,
}

impl Record {
    pub(super) fn latest(&self) -> Option<&Applied> {
        self.warming.as_ref().or(self.active.as_ref())
    }
}

/// The records of one kind, by name.
#[derive(Clone, Debug, Default)]
pub struct Records {
    pub by_name: BTreeMap<Arc<str>, Record>,
    /// The version of the last response.
    pub version: Arc<str>,
}
