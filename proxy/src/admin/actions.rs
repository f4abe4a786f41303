//! What changes state: draining, health, levels, logs, counters, the end.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::AdminState;
use super::page::Page;
use super::query::Query;
use crate::listener::Draining;

pub(super) fn drain_listeners(state: &Arc<AdminState>, query: &Query) -> Page {
    let inbound_only = query.has("inboundonly");
    let (graceful, stay) = (query.has("graceful"), query.has("skip_exit"));
    if stay {
        state.shared.listeners.drain(Draining::Graceful { inbound_only });
    } else if graceful {
        state.shared.listeners.drain(Draining::Graceful { inbound_only });
        let state = state.clone();
        tokio::spawn(async move {
            tokio::time::sleep(state.drain_time).await;
            state.shared.listeners.drain(Draining::Stopped { inbound_only });
        });
    } else {
        state.shared.listeners.drain(Draining::Stopped { inbound_only });
    }
    Page::ok()
}

pub(super) fn health(state: &AdminState, failed: bool) -> Page {
    state.shared.health_failed.store(failed, Relaxed);
    Page::ok()
}

pub(super) fn quit(state: &AdminState) -> Page {
    state.quit.send_replace(true);
    Page::ok()
}

pub(super) fn reopen_logs(state: &AdminState) -> Page {
    state.shared.logs.reopen();
    Page::ok()
}

pub(super) fn reset_counters(state: &AdminState) -> Page {
    state.shared.stats.reset_counters();
    Page::ok()
}

/// `level=`, `paths=a:debug,b:info`, or `a=debug` alone; answers with all levels.
pub(super) fn logging(state: &Arc<AdminState>, query: &Query) -> Page {
    let all: Vec<(&str, &str)> = query.iter().collect();
    let invalid = || Page::error(400, "error: invalid logger name or level\n");
    match all.as_slice() {
        [] => {}
        [("level", level)] => {
            if !state.levels.set_all(level) {
                return Page::error(400, "error: unknown logger level\n");
            }
        }
        [("paths", paths)] => {
            for pair in paths.split(',').filter(|p| !p.is_empty()) {
                let Some((name, level)) = pair.split_once(':') else {
                    return Page::error(400, "error: empty logger name or empty logger level\n");
                };
                if !state.levels.set(name, level) {
                    return invalid();
                }
            }
        }
        [(name, level)] => {
            if !state.levels.set(name, level) {
                return invalid();
            }
        }
        _ => return Page::error(400, "error: invalid parameters, only one query parameter is allowed\n"),
    }
    let mut out = String::from("active loggers:\n");
    for (name, level) in state.levels.levels() {
        out.push_str(&format!("  {name}: {level}\n"));
    }
    out.push('\n');
    Page::text(out)
}
