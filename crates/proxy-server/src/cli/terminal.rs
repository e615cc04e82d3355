//! What commands say to whoever started them.

use std::io::Write as _;

/// Writes a line to standard output; a reader that has gone away is no fault.
pub(super) fn print(text: &str) {
    let _closed_pipe = writeln!(std::io::stdout(), "{}", text.trim_end());
}

/// Writes a line to standard error.
pub(super) fn report(text: &str) {
    let _closed_pipe = writeln!(std::io::stderr(), "{text}");
}
