//! A service whose store is a database.

use std::process::Output;

use dps_proxy_tests::{GatewayBuilder, TestDps, TestGateway, binary};
use postgresql_cluster::{Database, PASSWORD};

/// A service on this database, as a role that may create nothing.
pub(crate) fn builder(dps: &TestDps, database: &Database) -> GatewayBuilder {
    let at = format!("postgresql://gateway@127.0.0.1:{}/{}", database.cluster.port, database.name);
    TestGateway::builder()
        .instance("eu-1", dps)
        .unset("store.path")
        .unset("store.cache_mib")
        .unset("store.free_space_min_mib")
        .set("store.backend", "\"postgresql\"")
        .set("store.postgresql.connection", &format!("\"{at}\""))
        .set("store.postgresql.password_file", "\"gateway.password\"")
        .secret("gateway.password", &format!("{PASSWORD}\n"))
        .secret("owner.password", PASSWORD)
}

/// Runs `migrate` on its configuration.
pub(crate) fn migrate(gateway: &TestGateway, arguments: &[&str]) -> Output {
    let mut command = binary::command();
    command.args(["migrate", "--config"]).arg(gateway.config_path()).args(arguments);
    command.current_dir(gateway.directory()).output().unwrap()
}

/// As the role that owns the tables; what it said.
pub(crate) fn migrate_as_owner(gateway: &TestGateway) -> String {
    let done = migrate(gateway, &["--user", "owner", "--password-file", "owner.password"]);
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}
