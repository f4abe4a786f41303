use super::*;

#[test]
fn cells_of_a_name_add_up_and_survive_their_handles() {
    let stats = Stats::default();
    let (a, b) = (stats.counter("cluster.x.rq"), stats.counter("cluster.x.rq"));
    a.add(2);
    b.inc();
    drop(a);
    assert_eq!(stats.value("cluster.x.rq"), Some(3));
    stats.collect();
    b.inc();
    assert_eq!(stats.value("cluster.x.rq"), Some(4));
    stats.reset_counters();
    assert_eq!(stats.value("cluster.x.rq"), Some(0));
    b.inc();
    assert_eq!(stats.value("cluster.x.rq"), Some(1));
    let g = stats.gauge("cluster.x.active");
    let h = stats.gauge("cluster.x.active");
    g.inc();
    h.dec();
    assert_eq!(stats.value("cluster.x.active"), Some(0));
    stats.counter("cluster.xy.rq");
    stats.remove_scope("cluster.x.");
    assert_eq!(stats.collect().len(), 1);
}

#[test]
fn a_rejected_name_costs_nothing_and_counts_nothing() {
    let include = vec![StringMatcher::Prefix { value: "server".into(), ignore_case: false }];
    let stats = Stats::new(StatsMatcher::Include(include), Vec::new());
    stats.counter("cluster.x.rq").inc();
    stats.counter("server.live").inc();
    stats.histogram("cluster.t", Unit::Milliseconds).record(1);
    assert_eq!(stats.collect().iter().map(|s| &*s.name).collect::<Vec<_>>(), ["server.live"]);
}

#[test]
fn a_churn_of_handles_does_not_grow_an_entry() {
    let stats = Stats::default();
    for _ in 0..1000 {
        stats.counter("a").inc();
    }
    assert!(stats.maps().counters["a"].cells.len() <= FOLD_ABOVE + 1);
    assert_eq!(stats.value("a"), Some(1000));
}

#[test]
fn figures_of_a_histogram_are_libcircllhists() {
    let stats = Stats::default();
    let h = stats.histogram("t", Unit::Milliseconds);
    h.record(5);
    let read = || match &stats.collect()[0].value {
        Value::Histogram(h) => h.cumulative.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(read().sum(), 5.049_504_950_495_049_5);
    assert_eq!(read().quantiles(&QUANTILES), Some(vec![5.05; 10]));
    h.record(155);
    h.record(u64::MAX);
    h.record(0);
    assert_eq!(read().count(), 4);
    assert_eq!(read().count_below(0.5), 1);
    assert_eq!(read().count_below(250.0), 3);
}

#[test]
fn the_interval_is_what_came_between_two_flushes() {
    let stats = Stats::default();
    let h = stats.histogram("t", Unit::Bytes);
    h.record(7);
    stats.flush();
    stats.flush();
    let Value::Histogram(v) = stats.collect()[0].value.clone() else { panic!("a histogram") };
    assert_eq!((v.interval.count(), v.cumulative.count()), (0, 1));
}
