//! `/stats` and `/stats/prometheus`.

use std::sync::Arc;

use regex::Regex;

use super::AdminState;
use super::page::Page;
use super::query::Query;
use crate::telemetry::stats::{Buckets, Kind, Query as Selection};

pub(super) fn page(state: &Arc<AdminState>, query: &Query) -> Page {
    let selection = match select(query) {
        Ok(s) => s,
        Err(page) => return page,
    };
    state.server_stats.refresh(state);
    let stats = &state.shared.stats;
    match query.get("format") {
        None | Some("" | "text") => Page::text(stats.text_page(&selection)),
        Some("json") => Page::json_text(stats.json_page(&selection)),
        Some("prometheus") => Page::text(stats.prometheus_page(&selection, &state.tagger)),
        Some(_) => Page::error(400, "usage: /stats?format=(json|prometheus|text)\n\n"),
    }
}

pub(super) fn prometheus(state: &Arc<AdminState>, query: &Query) -> Page {
    match select(query) {
        Ok(selection) => {
            state.server_stats.refresh(state);
            Page::text(state.shared.stats.prometheus_page(&selection, &state.tagger))
        }
        Err(page) => page,
    }
}

fn select(query: &Query) -> Result<Selection, Page> {
    let filter = match query.get("filter").map(Regex::new) {
        Some(Err(_)) => return Err(Page::error(400, "Invalid re2 regex")),
        Some(Ok(regex)) => Some(regex),
        None => None,
    };
    let kind = match query.get("type") {
        None | Some("" | "All") => Kind::All,
        Some("Counters") => Kind::Counters,
        Some("Gauges") => Kind::Gauges,
        Some("Histograms") => Kind::Histograms,
        Some("TextReadouts") => Kind::TextReadouts,
        Some(_) => return Err(Page::error(400, "invalid &type= param")),
    };
    let buckets = match query.get("histogram_buckets") {
        None | Some("" | "none" | "summary") => Buckets::Summary,
        Some("cumulative") => Buckets::Cumulative,
        Some("disjoint") => Buckets::Disjoint,
        Some(_) => {
            return Err(Page::error(
                400,
                "usage: /stats?histogram_buckets=(cumulative|disjoint|summary|none)\n",
            ));
        }
    };
    Ok(Selection {
        used_only: query.has("usedonly"),
        filter,
        invert_filter: query.has("invert_filter"),
        kind,
        buckets,
        text_readouts: query.has("text_readouts"),
    })
}
