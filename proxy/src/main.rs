//! The command line: runs a bootstrap as Envoy does, or what Istio's injection asks for.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;

use outrigger::agent;
use outrigger::cli::{Cli, Command, Mode, RunOptions, version_line};
use outrigger::config::load::{self, Source};
use outrigger::server::{self, Options, Server};

// Half of mimalloc's resident memory at the same speed on this data path; see ARCHITECTURE.md.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Proxy(options)) => exit(agent::sidecar::run(&options)),
        Some(Command::Iptables(options)) => exit(agent::iptables::run(&options, &mut std::io::stdout())),
        Some(Command::Request(options)) => {
            on_a_small_runtime(async { agent::request::run(&options, &mut std::io::stdout()).await })
        }
        Some(Command::Wait(options)) => on_a_small_runtime(async { agent::wait::run(&options).await }),
        Some(Command::Version) => {
            println!("{}", version_line());
            ExitCode::SUCCESS
        }
        Some(Command::Demo(options)) => demo(options),
        Some(Command::Workload(options)) => workload(options),
        None => run(&cli.run),
    }
}

fn fail(what: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("outrigger: {what}");
    ExitCode::FAILURE
}

fn exit<E: std::fmt::Display>(result: Result<(), E>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&e),
    }
}

fn demo(options: outrigger::demo::DemoOptions) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(r) => r,
        Err(e) => return fail(&e),
    };
    if let Err(e) = server::start_logging("warning", "", None) {
        return fail(&e);
    }
    match runtime.block_on(outrigger::demo::run(options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&e),
    }
}

fn on_a_small_runtime<E: std::fmt::Display>(task: impl Future<Output = Result<(), E>>) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(r) => exit(r.block_on(task)),
        Err(e) => fail(&e),
    }
}

fn workload(options: outrigger::demo::workload::WorkloadOptions) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(r) => r,
        Err(e) => return fail(&e),
    };
    match runtime.block_on(outrigger::demo::workload::run(options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&e),
    }
}

fn run(o: &RunOptions) -> ExitCode {
    if o.version {
        println!("{}", version_line());
        return ExitCode::SUCCESS;
    }
    let log = match server::start_logging(&o.log_level, &o.component_log_level, o.log_path.as_deref()) {
        Ok(l) => l,
        Err(e) => return fail(&e),
    };
    o.without_effect.report();
    let source = Source {
        path: o.config_path.as_deref().map(Path::new),
        yaml: o.config_yaml.as_deref(),
        service_node: &o.service_node,
        service_cluster: &o.service_cluster,
        service_zone: &o.service_zone,
    };
    let loaded = match load::bootstrap(&source) {
        Ok(l) => l,
        Err(e) => return fail(&e),
    };
    if o.mode == Mode::Validate {
        println!("configuration '{}' OK", o.config_path.as_deref().unwrap_or_default());
        return ExitCode::SUCCESS;
    }
    let mut options = Options {
        flush_interval: Duration::from_millis(o.file_flush_interval_msec.max(1)),
        drain_time: Duration::from_secs(o.drain_time_s),
        log: Some(log),
        admin_address_path: o.admin_address_path.as_ref().map(Into::into),
        config_path: o.config_path.clone().unwrap_or_default(),
        ..Options::default()
    };
    if let Some(n) = o.concurrency {
        options.concurrency = n.max(1);
    }
    let control = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()
    {
        Ok(r) => r,
        Err(e) => return fail(&e),
    };
    let server = match Server::start(loaded, &options, control.handle()) {
        Ok(s) => s,
        Err(e) => return fail(&e),
    };
    control.block_on(terminated(&server));
    server.stop();
    ExitCode::SUCCESS
}

/// Until SIGTERM, SIGINT or `/quitquitquit`: as Envoy, the process ends without further ado; draining is the agent's doing.
/// SIGUSR1 reopens the access logs.
async fn terminated(server: &Server) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int), Ok(mut usr1)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
        signal(SignalKind::user_defined1()),
    ) else {
        return std::future::pending().await;
    };
    let mut quit = server.quit.clone();
    loop {
        tokio::select! {
            _ = term.recv() => return,
            _ = int.recv() => return,
            // Without an admin server nobody can quit this way: the sender is gone, and signals remain.
            Ok(_) = quit.wait_for(|q| *q) => return,
            _ = usr1.recv() => server.shared.logs.reopen(),
        }
    }
}
