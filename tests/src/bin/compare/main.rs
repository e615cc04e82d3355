//! Drives two binaries of the service through the same day, and tells where their answers and their calls to DPS differ:
//!
//! ```text
//! cargo run -p dps-proxy-tests --bin compare -- OLD NEW
//! ```
//!
//! Each binary gets emulated instances and a store of its own, on loopback, and meets the same devices, backend and operator in the same
//! order, with a crash in the middle ([`day`]). What is different each time (moments, IDs of requests, ports) is masked in what is kept of
//! it ([`transcript`]). The differences are printed one a line ([`difference`]). Exit status: 0 if there is none, 1 if there are some, 2 if
//! a day did not come to its end.

use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use dps_proxy_tests::binary::BINARY_VARIABLE;
use serde_json::Value;

mod day;
mod difference;
mod transcript;

/// The longest that a day may take.
const LONGEST: Duration = Duration::from_secs(55);

/// Lives one day and writes down what happened. Not for people: `compare` calls itself with it, once for each binary.
const LIVE: &str = "--live-one-day";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        [LIVE] => live().map(|()| true),
        [old, new] => compare(Path::new(old), Path::new(new)),
        _ => Err(anyhow::anyhow!("usage: compare OLD NEW, two binaries of dps-proxy")),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("compare: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether both do the same.
fn compare(old: &Path, new: &Path) -> anyhow::Result<bool> {
    let (old_day, new_day) = (begin(old)?, begin(new)?);
    let (old_day, new_day) = (end(old_day, old)?, end(new_day, new)?);
    let differences = difference::between(&old_day, &new_day);
    for difference in &differences {
        println!("{difference}");
    }
    let members = |what: &str| new_day[what].as_object().cloned().unwrap_or_default();
    let answers = members("answers").len();
    let calls: usize = members("calls").values().filter_map(Value::as_array).map(Vec::len).sum();
    if differences.is_empty() {
        println!("identical: {answers} answers, {calls} calls to DPS");
    } else {
        println!("{} differences in {answers} answers and {calls} calls to DPS", differences.len());
    }
    Ok(differences.is_empty())
}

fn begin(binary: &Path) -> anyhow::Result<Child> {
    let binary = binary.canonicalize().with_context(|| binary.display().to_string())?;
    let mut day = Command::new(std::env::current_exe()?);
    day.arg(LIVE).env(BINARY_VARIABLE, &binary).stdin(Stdio::null()).stdout(Stdio::piped());
    Ok(day.spawn()?)
}

fn end(day: Child, binary: &Path) -> anyhow::Result<Value> {
    let output = day.wait_with_output()?;
    if !output.status.success() {
        bail!("{}: the day did not come to its end ({})", binary.display(), output.status);
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn live() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let day = runtime.block_on(async { tokio::time::timeout(LONGEST, day::live()).await });
    let stuck = || format!("it took longer than {} s; what was seen last: {}", LONGEST.as_secs(), transcript::last());
    let day = day.with_context(stuck)?;
    println!("{day}");
    Ok(())
}
