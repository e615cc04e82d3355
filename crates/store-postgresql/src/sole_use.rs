//! One process at a time on a database, by an advisory lock of a session that does nothing else. To go once lines have owners in the database.
//!
//! It keeps a second process from starting. It is no fence: a process that loses its session and finds that another one has the lock ends, and what
//! it sent until then may still be carried out.

use std::time::Duration;

use tokio::time::Instant;

use crate::open_error::OpenError;
use crate::options::Options;
use crate::target::{Session, Target};

/// Who uses the database holds this advisory lock.
const LOCK: i64 = 0x6470_735f_736f_6c65;

/// How long the lock of a process that has ended may stay: the server has to notice that first.
const PATIENCE: Duration = Duration::from_secs(5);

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The longest pause between two tries to get a lost lock back.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// The server notices within half a minute that the machine of a process is gone; by itself it would take hours.
const NOTICE: &str = "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3";

const WHO_AM_I: &str =
    "SELECT pid, extract(epoch FROM backend_start)::text FROM pg_stat_activity WHERE pid = pg_backend_pid()";

/// A session of ours that we cannot reach any more may still be alive over there, with the lock.
const END: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND extract(epoch FROM backend_start)::text = $2";

const HOLDER: &str = "SELECT coalesce('session ' || l.pid || coalesce(' from ' || host(a.client_addr), '') \
    || coalesce(' since ' || to_char(a.backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), ''), '') \
    FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid) \
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND (l.classid::bigint << 32 | l.objid::bigint) = $1 \
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// No other process may use the database as long as this lives and its connection does.
pub struct SoleUse {
    target: Target,
    session: Session,
    me: (i32, String),
}

impl std::fmt::Debug for SoleUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SoleUse").field("target", &self.target).finish_non_exhaustive()
    }
}

impl SoleUse {
    /// Takes the database for this process. Waits 5 s for one that has just ended.
    ///
    /// # Errors
    /// [`OpenError::InUse`], which says by whom, and what else keeps a database from being used.
    pub async fn take(options: &Options) -> Result<Self, OpenError> {
        let target = Target::new(options)?;
        let (session, me) = take(&target, None).await?;
        Ok(Self { target, session, me })
    }

    /// Keeps the database for this process: takes it again when the connection was lost, as often as that happens. Returns once another process has
    /// it, with the reason why this one must end. Dropped, it gives the database back.
    pub async fn kept(mut self) -> String {
        loop {
            // An error is a panic of its task: gone as well.
            let _ended = (&mut self.session.connection).await;
            loop {
                match take(&self.target, Some(&self.me)).await {
                    Ok((session, me)) => {
                        (self.session, self.me) = (session, me);
                        break;
                    }
                    Err(error @ OpenError::InUse { .. }) => return error.to_string(),
                    Err(_away) => tokio::time::sleep(RETRY_EVERY).await,
                }
            }
        }
    }
}

async fn take(target: &Target, earlier: Option<&(i32, String)>) -> Result<(Session, (i32, String)), OpenError> {
    let session = target.session().await?;
    let begun = Instant::now();
    let taking = async {
        let client = &session.client;
        client.batch_execute(NOTICE).await?;
        if let Some((pid, began)) = earlier {
            client.query(END, &[pid, began]).await?;
        }
        loop {
            if client.query_one("SELECT pg_try_advisory_lock($1)", &[&LOCK]).await?.try_get(0)? {
                let me = client.query_one(WHO_AM_I, &[]).await?;
                return Ok(Ok((me.try_get(0)?, me.try_get(1)?)));
            }
            if begun.elapsed() >= PATIENCE {
                let holder = client.query_opt(HOLDER, &[&LOCK]).await?;
                return Ok(Err(holder.map(|row| row.try_get::<_, String>(0)).transpose()?));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let late = |_elapsed| OpenError::Unreachable { target: target.name().to_owned(), why: "no answer".to_owned() };
    let taken: Result<_, tokio_postgres::Error> = tokio::time::timeout(PATIENCE * 2, taking).await.map_err(late)?;
    match taken.map_err(|error| target.refused(&error))? {
        Ok(me) => Ok((session, me)),
        Err(holder) => {
            let holder = holder.filter(|text| !text.is_empty()).unwrap_or_else(|| "which has just ended".to_owned());
            Err(OpenError::InUse { target: target.name().to_owned(), holder })
        }
    }
}
