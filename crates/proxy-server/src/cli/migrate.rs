//! `migrate`: the tables of the database that the configuration names, as this release needs them.
//!
//! `serve` needs no right to create anything. So this may connect as another role, which owns the tables, and then grants the role of the
//! configuration what a gateway needs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use store_postgresql::Migrated;

use super::{ConfigFile, failed, load, print, report, run as run_here};
use crate::config::{Loaded, StoreBackend, read_bounded};

/// What is asked for.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    file: ConfigFile,
    /// Connect as this role, which owns the tables or may create them [default: the one of the configuration].
    #[arg(long, value_name = "ROLE")]
    user: Option<String>,
    /// A file that holds its password.
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
    /// Grant this role what a gateway needs, and nothing more [default with --user: the role of the configuration].
    #[arg(long, value_name = "ROLE")]
    grant_to: Option<String>,
}

/// Migrates, and says what that did.
pub(super) fn run(options: Options) -> ExitCode {
    let Options { file, user, password_file, grant_to } = options;
    let Loaded { server, .. } = match load(&file.path()) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let StoreBackend::Postgresql(settings) = server.store.backend else {
        report("dps-proxy: store.backend is \"sled\", which has no tables; there is nothing to migrate");
        return ExitCode::from(2);
    };
    let mut options = settings.options;
    let gateway = options.connection.user().to_owned();
    let mut grant_to = grant_to;
    if let Some(user) = user {
        let password = match password_file.as_deref().map(password).transpose() {
            Ok(password) => password.unwrap_or_default(),
            Err(why) => {
                report(&format!("dps-proxy: --password-file: {why}"));
                return ExitCode::from(2);
            }
        };
        options.connection = options.connection.for_user(&user, &password);
        if user != gateway {
            grant_to = grant_to.or(Some(gateway));
        }
    }
    let migrated = run_here(async { Ok(store_postgresql::migrate(&options, grant_to.as_deref()).await?) });
    match migrated {
        Ok(migrated) => {
            print(&said(&options.connection.to_string(), migrated, grant_to.as_deref()));
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    }
}

fn password(file: &Path) -> std::io::Result<Vec<u8>> {
    let content = read_bounded(file)?;
    let line = content.strip_suffix(b"\n").unwrap_or(&content);
    Ok(line.strip_suffix(b"\r").unwrap_or(line).to_vec())
}

fn said(target: &str, Migrated { from, to }: Migrated, grant_to: Option<&str>) -> String {
    let mut text = match from {
        0 => format!("{target}: created schema {to}"),
        from if from == to => format!("{target}: has schema {to} already, nothing was changed"),
        from => format!("{target}: migrated from schema {from} to {to}"),
    };
    if let Some(role) = grant_to {
        text += &format!("; {role} was granted what a gateway needs");
    }
    text
}
