//! `dps-proxy`: see `dps-proxy --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    proxy_server::cli::main()
}
