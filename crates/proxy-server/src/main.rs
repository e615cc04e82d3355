//! `dps-proxy`: see `dps-proxy --help`.

use std::process::ExitCode;

/// A million records that come and go on many threads leave glibc's allocator with a third more memory than they need; this one
/// gives it back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    proxy_server::cli::main()
}
