//! Reads, over a bounded number of connections.

use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime, TimeoutType};
use tokio::time::Instant;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::open_error::{describe, is_refusal};
use crate::target::Target;

/// A read is asked again so often if its connection turns out to be gone: after a restart of the server each of them is.
const TRIES_MAX: usize = 3;

/// Reads of one kind.
pub(crate) struct Reader {
    pool: Pool,
    timeout: Duration,
    target: String,
}

impl Reader {
    pub(crate) fn new(target: &Target, connections: usize, timeout: Duration) -> Self {
        let config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_connect(target.config().clone(), target.clone(), config);
        let pool = Pool::builder(manager)
            .max_size(connections.max(1))
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(timeout))
            .create_timeout(Some(timeout))
            .build()
            .expect("a pool with a runtime can wait");
        Self { pool, timeout, target: target.name().to_owned() }
    }

    /// Answers no more.
    pub(crate) fn close(&self) {
        self.pool.close();
    }

    /// The rows of a query. What fails says why.
    pub(crate) async fn rows(&self, sql: &'static str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, String> {
        let deadline = Instant::now() + self.timeout;
        let late = || format!("PostgreSQL at {} did not answer within {} s", self.target, self.timeout.as_secs_f64());
        let mut why = String::new();
        for _ in 0..TRIES_MAX {
            let client = match tokio::time::timeout_at(deadline, self.pool.get()).await {
                Ok(Ok(client)) => client,
                Ok(Err(error)) => return Err(self.no_connection(&error)),
                Err(_) => return Err(late()),
            };
            let asked = async { client.query(&client.prepare_cached(sql).await?, parameters).await };
            match tokio::time::timeout_at(deadline, asked).await {
                Ok(Ok(rows)) => return Ok(rows),
                Ok(Err(error)) => {
                    why = format!("PostgreSQL at {}: {}", self.target, describe(&error));
                    if is_refusal(&error) {
                        return Err(why);
                    }
                    drop(Object::take(client));
                }
                Err(_) => {
                    // Whatever it would still answer is of no use.
                    drop(Object::take(client));
                    return Err(late());
                }
            }
        }
        Err(why)
    }

    fn no_connection(&self, error: &PoolError) -> String {
        let why = match error {
            PoolError::Timeout(TimeoutType::Wait) => "all connections that read are busy".to_owned(),
            PoolError::Timeout(_) => format!("no answer within {} s", self.timeout.as_secs_f64()),
            PoolError::Backend(error) => describe(error),
            PoolError::Closed => return format!("the store at {} is closed", self.target),
            other => other.to_string(),
        };
        format!("PostgreSQL at {} cannot be reached: {why}", self.target)
    }
}
