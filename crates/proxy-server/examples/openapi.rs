//! Prints the OpenAPI document as the sources say it: `cargo run -p proxy-server --example openapi > docs/openapi.json` renews the kept one.

#![allow(clippy::print_stdout, reason = "it prints")]

fn main() {
    print!("{}", proxy_server::planes::document());
}
