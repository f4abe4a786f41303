//! `envoy.filters.http.header_mutation`: header mutations as a filter, with overrides by route.

use std::sync::Arc;

use super::{Ctx, Flow};
use crate::config::filter::FilterOverride;
use crate::config::route::HeaderMutations;
use crate::head::Head;
use crate::router::mutate;
use crate::telemetry::format::{self, FormatContext};

/// The filter.
#[derive(Debug)]
pub struct HeaderMutation {
    config: Arc<HeaderMutations>,
}

impl HeaderMutation {
    pub(super) fn new(config: &Arc<HeaderMutations>) -> HeaderMutation {
        HeaderMutation { config: config.clone() }
    }

    fn levels(&self, name: &str, ctx: &Ctx<'_>) -> [Option<Arc<HeaderMutations>>; 2] {
        let own = match ctx.override_for(name) {
            Some(FilterOverride::HeaderMutation(m)) => Some(m.clone()),
            _ => None,
        };
        [Some(self.config.clone()), own]
    }

    pub(super) fn request_head(&self, name: &str, head: &mut Head, ctx: &mut Ctx<'_>) -> Flow {
        for m in self.levels(name, ctx).into_iter().flatten() {
            mutate::remove(head, &m.request_remove);
            mutate::add(head, &m.request_add, |call, head| {
                format::write(call.format, &FormatContext::request(head, ctx.info), call.out);
            });
        }
        Flow::Continue
    }

    pub(super) fn response_head(&self, name: &str, request: &Head, head: &mut Head, ctx: &mut Ctx<'_>) {
        for m in self.levels(name, ctx).into_iter().flatten() {
            mutate::remove(head, &m.response_remove);
            mutate::add(head, &m.response_add, |call, head| {
                format::write(call.format, &FormatContext::response(request, head, ctx.info), call.out);
            });
        }
    }
}
