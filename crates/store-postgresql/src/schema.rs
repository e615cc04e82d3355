//! The schema: numbered steps in the binary, each applied once, in one transaction, by whoever comes first.

use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio_postgres::Client;

use crate::open_error::OpenError;
use crate::options::Options;
use crate::target::{SCHEMA, Target};

/// Who migrates holds this advisory lock.
const LOCK: i64 = 0x6470_735f_7072_6f78;

/// How long one waits for another process that migrates.
const LOCK_TIMEOUT: Duration = Duration::from_secs(60);

struct Step {
    version: i32,
    /// The oldest version whose binaries may write after this step.
    least_writer: i32,
    sql: &'static str,
}

const STEPS: [Step; 2] = [
    Step { version: 1, least_writer: 1, sql: include_str!("../migrations/0001_store.sql") },
    // Who knows nothing of leases writes as if it were alone.
    Step { version: 2, least_writer: 2, sql: include_str!("../migrations/0002_leases.sql") },
];

/// The newest version that this release knows, which is also the one that it needs.
const KNOWN: i32 = STEPS[STEPS.len() - 1].version;

impl Step {
    fn checksum(&self) -> String {
        Sha256::digest(self.sql.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What a migration did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migrated {
    /// The version that was found; 0 if there was no schema.
    pub from: i32,
    /// The version there is now.
    pub to: i32,
}

/// Brings the schema to what this release needs. Several may try at the same time; each step is applied once. Nothing is changed where a
/// newer release has been.
///
/// `grant_to` names a role that gets what a gateway needs, and nothing more, for the case that it does not own the tables.
///
/// # Errors
/// See [`OpenError`]. A step that fails leaves nothing behind; those before it stay.
pub async fn migrate(options: &Options, grant_to: Option<&str>) -> Result<Migrated, OpenError> {
    let target = Target::new(options)?;
    let mut session = target.session().await?;
    let refused = |error: tokio_postgres::Error| target.refused(&error);
    let wait = format!("SET lock_timeout = {}", LOCK_TIMEOUT.as_millis());
    session.client.batch_execute(&wait).await.map_err(refused)?;
    let found = versions(&target, &session.client).await?;
    let from = found.iter().map(|(version, ..)| *version).max().unwrap_or(0);
    may_be_written(&target, &found)?;
    for step in &STEPS {
        let transaction = session.client.transaction().await.map_err(refused)?;
        transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await.map_err(refused)?;
        prepare(&transaction).await.map_err(refused)?;
        let known = "SELECT checksum FROM schema WHERE version = $1";
        let applied = transaction.query_opt(known, &[&step.version]).await.map_err(refused)?;
        match applied.map(|row| row.try_get::<_, String>(0)).transpose().map_err(refused)? {
            Some(checksum) if checksum == step.checksum() => {}
            Some(_) => return Err(OpenError::Altered { target: target.name().to_owned(), version: step.version }),
            None => {
                transaction.batch_execute(step.sql).await.map_err(refused)?;
                let row = "INSERT INTO schema (version, least_writer, checksum) VALUES ($1, $2, $3)";
                let (version, least_writer, checksum) = (step.version, step.least_writer, step.checksum());
                transaction.execute(row, &[&version, &least_writer, &checksum]).await.map_err(refused)?;
            }
        }
        transaction.commit().await.map_err(refused)?;
    }
    if let Some(role) = grant_to {
        let transaction = session.client.transaction().await.map_err(refused)?;
        transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await.map_err(refused)?;
        transaction.batch_execute(&grants(role)).await.map_err(refused)?;
        transaction.commit().await.map_err(refused)?;
    }
    Ok(Migrated { from, to: from.max(KNOWN) })
}

async fn prepare(client: &impl tokio_postgres::GenericClient) -> Result<(), tokio_postgres::Error> {
    let there = client.query_one("SELECT to_regnamespace($1) IS NOT NULL", &[&SCHEMA]).await?;
    if !there.try_get::<_, bool>(0)? {
        client.batch_execute(&format!("CREATE SCHEMA {SCHEMA}")).await?;
    }
    client
        .batch_execute(
            "CREATE TABLE IF NOT EXISTS schema (
                version      integer PRIMARY KEY,
                least_writer integer NOT NULL,
                checksum     text NOT NULL,
                at           timestamptz NOT NULL DEFAULT now()
            )",
        )
        .await
}

/// What a gateway needs, of what there is and of the sequences to come.
fn grants(role: &str) -> String {
    let role = format!("\"{}\"", role.replace('"', "\"\""));
    format!(
        "GRANT USAGE ON SCHEMA {SCHEMA} TO {role};
         GRANT SELECT, INSERT, UPDATE, DELETE ON device, place, entry, attempt TO {role};
         GRANT SELECT, INSERT, UPDATE ON lease TO {role};
         GRANT SELECT ON TABLE schema, line TO {role};
         GRANT SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA {SCHEMA} TO {role};
         ALTER DEFAULT PRIVILEGES IN SCHEMA {SCHEMA} GRANT SELECT, UPDATE ON SEQUENCES TO {role};
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {SCHEMA} TO {role}"
    )
}

/// Whether this release may work with what is there.
pub(crate) async fn check(target: &Target, client: &Client) -> Result<(), OpenError> {
    let found = versions(target, client).await?;
    may_be_written(target, &found)?;
    for step in &STEPS {
        let checksum = found.iter().find(|(version, ..)| *version == step.version).map(|(.., checksum)| checksum);
        match checksum {
            Some(checksum) if *checksum == step.checksum() => {}
            Some(_) => return Err(OpenError::Altered { target: target.name().to_owned(), version: step.version }),
            None => {
                let found = found.iter().map(|(version, ..)| *version).max().unwrap_or(0);
                return Err(OpenError::NotMigrated { target: target.name().to_owned(), found, needed: KNOWN });
            }
        }
    }
    Ok(())
}

fn may_be_written(target: &Target, found: &[(i32, i32, String)]) -> Result<(), OpenError> {
    let least_writer = found.iter().map(|(_, least_writer, _)| *least_writer).max().unwrap_or(0);
    if least_writer <= KNOWN {
        return Ok(());
    }
    let found = found.iter().map(|(version, ..)| *version).max().unwrap_or(0);
    Err(OpenError::Newer { target: target.name().to_owned(), found, least_writer, known: KNOWN })
}

/// The steps that were applied: version, least writer and checksum.
async fn versions(target: &Target, client: &Client) -> Result<Vec<(i32, i32, String)>, OpenError> {
    let read = async {
        let there =
            client.query_one("SELECT to_regclass($1::text) IS NOT NULL", &[&format!("{SCHEMA}.schema")]).await?;
        if !there.try_get::<_, bool>(0)? {
            return Ok(Vec::new());
        }
        let rows = client.query("SELECT version, least_writer, checksum FROM schema ORDER BY version", &[]).await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))).collect()
    };
    read.await.map_err(|error| target.refused(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_numbered_without_gaps_and_never_edited_once_released() {
        const CHECKSUMS: [&str; 2] = [
            "fe33f80b299108c4b8667c2078961ca913a52d04c5dd33173372f01b0c4d7af0",
            "989d4f6d630a097a1a472aa2e7e55e27e0a744e12d82bda15c0320bf512ac18d",
        ];
        for ((n, step), checksum) in (1..).zip(&STEPS).zip(CHECKSUMS) {
            assert_eq!(step.version, n);
            assert!(step.least_writer <= step.version);
            assert_eq!(step.checksum(), checksum, "step {n}: what was released stays as it is; add a step");
        }
    }

    #[test]
    fn a_role_is_quoted() {
        assert!(grants("a\"; DROP TABLE device; --").contains("TO \"a\"\"; DROP TABLE device; --\";"));
    }
}
