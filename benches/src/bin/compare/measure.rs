//! A proxy under load: pinned, warmed, measured round by round.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Row;
use crate::configs::{self, Proxy, Scenario};

/// Connections that the load keeps open.
const CONNECTIONS: &str = "64";

/// A proxy that runs.
pub(crate) struct Running {
    name: &'static str,
    child: Child,
    listen: SocketAddr,
    cpu: Vec<f64>,
    rate: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    rss: f64,
    failed: u64,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    /// Starts it and waits until it accepts; `None`: the scenario is not for it.
    pub(crate) fn start(
        p: &Proxy,
        s: &Scenario,
        backend: SocketAddr,
        dir: &Path,
    ) -> Result<Option<Running>, String> {
        let free =
            TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).map_err(|e| e.to_string())?;
        let Some(text) = configs::config(p.name, s, free, backend, dir) else { return Ok(None) };
        if s.tls {
            certificate(dir)?;
        }
        let path = dir.join(format!("{}-{}.yaml", p.name, s.name));
        std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
        let words: Vec<String> =
            p.command.iter().map(|w| w.replace("{config}", &path.display().to_string())).collect();
        let child = Command::new("taskset")
            .args(["-c", "0"])
            .args(&words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|e| format!("taskset: {e}"))?;
        let mut running = Running {
            name: p.name,
            child,
            listen: free,
            cpu: vec![],
            rate: vec![],
            p50: vec![],
            p99: vec![],
            rss: 0.0,
            failed: 0,
        };
        let begin = Instant::now();
        while TcpStream::connect(free).is_err() {
            if let Ok(Some(status)) = running.child.try_wait() {
                return Err(format!("it ended with {status}"));
            }
            if begin.elapsed() > Duration::from_secs(20) {
                return Err("it does not accept connections".into());
            }
            pause(Duration::from_millis(20));
        }
        Ok(Some(running))
    }

    /// One round; `counted` false warms up.
    pub(crate) fn round(&mut self, s: &Scenario, seconds: u64, counted: bool) -> Result<(), String> {
        let before = cpu_ns(self.child.id());
        let load = if s.http2 { h2load(self.listen, s, seconds)? } else { wrk(self.listen, s, seconds)? };
        let used = cpu_ns(self.child.id()).saturating_sub(before);
        self.failed += load.failed;
        if counted && load.requests > 0 {
            self.cpu.push(used as f64 / 1000.0 / load.requests as f64);
            self.rate.push(load.requests as f64 / load.seconds);
            self.p50.push(load.p50_ms);
            self.p99.push(load.p99_ms);
            self.rss = rss_mb(self.child.id());
        }
        Ok(())
    }

    /// The figures.
    pub(crate) fn row(self, scenario: &str) -> Row {
        Row {
            scenario: scenario.to_owned(),
            proxy: self.name.to_owned(),
            cpu_us_per_request: median(&self.cpu),
            requests_per_second: median(&self.rate),
            p50_ms: median(&self.p50),
            p99_ms: median(&self.p99),
            rss_mb: self.rss,
            syscalls_per_request: None,
            failed: self.failed,
            rounds: self.cpu.clone(),
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "a harness without a runtime waits for a process")]
fn pause(d: Duration) {
    std::thread::sleep(d);
}

/// The median; NaN of nothing.
pub(crate) fn median(all: &[f64]) -> f64 {
    let mut all = all.to_vec();
    all.sort_by(f64::total_cmp);
    match all.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => all[n / 2],
        n => f64::midpoint(all[n / 2 - 1], all[n / 2]),
    }
}

struct Load {
    requests: u64,
    seconds: f64,
    p50_ms: f64,
    p99_ms: f64,
    failed: u64,
}

fn wrk(to: SocketAddr, s: &Scenario, seconds: u64) -> Result<Load, String> {
    let scheme = if s.tls { "https" } else { "http" };
    let out = Command::new("taskset")
        .args(["-c", "1", "wrk", "-t", "1", "-c", CONNECTIONS, "-d", &format!("{seconds}s"), "--latency"])
        .arg(format!("{scheme}://{to}{}", s.path))
        .output()
        .map_err(|e| format!("wrk: {e}"))?;
    let text = String::from_utf8_lossy(&out.stdout);
    let word = |line: &str, n: usize| line.split_whitespace().nth(n).unwrap_or_default().to_owned();
    let find = |start: &str| text.lines().map(str::trim).find(|l| l.starts_with(start)).unwrap_or_default();
    let total = text.lines().find(|l| l.contains("requests in")).unwrap_or_default();
    let bad =
        text.lines().find(|l| l.contains("Non-2xx")).map(|l| word(l, 4).parse().unwrap_or(1)).unwrap_or(0);
    let sockets: u64 = text
        .lines()
        .find(|l| l.contains("Socket errors"))
        .map(|l| l.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u64>().ok()).sum())
        .unwrap_or(0);
    Ok(Load {
        requests: word(total, 0).parse().unwrap_or(0),
        seconds: millis(&word(total, 3).replace(',', "")) / 1000.0,
        p50_ms: millis(&word(find("50%"), 1)),
        p99_ms: millis(&word(find("99%"), 1)),
        failed: bad + sockets,
    })
}

fn h2load(to: SocketAddr, s: &Scenario, seconds: u64) -> Result<Load, String> {
    let out = Command::new("taskset")
        .args(["-c", "1", "h2load", "-t", "1", "-c", "8", "-m", "8", "-D", &seconds.to_string()])
        .arg(format!("http://{to}{}", s.path))
        .output()
        .map_err(|e| format!("h2load: {e}"))?;
    let text = String::from_utf8_lossy(&out.stdout);
    let line = text.lines().find(|l| l.starts_with("requests:")).unwrap_or_default();
    let number = |before: &str| {
        let at = line.find(before).unwrap_or(0);
        line[..at].rsplit(|c: char| !c.is_ascii_digit()).find(|n| !n.is_empty()).and_then(|n| n.parse().ok())
    };
    let times = text.lines().find(|l| l.starts_with("time for request:")).unwrap_or_default();
    Ok(Load {
        requests: number(" succeeded").unwrap_or(0),
        seconds: seconds as f64,
        p50_ms: millis(times.split_whitespace().nth(5).unwrap_or_default()),
        p99_ms: f64::NAN,
        failed: number(" failed").unwrap_or(0),
    })
}

/// A duration as wrk and h2load write it.
fn millis(text: &str) -> f64 {
    let at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let n: f64 = text[..at].parse().unwrap_or(f64::NAN);
    match &text[at..] {
        "us" => n / 1000.0,
        "s" => n * 1000.0,
        "m" => n * 60_000.0,
        _ => n,
    }
}

/// CPU time of all threads so far, nanoseconds.
fn cpu_ns(pid: u32) -> u64 {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    tasks
        .flatten()
        .filter_map(|t| std::fs::read_to_string(t.path().join("schedstat")).ok())
        .filter_map(|s| s.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()))
        .sum()
}

fn rss_mb(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// A P-256 certificate for the TLS scenario, made by the openssl command.
fn certificate(dir: &Path) -> Result<(), String> {
    if dir.join("cert.pem").exists() {
        return Ok(());
    }
    let out = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=localhost", "-keyout"])
        .arg(dir.join("key.pem"))
        .arg("-out")
        .arg(dir.join("cert.pem"))
        .output()
        .map_err(|e| format!("openssl: {e}"))?;
    if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
}
