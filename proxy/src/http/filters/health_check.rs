//! `envoy.filters.http.health_check`: answers health checks itself, or marks them so that access logs can leave them out.

use std::sync::Arc;

use super::{Ctx, Flow};
use crate::config::filter::HealthCheck as Config;
use crate::head::Head;
use crate::http::local_reply::LocalReply;
use crate::router::matching::header_matches;
use crate::stream_info::ResponseFlags;

/// The filter.
#[derive(Debug)]
pub struct HealthCheck {
    config: Arc<Config>,
}

impl HealthCheck {
    pub(super) fn new(config: &Arc<Config>) -> HealthCheck {
        HealthCheck { config: config.clone() }
    }

    pub(super) fn request_head(&self, head: &Head, ctx: &mut Ctx<'_>) -> Flow {
        if !self.config.headers.iter().all(|m| header_matches(m, head)) {
            return Flow::Continue;
        }
        ctx.info.health_check = true;
        let failed = ctx.worker.shared.health_failed.load(std::sync::atomic::Ordering::Relaxed);
        if self.config.pass_through && !failed {
            return Flow::Continue;
        }
        let mut reply = LocalReply::new(if failed { 503 } else { 200 }, "", "health_check_failed");
        if failed {
            reply = reply
                .flags(ResponseFlags::FAILED_LOCAL_HEALTH_CHECK)
                .header(crate::head::HeaderId::XEnvoyImmediateHealthCheckFail, *b"true");
        } else {
            reply.details = "health_check_ok".into();
        }
        Flow::Local(Box::new(reply))
    }
}
