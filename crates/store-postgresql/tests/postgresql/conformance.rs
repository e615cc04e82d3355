//! The suite that every backend passes.

use std::sync::Arc;
use std::time::Duration;

use proxy_core::store::Store;
use proxy_core::store::conformance::{Fixture, conformance};
use store_postgresql::PostgresqlStore;

use crate::cluster::Database;

/// What a commit passes at its end: everything is applied, and nothing is visible yet.
const GATE: &str = "
    CREATE FUNCTION dps_proxy.pass_the_gate() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER gate AFTER INSERT ON dps_proxy.attempt
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION dps_proxy.pass_the_gate();
    CREATE CONSTRAINT TRIGGER gate AFTER INSERT OR UPDATE ON dps_proxy.lease
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION dps_proxy.pass_the_gate()";

fn wait_for<T>(future: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(future))
}

async fn fixture() -> Option<Fixture> {
    let database = Database::new().await?;
    let gate = database.admin().await;
    gate.batch_execute(GATE).await.unwrap();
    let mut options = database.options();
    // The gate is held for as long as a test likes.
    let long = Duration::from_secs(60);
    (options.commit_timeout, options.lock_timeout, options.lease_timeout) = (long, long, 2 * long);
    let store = Arc::new(PostgresqlStore::open(options.clone()).await.unwrap());
    let killed = move || -> Arc<dyn Store> { Arc::new(wait_for(PostgresqlStore::open(options.clone())).unwrap()) };
    let hold = move |hold| {
        let sql = if hold { "SELECT pg_advisory_lock(1)" } else { "SELECT pg_advisory_unlock(1)" };
        wait_for(gate.batch_execute(sql)).unwrap();
    };
    Some(Fixture { store, hold: Box::new(hold), killed: Box::new(killed), _keep: Box::new(database) })
}

conformance!(match fixture().await {
    Some(fixture) => fixture,
    None => return,
});
