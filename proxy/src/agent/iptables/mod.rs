//! `istio-iptables`: the init container. Captures a pod's traffic for 15001 (outbound) and 15006 (inbound), and DNS for
//! 15053, with the rules that Istio documents for REDIRECT. `options` is what istiod's template passes, `rules` what follows
//! from it, this file hands that to iptables-restore in one transaction per table.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

mod options;
mod rules;
#[cfg(test)]
mod tests;

pub use options::IptablesOptions;
pub use rules::{Family, Plan};

/// Why capture could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum IptablesError {
    #[error("istio-iptables: {option} {value:?}: {expected}")]
    Option { option: &'static str, value: String, expected: &'static str },
    #[error("istio-iptables: {program}: {source}")]
    Start { program: String, source: io::Error },
    #[error("istio-iptables: {program}: {output}")]
    Rules { program: String, output: String },
    #[error("istio-iptables: none of {0} could be run: is the package iptables in the image?")]
    Missing(String),
}

/// Sets the rules up, or takes them away with `--cleanup-only`. Doing it twice leaves what doing it once does. What stands
/// afterwards is written to `out`.
///
/// # Errors
/// When an option is not understood or the rules cannot be set: the pod must not start uncaptured.
pub fn run(options: &IptablesOptions, out: &mut impl Write) -> Result<(), IptablesError> {
    let resolver = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let addresses = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let plan = Plan::new(options, &resolver)?;
    let mut families = vec![Family::V4];
    if options.dual_stack || has_global_ipv6(&addresses) {
        families.push(Family::V6);
    }
    for family in families {
        if options.dry_run {
            say(out, &plan.restore_input(family, ""));
            continue;
        }
        let tool = Tool::find(family, options.force_iptables_binary.as_deref())?;
        let before = tool.save()?;
        let input = if options.cleanup_only {
            rules::cleanup_input(&before)
        } else {
            plan.restore_input(family, &before)
        };
        say(out, &format!("{} with the following input:\n{input}", tool.restore.display()));
        if family == Family::V6 && !options.cleanup_only {
            add_inbound_source(out);
        }
        tool.restore(&input)?;
        say(out, &format!("state of {family:?} now:\n{}", tool.save()?));
    }
    Ok(())
}

/// iptables in one of its two kinds; both halves must be of the same kind, or one would not see the other's rules.
struct Tool {
    restore: PathBuf,
    save: PathBuf,
}

impl Tool {
    /// The kind asked for, else the distribution's default, else whichever works in this kernel.
    fn find(family: Family, forced: Option<&str>) -> Result<Self, IptablesError> {
        let name = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let kinds = match forced {
            None => vec![name.to_owned(), format!("{name}-nft"), format!("{name}-legacy")],
            Some("legacy" | "iptables-legacy") => vec![format!("{name}-legacy")],
            Some("nft" | "iptables-nft") => vec![format!("{name}-nft")],
            Some(other) => {
                let expected = "expected nft or legacy";
                return Err(IptablesError::Option {
                    option: "--force-iptables-binary",
                    value: other.into(),
                    expected,
                });
            }
        };
        for kind in &kinds {
            let tool =
                Self { restore: format!("{kind}-restore").into(), save: format!("{kind}-save").into() };
            if tool.save().is_ok() {
                return Ok(tool);
            }
        }
        Err(IptablesError::Missing(kinds.join(", ")))
    }

    fn save(&self) -> Result<String, IptablesError> {
        let program = self.save.display().to_string();
        let done = Command::new(&self.save)
            .output()
            .map_err(|source| IptablesError::Start { program: program.clone(), source })?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if done.status.success() {
            Ok(text(&done.stdout))
        } else {
            Err(IptablesError::Rules { program, output: text(&done.stderr) })
        }
    }

    fn restore(&self, input: &str) -> Result<(), IptablesError> {
        let program = self.restore.display().to_string();
        let started = |source| IptablesError::Start { program: program.clone(), source };
        // --wait: another process may hold the lock that all of iptables shares.
        let mut child = Command::new(&self.restore)
            .args(["--noflush", "--wait=30"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(started)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).map_err(started)?;
        }
        let done = child.wait_with_output().map_err(started)?;
        if done.status.success() {
            return Ok(());
        }
        Err(IptablesError::Rules { program, output: String::from_utf8_lossy(&done.stderr).into_owned() })
    }
}

/// Whether any interface but the loopback has an IPv6 address that is not link-local. Format: proc(5), if_inet6.
fn has_global_ipv6(if_inet6: &str) -> bool {
    if_inet6.lines().any(|line| {
        let mut words = line.split_whitespace();
        let (scope, name) = (words.clone().nth(3), words.nth(5));
        scope == Some("00") && name.is_some_and(|name| name != "lo")
    })
}

/// `::6` is to IPv6 what 127.0.0.6 is to IPv4, the source of what the proxy sends to its application; but it has to be added.
fn add_inbound_source(out: &mut impl Write) {
    match Command::new("ip").args(["-6", "addr", "add", "::6/128", "dev", "lo"]).output() {
        Ok(done)
            if done.status.success() || String::from_utf8_lossy(&done.stderr).contains("File exists") => {}
        Ok(done) => {
            say(out, &format!("ip -6 addr add ::6/128 dev lo: {}", String::from_utf8_lossy(&done.stderr)));
        }
        Err(error) => say(out, &format!("ip -6 addr add ::6/128 dev lo: {error}")),
    }
}

/// The log is a help to people; that nobody reads it must not stop the pod.
fn say(out: &mut impl Write, text: &str) {
    let _ = writeln!(out, "{text}");
}
