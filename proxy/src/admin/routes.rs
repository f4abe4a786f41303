//! The table of admin endpoints, their help, and the way from a request to a page.

use std::sync::Arc;

use super::page::Page;
use super::query::Query;
use super::{AdminState, actions, certs, clusters, info, listeners, stats};

/// A page's maker.
type Handler = fn(&Arc<AdminState>, &Query) -> Page;

/// One endpoint.
pub(super) struct Route {
    pub(super) path: &'static str,
    /// Changes state: POST only.
    pub(super) changes: bool,
    pub(super) help: &'static str,
    pub(super) parameters: &'static [(&'static str, &'static str)],
    handler: Handler,
}

const fn get(path: &'static str, help: &'static str, handler: Handler) -> Route {
    Route { path, changes: false, help, parameters: &[], handler }
}

const fn post(path: &'static str, help: &'static str, handler: Handler) -> Route {
    Route { path, changes: true, help, parameters: &[], handler }
}

impl Route {
    const fn with(self, parameters: &'static [(&'static str, &'static str)]) -> Route {
        Route { parameters, ..self }
    }
}

/// All endpoints by path.
pub(super) static ROUTES: &[Route] = &[
    get("/", "Admin home page", |_, _| home()),
    get("/certs", "print certs on machine", |s, _| certs::page(s)),
    get("/clusters", "upstream cluster status", clusters::page)
        .with(&[("filter", "Regular expression (Google re2) for filtering clusters by name"), FORMAT]),
    get("/config_dump", "dump current Envoy configs", info::config_dump).with(&[
        ("resource", "The resource to dump"),
        ("mask", "The mask to apply to the resources, or to the whole dump; parsed as a field mask"),
        ("name_regex", "Dump only the configurations whose names match the regular expression"),
        ("include_eds", "Dump endpoint configuration as well"),
    ]),
    get("/contention", "dump current Envoy mutex contention stats (if enabled)", |_, _| info::contention()),
    post("/drain_listeners", "drain listeners", actions::drain_listeners).with(&[
        ("graceful", "Ask connections to end, and stop listening only when the drain time is over"),
        ("skip_exit", "Drain the connections but never stop the listeners"),
        ("inboundonly", "Drain only inbound listeners"),
    ]),
    post("/healthcheck/fail", "cause the server to fail health checks", |s, _| actions::health(s, true)),
    post("/healthcheck/ok", "cause the server to pass health checks", |s, _| actions::health(s, false)),
    get("/help", "print out list of admin commands", |_, _| Page::text(help("admin commands are:"))),
    get("/hot_restart_version", "print the hot restart compatibility version", |_, _| {
        info::hot_restart_version()
    }),
    get("/init_dump", "dump current Envoy init manager information (experimental)", |_, _| info::init_dump()),
    get("/listeners", "print listener info", listeners::page).with(&[FORMAT]),
    post("/logging", "query/change logging levels", actions::logging).with(&[
        ("paths", "Change levels as <logger1>:<level1>,<logger2>:<level2>"),
        ("level", "The level of all loggers; One of (trace, debug, info, warning, error, critical, off)"),
    ]),
    get("/memory", "print current allocation/heap usage", |_, _| info::memory()),
    post("/quitquitquit", "exit the server", |s, _| actions::quit(s)),
    get("/ready", "print server state, return 200 if LIVE, otherwise return 503", |s, _| info::ready(s)),
    post("/reopen_logs", "reopen access logs", |s, _| actions::reopen_logs(s)),
    post("/reset_counters", "reset all counters to zero", |s, _| actions::reset_counters(s)),
    get("/runtime", "print runtime values", |s, _| info::runtime(s)),
    get("/server_info", "print server version/status information", |s, _| info::server_info(s)),
    get("/stats", "print server stats", stats::page).with(&[
        ("usedonly", "Only include stats that have been written by system since restart"),
        FILTER,
        INVERT,
        ("format", "Format to use; One of (text, json, prometheus)"),
        ("type", "Stat types to include.; One of (All, Counters, Histograms, Gauges, TextReadouts)"),
        ("histogram_buckets", "Histogram bucket display mode; One of (cumulative, disjoint, summary)"),
    ]),
    get("/stats/prometheus", "print server stats in prometheus format", stats::prometheus).with(&[
        ("usedonly", "Only include stats that have been written by system since restart"),
        ("text_readouts", "Render text_readouts as gauges of value 0"),
        FILTER,
        INVERT,
    ]),
];

const FORMAT: (&str, &str) = ("format", "File format to use; One of (text, json)");
const FILTER: (&str, &str) = ("filter", "Regular expression (Google re2) for filtering stats");
const INVERT: (&str, &str) = ("invert_filter", "Invert the filter regex");

/// The page for a request's method and target.
pub(super) fn dispatch(state: &Arc<AdminState>, method: &str, target: &str) -> Page {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let Some(route) = ROUTES.iter().find(|r| r.path == path) else {
        return Page::error(404, help("invalid path. admin commands are:"));
    };
    if route.changes && method != "POST" {
        tracing::error!(path, method, "admin path mutates state: POST required");
        return Page::error(405, format!("Method {method} not allowed, POST required."));
    }
    (route.handler)(state, &Query::parse(query))
}

fn help(title: &str) -> String {
    let mut out = format!("{title}\n");
    for r in ROUTES {
        out.push_str(&format!("  {}{}: {}\n", r.path, if r.changes { " (POST)" } else { "" }, r.help));
        for (name, text) in r.parameters {
            out.push_str(&format!("      {name}: {text}\n"));
        }
    }
    out
}

fn home() -> Page {
    let mut out = String::from(
        "<!DOCTYPE html>\n<html lang='en'>\n<head><title>Envoy Admin</title></head>\n<body>\n<table>\n",
    );
    for r in ROUTES {
        let path = r.path.trim_start_matches('/');
        let command = if r.changes {
            format!("<form action='{path}' method='post'><button>{path}</button></form>")
        } else {
            format!("<a href='{path}'>{}</a>", if path.is_empty() { "/" } else { path })
        };
        out.push_str(&format!("<tr><td>{command}</td><td>{}</td></tr>\n", r.help));
    }
    out.push_str("</table>\n</body>\n</html>\n");
    Page::html(out)
}
