//! The whole differential suite: which cases run, beside which recordings, and the verdict.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::case;
use crate::compare::difference;
use crate::proxy::is_envoy;
use crate::run::{Context, run};

/// What to run.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Cases whose name holds one of these; all if empty.
    pub filter: Vec<String>,
    /// Writes the recordings instead of comparing.
    pub record: bool,
    pub jobs: usize,
}

/// How a case ended.
#[derive(Debug)]
pub enum Verdict {
    Passed,
    Recorded,
    Failed(String),
    /// Failed, and `expected-failures.txt` gives the reason.
    Expected(String),
}

#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("expected-failures.txt, line {0}: `area/name: reason` is the form")]
    ExpectedFailures(usize),
}

/// The folder `integration/diff` of the sources this was built from.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("diff")
}

/// Case name → reason, from `expected-failures.txt`.
///
/// # Errors
/// The file cannot be read or a line has no reason.
pub fn expected_failures(root: &Path) -> Result<BTreeMap<String, String>, SuiteError> {
    let path = root.join("expected-failures.txt");
    let text = std::fs::read_to_string(&path).map_err(|source| SuiteError::Read { path, source })?;
    let mut map = BTreeMap::new();
    for (i, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, reason) = line.split_once(": ").ok_or(SuiteError::ExpectedFailures(i + 1))?;
        map.insert(name.trim().to_owned(), reason.trim().to_owned());
    }
    Ok(map)
}

/// Runs the chosen cases and calls `report` for each as it ends.
///
/// # Errors
/// The cases cannot be read.
pub async fn run_all(
    context: Arc<Context>,
    options: &Options,
    mut report: impl FnMut(&str, &Verdict, f32),
) -> Result<Vec<(String, Verdict)>, SuiteError> {
    let root = root();
    let cases = root.join("cases");
    let expected = if is_envoy(&context.binary) { BTreeMap::new() } else { expected_failures(&root)? };
    let all = case::find(&cases).map_err(|source| SuiteError::Read { path: cases, source })?;
    let slots = Arc::new(Semaphore::new(options.jobs.max(1)));
    let mut running = JoinSet::new();
    for (name, path) in all {
        if !options.filter.is_empty() && !options.filter.iter().any(|f| name.contains(f)) {
            continue;
        }
        let (context, slots, record) = (Arc::clone(&context), Arc::clone(&slots), options.record);
        running.spawn(async move {
            let Ok(_slot) = slots.acquire().await else {
                return (name, Verdict::Failed("cancelled".into()), 0.0);
            };
            let begin = Instant::now();
            let verdict = judge(&context, &path, record).await;
            (name, verdict, begin.elapsed().as_secs_f32())
        });
    }
    let mut verdicts = Vec::new();
    while let Some(ended) = running.join_next().await {
        let Ok((name, verdict, seconds)) = ended else {
            verdicts.push(("runner".into(), Verdict::Failed("a case panicked".into())));
            continue;
        };
        let verdict = match (verdict, expected.get(&name)) {
            (Verdict::Failed(_), Some(reason)) => Verdict::Expected(reason.clone()),
            (Verdict::Passed, Some(_)) => {
                Verdict::Failed("passes: take it off expected-failures.txt\n".into())
            }
            (verdict, _) => verdict,
        };
        report(&name, &verdict, seconds);
        verdicts.push((name, verdict));
    }
    verdicts.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(verdicts)
}

async fn judge(context: &Context, path: &Path, record: bool) -> Verdict {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) => return Verdict::Failed(e.to_string()),
    };
    let recording = path.with_extension(if !is_envoy(&context.binary) && differs(&text) {
        "outrigger.json"
    } else {
        "envoy.json"
    });
    let expected: Option<Value> =
        std::fs::read_to_string(&recording).ok().and_then(|t| serde_json::from_str(&t).ok());
    let observed = match run(context, &text, if record { None } else { expected.as_ref() }).await {
        Ok(observed) => observed,
        Err(e) => return Verdict::Failed(format!("    {e}\n")),
    };
    if record {
        if !is_envoy(&context.binary) && !differs(&text) {
            return Verdict::Failed("only a case with `differs` is recorded from Outrigger\n".into());
        }
        let text = serde_json::to_string_pretty(&observed).unwrap_or_default() + "\n";
        return match std::fs::write(&recording, text) {
            Ok(()) => Verdict::Recorded,
            Err(e) => Verdict::Failed(e.to_string()),
        };
    }
    match expected {
        None => Verdict::Failed(format!("    no recording {}\n", recording.display())),
        Some(expected) => difference(&expected, &observed).map_or(Verdict::Passed, Verdict::Failed),
    }
}

/// Read from the text, because the file is parsed only once its ports are known.
fn differs(text: &str) -> bool {
    text.lines().any(|l| l.trim_start().starts_with("differs:"))
}
