//! Stats of an HTTP connection manager: `http.<stat_prefix>.*` and `listener.<address>.http.<stat_prefix>.*`.
//! (Envoy docs: configuration/http/http_conn_man/stats.)

use crate::config::hcm::Protocol;
use crate::telemetry::stats::Stats;

crate::stats_struct! {
    /// `http.<stat_prefix>.`
    pub struct HcmStats {
        counter downstream_cx_total,
        counter downstream_cx_ssl_total,
        counter downstream_cx_http1_total,
        counter downstream_cx_http2_total,
        counter downstream_cx_upgrades_total,
        counter downstream_cx_destroy,
        counter downstream_cx_destroy_remote,
        counter downstream_cx_destroy_local,
        counter downstream_cx_destroy_active_rq,
        counter downstream_cx_destroy_remote_active_rq,
        counter downstream_cx_destroy_local_active_rq,
        counter downstream_cx_drain_close,
        counter downstream_cx_idle_timeout,
        counter downstream_cx_max_duration_reached,
        counter downstream_cx_max_requests_reached,
        counter downstream_cx_overload_disable_keepalive,
        counter downstream_cx_protocol_error,
        counter downstream_cx_delayed_close_timeout,
        counter downstream_cx_rx_bytes_total,
        counter downstream_cx_tx_bytes_total,
        counter downstream_flow_control_paused_reading_total,
        counter downstream_flow_control_resumed_reading_total,
        counter downstream_rq_total,
        counter downstream_rq_http1_total,
        counter downstream_rq_http2_total,
        counter downstream_rq_rx_reset,
        counter downstream_rq_tx_reset,
        counter downstream_rq_non_relative_path,
        counter downstream_rq_too_large,
        counter downstream_rq_completed,
        counter downstream_rq_1xx,
        counter downstream_rq_2xx,
        counter downstream_rq_3xx,
        counter downstream_rq_4xx,
        counter downstream_rq_5xx,
        counter downstream_rq_ws_on_non_ws_route,
        counter downstream_rq_idle_timeout,
        counter downstream_rq_timeout,
        counter downstream_rq_header_timeout,
        counter downstream_rq_max_duration_reached,
        counter downstream_rq_overload_close,
        counter downstream_rq_redirected_with_normalized_path,
        counter downstream_rq_rejected_via_ip_detection,
        counter downstream_rq_response_before_rq_complete,
        counter no_cluster,
        counter no_route,
        counter passthrough_internal_redirect_bad_location,
        counter rq_direct_response,
        counter rq_redirect,
        counter rq_reset_after_downstream_response_started,
        counter rq_total,
        gauge downstream_cx_active,
        gauge downstream_cx_ssl_active,
        gauge downstream_cx_http1_active,
        gauge downstream_cx_http2_active,
        gauge downstream_cx_upgrades_active,
        gauge downstream_rq_active,
        histogram(Milliseconds) downstream_cx_length_ms,
        histogram(Milliseconds) downstream_rq_time,
    }
}

crate::stats_struct! {
    /// `listener.<address>.http.<stat_prefix>.`
    pub struct ListenerHttpStats {
        counter downstream_rq_completed,
        counter downstream_rq_1xx,
        counter downstream_rq_2xx,
        counter downstream_rq_3xx,
        counter downstream_rq_4xx,
        counter downstream_rq_5xx,
    }
}

impl HcmStats {
    /// The stats of `stat_prefix`.
    pub fn of(stats: &Stats, stat_prefix: &str) -> HcmStats {
        HcmStats::new(stats, &format!("http.{stat_prefix}."))
    }

    /// A request has begun.
    pub fn request(&self, protocol: Protocol) {
        self.downstream_rq_total.inc();
        self.downstream_rq_active.inc();
        match protocol {
            Protocol::Http2 => self.downstream_rq_http2_total.inc(),
            Protocol::Http10 | Protocol::Http11 => self.downstream_rq_http1_total.inc(),
        }
    }

    /// A response with this status was sent.
    pub fn response(&self, code: u16) {
        self.downstream_rq_completed.inc();
        match code / 100 {
            1 => self.downstream_rq_1xx.inc(),
            2 => self.downstream_rq_2xx.inc(),
            3 => self.downstream_rq_3xx.inc(),
            4 => self.downstream_rq_4xx.inc(),
            5 => self.downstream_rq_5xx.inc(),
            _ => {}
        }
    }
}

impl ListenerHttpStats {
    /// A response with this status was sent.
    pub fn response(&self, code: u16) {
        self.downstream_rq_completed.inc();
        match code / 100 {
            1 => self.downstream_rq_1xx.inc(),
            2 => self.downstream_rq_2xx.inc(),
            3 => self.downstream_rq_3xx.inc(),
            4 => self.downstream_rq_4xx.inc(),
            5 => self.downstream_rq_5xx.inc(),
            _ => {}
        }
    }
}
