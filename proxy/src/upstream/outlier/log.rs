//! The outlier event log: a JSON line for each `envoy.data.cluster.v3.OutlierDetectionEvent` (Envoy docs: "Ejection event
//! logging"), fields in the message's order with primitives always printed.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Decision, EjectionKind};

/// An open event log.
#[derive(Debug)]
pub struct EventLog(Mutex<File>);

impl EventLog {
    /// Opens `path` to append.
    ///
    /// # Errors
    /// What the system says of opening it.
    pub fn open(path: &Path) -> std::io::Result<EventLog> {
        Ok(EventLog(Mutex::new(File::options().create(true).append(true).open(path)?)))
    }

    /// Writes one event. Ejections are rare; the write is not worth a thread.
    pub fn write(&self, now: SystemTime, cluster: &str, upstream: &str, decision: &Decision) {
        let line = event(now, cluster, upstream, decision).to_string() + "\n";
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(e) = file.write_all(line.as_bytes()) {
            tracing::warn!("outlier event log: {e}");
        }
    }
}

/// The event as JSON.
pub(super) fn event(now: SystemTime, cluster: &str, upstream: &str, decision: &Decision) -> Value {
    let mut m = Map::new();
    let (kind, action, ejections, enforced, since) = match decision {
        Decision::Ejected { kind, enforced, ejections, since_last, .. } => {
            (*kind, "EJECT", *ejections, *enforced, since_last)
        }
        // The type is not set on this action: the enum's zero value prints.
        Decision::Unejected { ejections, since_last } => {
            (EjectionKind::Consecutive5xx, "UNEJECT", *ejections, false, since_last)
        }
    };
    m.insert("type".into(), kind.as_str().into());
    let millis = OffsetDateTime::from(now);
    let millis = millis.replace_millisecond(millis.millisecond()).unwrap_or(millis);
    m.insert("timestamp".into(), millis.format(&Rfc3339).unwrap_or_default().into());
    if let Some(since) = since {
        m.insert("secs_since_last_action".into(), since.as_secs().to_string().into());
    }
    m.insert("cluster_name".into(), cluster.into());
    m.insert("upstream_url".into(), upstream.into());
    m.insert("action".into(), action.into());
    m.insert("num_ejections".into(), ejections.into());
    m.insert("enforced".into(), enforced.into());
    if let Decision::Ejected { kind, rates, .. } = decision {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // percentages
        let percent = |v: f64| v.max(0.0) as u32;
        match (kind, rates) {
            (EjectionKind::SuccessRate | EjectionKind::SuccessRateLocalOrigin, Some(r)) => {
                m.insert(
                    "eject_success_rate_event".into(),
                    json!({
                        "host_success_rate": percent(r.host),
                        "cluster_average_success_rate": percent(r.average),
                        "cluster_success_rate_ejection_threshold": percent(r.threshold),
                    }),
                );
            }
            (EjectionKind::FailurePercentage | EjectionKind::FailurePercentageLocalOrigin, Some(r)) => {
                m.insert(
                    "eject_failure_percentage_event".into(),
                    json!({ "host_success_rate": percent(r.host) }),
                );
            }
            _ => {
                m.insert("eject_consecutive_event".into(), json!({}));
            }
        }
    }
    Value::Object(m)
}
