//! `stats_struct!`: a struct of stats under a prefix, as Envoy's `ALL_CLUSTER_STATS` and its like.

/// Declares a struct whose fields are stats, and `new(stats, prefix)` which creates them under `prefix` + name.
///
/// ```
/// outrigger::stats_struct! {
///     /// Stats of a tcp_proxy.
///     pub struct TcpStats {
///         counter downstream_cx_total,
///         gauge downstream_cx_active,
///         histogram(Milliseconds) cx_length = "downstream_cx_length_ms",
///         shared_gauge idle,
///     }
/// }
/// let stats = outrigger::telemetry::stats::Stats::default();
/// let tcp = TcpStats::new(&stats, "tcp.inbound.");
/// tcp.downstream_cx_total.inc();
/// assert_eq!(stats.value("tcp.inbound.downstream_cx_total"), Some(1));
/// ```
#[macro_export]
macro_rules! stats_struct {
    ($(#[$meta:meta])* $vis:vis struct $name:ident {
        $($kind:ident $(($unit:ident))? $field:ident $(= $text:literal)?),+ $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        $vis struct $name {
            $(#[allow(missing_docs)] pub $field: $crate::stats_struct!(@type $kind),)+
        }

        impl $name {
            /// Creates the stats under `prefix`, which ends in a dot.
            pub fn new(stats: &$crate::telemetry::stats::Stats, prefix: &str) -> Self {
                let mut name = String::with_capacity(prefix.len() + 48);
                Self {
                    $($field: {
                        name.clear();
                        name.push_str(prefix);
                        name.push_str($crate::stats_struct!(@name $field $(= $text)?));
                        $crate::stats_struct!(@new stats, $kind $(($unit))?, &name)
                    },)+
                }
            }
        }
    };
    (@type counter) => { $crate::telemetry::stats::Counter };
    (@type gauge) => { $crate::telemetry::stats::Gauge };
    (@type histogram) => { $crate::telemetry::stats::Histogram };
    (@type shared_counter) => { $crate::telemetry::stats::SharedCounter };
    (@type shared_gauge) => { $crate::telemetry::stats::SharedGauge };
    (@name $field:ident = $text:literal) => { $text };
    (@name $field:ident) => { stringify!($field) };
    (@new $stats:ident, histogram($unit:ident), $n:expr) => {
        $stats.histogram($n, $crate::telemetry::stats::Unit::$unit)
    };
    (@new $stats:ident, $kind:ident, $n:expr) => { $stats.$kind($n) };
}
