//! The one connection that writes, with its statements.

use std::time::Duration;

use proxy_core::ids::InstanceName;
use tokio::time::error::Elapsed;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};
use uuid::Uuid;

use crate::batch::{Columns, Told};
use crate::open_error::OpenError;
use crate::schema;
use crate::target::{Session, Target};

/// What became of attempts is forgotten after this, if their writer did not come back for it.
const FORGET_ATTEMPTS: &str = "DELETE FROM attempt WHERE at < now() - interval '1 day'";

const COMMIT: &str =
    "SELECT conflicts, numbers FROM commit_v2($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)";
const SETTLE: &str = "SELECT happened, conflicts, numbers FROM settle_v1($1)";
const LINE: &str = "SELECT line_v1($1)";

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Silent {
    /// The server or the connection says no.
    Error(tokio_postgres::Error),
    /// It took too long. The link must not be used any more.
    Late,
}

impl From<tokio_postgres::Error> for Silent {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Error(error)
    }
}

impl From<Elapsed> for Silent {
    fn from(_: Elapsed) -> Self {
        Self::Late
    }
}

/// A connection to a server that was checked, with a schema that was checked.
pub(crate) struct Link {
    session: Session,
    commit: Statement,
    settle: Statement,
    line: Statement,
    patience: Duration,
}

impl Link {
    /// Connects; nothing takes longer than `patience` afterwards.
    pub(crate) async fn open(target: &Target, patience: Duration) -> Result<Self, OpenError> {
        let session = target.session().await?;
        let ready = async {
            schema::check(target, &session.client).await?;
            let client = &session.client;
            let prepared = async {
                client.execute(FORGET_ATTEMPTS, &[]).await?;
                Ok((client.prepare(COMMIT).await?, client.prepare(SETTLE).await?, client.prepare(LINE).await?))
            };
            prepared.await.map_err(|error| target.refused(&error))
        };
        let late = |_elapsed| OpenError::Unreachable {
            target: target.name().to_owned(),
            why: format!("no answer within {} s", patience.as_secs_f64()),
        };
        let (commit, settle, line) = tokio::time::timeout(patience, ready).await.map_err(late)??;
        Ok(Self { session, commit, settle, line, patience })
    }

    /// Whether it is known to be gone.
    pub(crate) fn is_lost(&self) -> bool {
        self.session.client.is_closed()
    }

    /// Waits until it is gone. Once it was, the link must not be used any more. Cancel-safe.
    pub(crate) async fn lost(&mut self) {
        // An error is a panic of its task: gone as well.
        let _ended = (&mut self.session.connection).await;
    }

    async fn one(&self, statement: &Statement, parameters: &[&(dyn ToSql + Sync)]) -> Result<Row, Silent> {
        Ok(tokio::time::timeout(self.patience, self.session.client.query_one(statement, parameters)).await??)
    }

    /// The number of a line.
    pub(crate) async fn line(&self, line: &InstanceName) -> Result<i32, Silent> {
        Ok(self.one(&self.line, &[&line.as_str()]).await?.try_get(0)?)
    }

    /// Carries out a batch as `attempt`, and forgets what became of `settled`.
    pub(crate) async fn commit(
        &self,
        attempt: Uuid,
        settled: Option<Uuid>,
        columns: &Columns<'_>,
    ) -> Result<Told, Silent> {
        let parameters: [&(dyn ToSql + Sync); 16] = [
            &attempt,
            &settled,
            &columns.fence,
            &columns.epoch,
            &columns.unit,
            &columns.slot,
            &columns.table,
            &columns.name,
            &columns.expect,
            &columns.expected,
            &columns.change,
            &columns.version,
            &columns.value,
            &columns.line,
            &columns.class,
            &columns.sequence,
        ];
        let row = self.one(&self.commit, &parameters).await?;
        Ok(Told { conflicts: row.try_get(0)?, numbers: row.try_get(1)? })
    }

    /// What became of `attempt`; `None` if it did not happen, and never will.
    pub(crate) async fn settle(&self, attempt: Uuid) -> Result<Option<Told>, Silent> {
        let row = self.one(&self.settle, &[&attempt]).await?;
        if row.try_get(0)? {
            return Ok(Some(Told { conflicts: row.try_get(1)?, numbers: row.try_get(2)? }));
        }
        Ok(None)
    }
}
