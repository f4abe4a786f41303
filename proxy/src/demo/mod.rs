//! The embedded default: a mesh in one process, over the protocols that istiod speaks.
//!
//! `mesh` brings it up: a control plane (delta ADS and the certificate service over TLS, its CA made on the spot), workloads,
//! a client's and a server's sidecar that get certificate, listeners, routes, clusters and endpoints from it. `resources`
//! is the configuration it serves, `load` sends the requests, `table` shows what happens, `workload` is the application.
//! In-process tests use the same.

mod load;
mod mesh;
mod resources;
mod table;
pub mod workload;

use std::io::Write as _;
use std::time::Duration;

use clap::Args;

pub use mesh::{Mesh, MeshError, MeshOptions};

/// `outrigger demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoOptions {
    /// Requests to send.
    #[arg(long, default_value_t = 5000)]
    pub requests: u64,
    /// Requests under way at once.
    #[arg(long, default_value_t = 16)]
    pub concurrency: usize,
    /// Lifetime of the workloads' certificates, seconds; renewed at 75 %.
    #[arg(long, default_value_t = 60)]
    pub certificate_seconds: u64,
    /// Stay up afterwards, with the admin pages open, until interrupted.
    #[arg(long)]
    pub serve: bool,
}

/// Why the demo failed.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error(transparent)]
    Mesh(#[from] MeshError),
    #[error("{0} of {1} requests failed; the first: {2}")]
    Failed(u64, u64, String),
    #[error("{0}")]
    Unexpected(String),
}

/// Runs it: mesh, load, table, summary.
///
/// # Errors
/// A mesh that does not come up, a request that fails, a split outside its bounds.
pub async fn run(options: DemoOptions) -> Result<(), DemoError> {
    let mesh =
        Mesh::start(MeshOptions { certificate_ttl: Duration::from_secs(options.certificate_seconds.max(4)) })
            .await?;
    println!("control plane and CA  {}", mesh.control_plane());
    println!("client sidecar        http://{}  admin http://{}", mesh.entry(), mesh.client_admin());
    println!("server sidecar        admin http://{}\n", mesh.server_admin());
    let run = load::Run::start(mesh.entry(), options.requests, options.concurrency);
    let mut table = table::Table::new();
    loop {
        table.show(&mesh, &run.progress());
        if tokio::time::timeout(Duration::from_millis(250), run.finished()).await.is_ok() {
            break;
        }
    }
    table.show(&mesh, &run.progress());
    let done = run.progress();
    let identities = load::identities(mesh.entry()).await.map_err(DemoError::Unexpected)?;
    println!("\nidentities            client {}", identities.client);
    println!("                      server {}", identities.server);
    if done.failed > 0 {
        return Err(DemoError::Failed(done.failed, done.done, done.first_failure.unwrap_or_default()));
    }
    check_split(&done)?;
    println!("\nall {} requests answered, none failed", done.done);
    let _ = std::io::stdout().flush();
    if options.serve {
        println!("serving until interrupted (Ctrl-C)");
        let _ = tokio::signal::ctrl_c().await;
    }
    mesh.stop().await;
    Ok(())
}

/// 90/10 within five standard deviations: a fair coin misses that once in two million runs.
fn check_split(p: &load::Progress) -> Result<(), DemoError> {
    let n = p.done as f64;
    let (mean, deviation) = (n * 0.1, (n * 0.1 * 0.9).sqrt());
    if n >= 1000.0 && (p.canary as f64 - mean).abs() > 5.0 * deviation {
        return Err(DemoError::Unexpected(format!(
            "{} of {} requests went to the canary, about {mean} expected",
            p.canary, p.done
        )));
    }
    Ok(())
}
