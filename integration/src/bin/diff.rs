//! Command line of the differential suite: `diff --proxy PATH [--record] [--filter X] [--jobs N] [--list]`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use outrigger_integration::case;
use outrigger_integration::certs::Certs;
use outrigger_integration::ports::Ports;
use outrigger_integration::run::Context;
use outrigger_integration::suite::{self, Options, Verdict};

/// Runs the Envoy differential suite against a proxy binary.
#[derive(Debug, Parser)]
struct Arguments {
    /// The proxy: Outrigger, or Envoy itself (a file called `envoy`).
    #[arg(long, required_unless_present = "list")]
    proxy: Option<PathBuf>,
    /// Records what the proxy does instead of comparing.
    #[arg(long)]
    record: bool,
    /// Only cases whose name holds this; may be repeated.
    #[arg(long)]
    filter: Vec<String>,
    #[arg(long, default_value_t = 6)]
    jobs: usize,
    /// Prints the names of the cases.
    #[arg(long)]
    list: bool,
    /// Keeps the directories of the cases (configuration, logs, the proxy's output) below this one.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Prints each case as it ends.
    #[arg(long, short)]
    verbose: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    match execute(Arguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("diff: {e}");
            ExitCode::from(2)
        }
    }
}

async fn execute(arguments: Arguments) -> Result<bool, Box<dyn std::error::Error>> {
    if arguments.list {
        for (name, _) in case::find(&suite::root().join("cases"))? {
            if arguments.filter.is_empty() || arguments.filter.iter().any(|f| name.contains(f)) {
                println!("{name}");
            }
        }
        return Ok(true);
    }
    let proxy = arguments.proxy.unwrap_or_default();
    if let Some(keep) = &arguments.keep {
        std::fs::create_dir_all(keep)?;
    }
    let certs_dir = tempfile::Builder::new().prefix("outrigger-certs-").tempdir()?;
    let context = Context {
        binary: std::fs::canonicalize(&proxy).map_err(|e| format!("{}: {e}", proxy.display()))?,
        ports: Ports::default(),
        certs: Arc::new(Certs::create(certs_dir.path())?),
        keep: arguments.keep,
    };
    let options = Options { filter: arguments.filter, record: arguments.record, jobs: arguments.jobs };
    let verbose = arguments.verbose;
    let verdicts = suite::run_all(Arc::new(context), &options, |name, verdict, seconds| match verdict {
        Verdict::Failed(why) => println!("FAIL {name} ({seconds:.1} s)\n{why}"),
        Verdict::Expected(reason) => println!("EXPECTED FAILURE {name}: {reason}"),
        Verdict::Passed | Verdict::Recorded if verbose => println!("ok   {name} ({seconds:.1} s)"),
        Verdict::Passed | Verdict::Recorded => {}
    })
    .await?;
    let count = |f: fn(&Verdict) -> bool| verdicts.iter().filter(|(_, v)| f(v)).count();
    let failed = count(|v| matches!(v, Verdict::Failed(_)));
    let skipped = count(|v| matches!(v, Verdict::Expected(_)));
    let passed = verdicts.len() - failed - skipped;
    let tail = if skipped > 0 { format!(", {skipped} skipped") } else { String::new() };
    println!("{passed} passed, {failed} failed{tail}");
    Ok(failed == 0 && passed > 0)
}
