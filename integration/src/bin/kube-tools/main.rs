//! What the Kubernetes suite runs inside pods: an OTLP receiver that prints spans, and a look at the wire that tells which
//! TLS version, or which plaintext, went between two pods.

use clap::{Parser, Subcommand};

mod otlp;
mod wire;

#[derive(Debug, Subcommand)]
enum Command {
    /// Receives traces by OTLP over gRPC and prints each span as a line of JSON.
    OtlpSink {
        #[arg(long, default_value_t = 4317)]
        port: u16,
    },
    /// Captures for some seconds and prints what each TCP flow to the port carried.
    Wire {
        #[arg(long)]
        port: u16,
        #[arg(long, default_value_t = 3)]
        seconds: u64,
    },
}

#[derive(Debug, Parser)]
#[command(about = "Helpers of the Kubernetes suite")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    match Arguments::parse().command {
        Command::OtlpSink { port } => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(otlp::serve(port))?)
        }
        Command::Wire { port, seconds } => Ok(wire::watch(port, std::time::Duration::from_secs(seconds))?),
    }
}
