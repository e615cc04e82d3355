//! Where the service's binary is.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// Names a binary to test instead of the one that is built, for example one that was released.
pub const BINARY_VARIABLE: &str = "DPS_PROXY_TEST_BINARY";

/// The service's binary, built in the profile and target directory of the running test. The first call builds it, so that
/// `cargo test` alone is enough.
///
/// # Panics
/// If it cannot be built.
#[must_use]
pub fn dps_proxy() -> &'static Path {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match BINARY.get_or_init(|| std::env::var_os(BINARY_VARIABLE).map_or_else(build, |path| Ok(path.into()))) {
        Ok(path) => path,
        Err(problem) => panic!("dps-proxy cannot be built: {problem}"),
    }
}

fn build() -> Result<PathBuf, String> {
    let test = std::env::current_exe().map_err(|error| error.to_string())?;
    // …/target/PROFILE/deps/it-0123456789abcdef
    let profile = test.ancestors().nth(2).ok_or("a test is in PROFILE/deps")?;
    let target = profile.parent().ok_or("a profile is in the target directory")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "-p", "proxy-server", "--bin", "dps-proxy", "--target-dir"]).arg(target);
    if let Some(name) = profile.file_name().and_then(|name| name.to_str()).filter(|name| *name != "debug") {
        command.args(["--profile", name]);
    }
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).stdin(Stdio::null());
    let output = command.output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(profile.join("dps-proxy"))
}

/// A command that runs the binary with a clean environment: no override of ours, no proxy, no backtraces.
#[must_use]
pub fn command() -> Command {
    let mut command = Command::new(dps_proxy());
    command.env_clear().env("RUST_BACKTRACE", "0").stdin(Stdio::null());
    command
}

/// Runs the binary to its end.
///
/// # Panics
/// If it cannot be started.
#[must_use]
pub fn run(arguments: &[&str]) -> Output {
    command().args(arguments).output().expect("the binary can be started")
}
