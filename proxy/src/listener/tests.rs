//! Listeners over real sockets: which chain serves, what an update does to those who are connected, limits and timeouts.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::inspect::tls::tests::client_hello;
use super::*;
use crate::config::address::Address;
use crate::config::filter::NetworkFilter;
use crate::config::listener::*;
use crate::config::snapshot::Store;
use crate::config::tls::TransportSocket;
use crate::telemetry::stats::Stats;

/// Logs what it is asked; every chain of these tests ends in a filter that the listener serves itself.
#[derive(Default)]
struct Recorder {
    logged: RefCell<Vec<(ResponseFlagsText, String)>>,
}

type ResponseFlagsText = u64;

impl Handler for Recorder {
    fn http(&self, _: Connection, _: Arc<Hcm>) -> Serving {
        Box::pin(async {})
    }
    fn tcp_proxy(&self, _: Connection, _: Arc<TcpProxy>, _: StreamInfo) -> Serving {
        Box::pin(async {})
    }
    fn rbac(&self, _: &Arc<Rbac>, _: &mut StreamInfo) -> bool {
        true
    }
    fn log(&self, _: &[AccessLog], info: &StreamInfo) {
        self.logged.borrow_mut().push((info.flags.0, info.conn.filter_chain_name.to_string()));
    }
}

fn chain(name: &str, answer: &str, matcher: ChainMatch) -> Arc<FilterChain> {
    let filter = match answer {
        "echo" => NetworkFilter::Echo,
        text => NetworkFilter::DirectResponse(text.as_bytes().into()),
    };
    Arc::new(FilterChain {
        name: name.into(),
        matcher,
        transport: TransportSocket::RawBuffer,
        transport_connect_timeout: None,
        filters: vec![filter],
        metadata: None,
    })
}

fn listener(name: &str, filters: Vec<ListenerFilterKind>, chains: Vec<Arc<FilterChain>>) -> Listener {
    Listener {
        name: name.into(),
        addresses: vec![Address::Socket("127.0.0.1:0".parse().unwrap())],
        stat_prefix: Some(name.into()),
        bind_to_port: true,
        use_original_dst: false,
        transparent: false,
        freebind: false,
        reuse_port: true,
        ipv4_compat: false,
        backlog: 128,
        direction: Direction::Inbound,
        listener_filters: filters.into_iter().map(|kind| ListenerFilter { kind, disabled: None }).collect(),
        listener_filters_timeout: Some(Duration::from_secs(15)),
        continue_on_timeout: false,
        filter_chains: chains,
        default_chain: None,
        access_log: vec![],
        per_connection_buffer_limit: 1 << 20,
        max_connections: None,
        ignore_global_conn_limit: false,
        metadata: None,
        socket_options: vec![],
        is_static: true,
    }
}

struct Bench {
    store: Arc<Store>,
    stats: Stats,
    shared: Arc<Shared>,
    manager: Rc<Manager>,
    recorder: Rc<Recorder>,
}

impl Bench {
    fn new(listeners: Vec<Listener>, max: Option<u64>) -> Bench {
        let (store, stats) = (Arc::new(Store::default()), Stats::default());
        let shared = Shared::new(store.clone(), stats.clone(), Duration::from_millis(300), max);
        let recorder = Rc::new(Recorder::default());
        let manager = Manager::new(0, shared.clone(), recorder.clone());
        let bench = Bench { store, stats, shared, manager, recorder };
        bench.set(listeners);
        bench.manager.start().unwrap();
        tokio::task::spawn_local(bench.manager.clone().run());
        bench
    }

    fn set(&self, listeners: Vec<Listener>) {
        let map: HashMap<_, _> = listeners.into_iter().map(|l| (l.name.clone(), Arc::new(l))).collect();
        self.store.update(|s| s.listeners = Arc::new(map));
    }

    fn address(&self, name: &str) -> SocketAddr {
        let view = self.shared.view();
        view.iter().find(|l| &*l.name == name).unwrap().addresses[0].socket().unwrap()
    }

    async fn connect(&self, name: &str) -> TcpStream {
        TcpStream::connect(self.address(name)).await.unwrap()
    }

    /// Sends and reads to the end; an error (a reset) counts as nothing read.
    async fn ask(&self, name: &str, bytes: &[u8]) -> String {
        let mut c = self.connect(name).await;
        c.write_all(bytes).await.unwrap();
        let mut got = Vec::new();
        let _ = c.read_to_end(&mut got).await;
        String::from_utf8(got).unwrap()
    }

    fn count(&self, name: &str) -> u64 {
        self.stats.value(name).unwrap_or_else(|| panic!("no stat {name}"))
    }

    async fn until(&self, name: &str, value: u64) {
        for _ in 0..400 {
            if self.stats.value(name) == Some(value) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{name} is {:?}, not {value}", self.stats.value(name));
    }
}

fn local<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

fn sni(name: &str) -> ChainMatch {
    ChainMatch { server_names: vec![ServerName::Exact(name.into())], ..ChainMatch::default() }
}

const TLS: ListenerFilterKind =
    ListenerFilterKind::TlsInspector { initial_read: 0, max_read: 16_384, ja3: false };

#[test]
fn the_inspected_name_and_protocol_choose_the_chain() {
    local(async {
        let plain = ChainMatch { application_protocols: vec!["http/1.1".into()], ..ChainMatch::default() };
        let chains = vec![
            chain("a", "for a", sni("a.test")),
            chain("b", "for b", sni("b.test")),
            chain("h", "http", plain),
        ];
        let bench =
            Bench::new(vec![listener("l", vec![TLS, ListenerFilterKind::HttpInspector], chains)], None);
        assert_eq!(bench.ask("l", &client_hello(Some("b.test"), &[], 0, 30)).await, "for b");
        assert_eq!(bench.ask("l", &client_hello(Some("a.test"), &["h2"], 0, 16_000)).await, "for a");
        assert_eq!(bench.ask("l", b"GET / HTTP/1.1\r\n").await, "http");
        assert_eq!(bench.ask("l", &client_hello(Some("c.test"), &[], 0, 16_000)).await, "");
        assert_eq!(bench.count("listener.l.no_filter_chain_match"), 1);
        assert_eq!(bench.count("tls_inspector.sni_found"), 3);
        assert_eq!(bench.count("http_inspector.http11_found"), 1);
        bench.until("listener.l.downstream_cx_destroy", 3).await;
        assert_eq!(bench.count("listener.l.downstream_cx_total"), 3);
        assert_eq!(bench.count("listener.l.worker_0.downstream_cx_active"), 0);
        let no_route = crate::stream_info::ResponseFlags::NO_ROUTE_FOUND.0;
        assert!(bench.recorder.logged.borrow().contains(&(no_route, String::new())));
    });
}

#[test]
fn bytes_that_were_inspected_reach_the_chain() {
    local(async {
        let bench =
            Bench::new(vec![listener("l", vec![TLS], vec![chain("e", "echo", ChainMatch::default())])], None);
        let mut c = bench.connect("l").await;
        let mut got = [0; 10];
        c.write_all(b"hello").await.unwrap();
        c.read_exact(&mut got[..5]).await.unwrap();
        c.write_all(b"again").await.unwrap();
        c.read_exact(&mut got[5..]).await.unwrap();
        assert_eq!(&got, b"helloagain");
    });
}

#[test]
fn a_silent_client_meets_the_filters_timeout() {
    local(async {
        let timed = |name: &str, go_on| Listener {
            listener_filters_timeout: Some(Duration::from_millis(50)),
            continue_on_timeout: go_on,
            ..listener(name, vec![TLS], vec![chain("c", "server first", ChainMatch::default())])
        };
        let bench = Bench::new(vec![timed("strict", false), timed("lenient", true)], None);
        assert_eq!(bench.ask("lenient", b"").await, "server first");
        assert_eq!(bench.ask("strict", b"").await, "");
        assert_eq!(bench.count("listener.strict.downstream_pre_cx_timeout"), 1);
        assert_eq!(bench.count("listener.strict.downstream_pre_cx_active"), 0);
    });
}

#[test]
fn an_update_keeps_socket_and_connections() {
    local(async {
        let first = || chain("keep", "echo", ChainMatch::default());
        let bench = Bench::new(vec![listener("l", vec![], vec![first()])], None);
        let address = bench.address("l");
        let mut c = bench.connect("l").await;
        c.write_all(b"1").await.unwrap();
        assert_eq!(c.read_u8().await.unwrap(), b'1');

        // The same chain with another end: new connections see it, the old one lives on.
        bench.set(vec![listener("l", vec![], vec![chain("keep", "new", ChainMatch::default())])]);
        bench.until("listener_manager.listener_in_place_updated", 1).await;
        assert_eq!(bench.address("l"), address);
        assert_eq!(bench.ask("l", b"").await, "new");
        c.write_all(b"2").await.unwrap();
        assert_eq!(c.read_u8().await.unwrap(), b'2');

        // The chain is gone: closed after the drain time, not before.
        bench.set(vec![listener("l", vec![], vec![chain("other", "other", ChainMatch::default())])]);
        bench.until("listener_manager.listener_in_place_updated", 2).await;
        assert_eq!(bench.count("listener_manager.total_filter_chains_draining"), 1);
        c.write_all(b"3").await.unwrap();
        assert_eq!(c.read_u8().await.unwrap(), b'3');
        assert_eq!(c.read(&mut [0]).await.unwrap_or(0), 0);

        bench.set(vec![]);
        bench.until("listener_manager.total_listeners_draining", 1).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(TcpStream::connect(address).await.is_err());
    });
}

#[test]
fn a_listener_waits_for_the_secrets_it_names() {
    local(async {
        let tls = crate::config::tls::DownstreamTls {
            common: crate::config::tls::CommonTls {
                min_version: crate::config::tls::TlsVersion::V1_2,
                max_version: crate::config::tls::TlsVersion::V1_3,
                ciphers: vec![],
                curves: vec![],
                alpn: vec![],
                certificates: vec![crate::config::tls::CertificateSource::Sds("default".into())],
                validation: None,
            },
            require_client_certificate: false,
            session_tickets: true,
            session_resumption: true,
            full_scan_certs_on_sni_mismatch: false,
        };
        let secured = FilterChain {
            transport: TransportSocket::Tls(Arc::new(tls)),
            ..Arc::into_inner(chain("c", "hi", ChainMatch::default())).unwrap()
        };
        let bench = Bench::new(vec![listener("l", vec![], vec![Arc::new(secured)])], None);
        assert_eq!(bench.address("l").port(), 0, "not bound yet");
        let secret = crate::config::tls::Secret::Generic(b"x"[..].into());
        bench.store.update(|s| s.secrets = Arc::new([("default".into(), secret)].into_iter().collect()));
        bench.until("listener_manager.listener_create_success", 1).await;
        assert_ne!(bench.address("l").port(), 0);
    });
}

#[test]
fn a_restored_destination_hands_the_connection_on_once() {
    local(async {
        let proxy = ListenerFilterKind::ProxyProtocol { allow_without: true };
        let capture = Listener {
            use_original_dst: true,
            ..listener("capture", vec![proxy], vec![chain("pass", "passthrough", ChainMatch::default())])
        };
        let bound_to = |name: &str, address: &str| Listener {
            addresses: vec![Address::Socket(address.parse().unwrap())],
            bind_to_port: false,
            ..listener(name, vec![], vec![chain(name, name, ChainMatch::default())])
        };
        let bench =
            Bench::new(vec![capture, bound_to("exact", "10.1.1.1:80"), bound_to("any", "0.0.0.0:81")], None);
        for (destination, expected) in
            [("10.1.1.1 9 80", "exact"), ("10.1.1.2 9 81", "any"), ("10.1.1.2 9 80", "passthrough")]
        {
            let header = format!("PROXY TCP4 1.2.3.4 {destination}\r\n");
            assert_eq!(bench.ask("capture", header.as_bytes()).await, expected, "{destination}");
        }
        assert_eq!(bench.ask("capture", b"none").await, "passthrough");
        assert_eq!(bench.ask("capture", b"PROXY nonsense\r\n").await, "");
        bench.until("listener.exact.downstream_cx_total", 1).await;
    });
}

#[test]
fn limits_refuse_what_is_too_much() {
    local(async {
        let of = |name: &str, max| Listener {
            max_connections: max,
            ..listener(name, vec![], vec![chain("e", "echo", ChainMatch::default())])
        };
        let bench = Bench::new(vec![of("small", Some(1)), of("large", None)], Some(2));
        let mut kept = Vec::new();
        for name in ["small", "large"] {
            let mut c = bench.connect(name).await;
            c.write_all(b"x").await.unwrap();
            c.read_u8().await.unwrap();
            kept.push(c);
        }
        assert_eq!(bench.ask("small", b"").await, "");
        assert_eq!(bench.count("listener.small.downstream_cx_overflow"), 1);
        assert_eq!(bench.ask("large", b"").await, "");
        assert_eq!(bench.count("listener.large.downstream_global_cx_overflow"), 1);
        drop(kept);
        bench.until("listener.large.downstream_cx_active", 0).await;
        assert_eq!(bench.shared.connections(), 0);
    });
}

#[test]
fn workers_share_a_port_that_was_left_open() {
    local(async {
        let bench =
            Bench::new(vec![listener("l", vec![], vec![chain("c", "x", ChainMatch::default())])], None);
        let second = Manager::new(1, bench.shared.clone(), Rc::new(Recorder::default()));
        let port = bench.address("l");
        second.start().unwrap();
        assert_eq!(bench.address("l"), port);
        for _ in 0..40 {
            assert_eq!(bench.ask("l", b"").await, "x");
        }
        let by = |w: usize| bench.count(&format!("listener.l.worker_{w}.downstream_cx_total"));
        assert_eq!(by(0) + by(1), 40);
        assert!(by(0) > 0 && by(1) > 0, "{} {}", by(0), by(1));
    });
}

#[test]
fn an_address_in_use_is_named() {
    local(async {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut l = listener("busy", vec![], vec![chain("c", "x", ChainMatch::default())]);
        l.addresses = vec![Address::Socket(taken.local_addr().unwrap())];
        let text = check_bind(&l).unwrap_err().to_string();
        assert_eq!(
            text,
            format!(
                "error adding listener 'busy': cannot bind '{}': Address already in use",
                taken.local_addr().unwrap()
            )
        );
    });
}

#[test]
fn what_conversion_cannot_see_is_checked() {
    let twice = vec![chain("one", "x", sni("a")), chain("two", "x", sni("a"))];
    let text = check(&listener("l", vec![], twice)).unwrap_err().to_string();
    assert_eq!(
        text,
        "error adding listener 'l': filter chain 'two' has the same matching rules defined as 'one'"
    );
    assert!(check(&listener("l", vec![], vec![chain("one", "x", sni("a"))])).is_ok());
}

#[test]
fn draining_is_told_and_stopping_closes_the_door() {
    local(async {
        let bench =
            Bench::new(vec![listener("l", vec![], vec![chain("e", "echo", ChainMatch::default())])], None);
        let address = bench.address("l");
        let mut c = bench.connect("l").await;
        c.write_all(b"1").await.unwrap();
        c.read_u8().await.unwrap();
        let active = bench.manager.at(address).is_none();
        assert!(active, "port 0 is not a destination");
        bench.shared.drain(Draining::Graceful { inbound_only: true });
        assert!(!bench.shared.draining().borrow().covers(Direction::Outbound));
        assert!(TcpStream::connect(address).await.is_ok());
        bench.shared.drain(Draining::Stopped { inbound_only: true });
        bench.until("listener_manager.listener_stopped", 1).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(TcpStream::connect(address).await.is_err());
        c.write_all(b"2").await.unwrap();
        assert_eq!(c.read_u8().await.unwrap(), b'2');
    });
}
