//! The service with PostgreSQL as its store: set up, used, lost and found again, as an operator and a device see it.

use std::time::{Duration, Instant};

use dps_proxy_tests::{TestDevice, TestDps, TestGateway, eventually};
use postgresql_cluster::{Database, PASSWORD};

use crate::on_database::{builder, migrate, migrate_as_owner};

/// How many rows a query counts.
async fn count(database: &Database, sql: &str) -> i64 {
    database.admin().await.query_one(sql, &[]).await.unwrap().get(0)
}

async fn position(gateway: &TestGateway, device: &str) -> u64 {
    let reply = gateway.provision(&TestDevice::of_fleet(device)).await;
    assert_eq!(reply.status, 202, "{device}: {}", reply.body);
    reply.json["position"].as_u64().unwrap()
}

#[tokio::test]
async fn a_database_is_set_up_by_one_command_and_keeps_places_and_assignments_over_a_crash() {
    let Some(database) = Database::new(None, false).await else { return };
    let dps = TestDps::start().await;
    let mut gateway = builder(&dps, &database).set("instances.eu-1.quota_per_minute", "2").prepare();
    let (code, log) = gateway.run_to_end().await;
    assert_eq!(code, Some(1));
    assert!(log.contains("schema 0 of dps-proxy") && log.contains("dps-proxy migrate"), "{log}");
    let refused = migrate(&gateway, &[]);
    let why = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{why}");
    assert!(why.contains("permission denied") && !why.contains(PASSWORD), "{why}");
    assert_eq!(count(&database, "SELECT count(*) FROM pg_namespace WHERE nspname = 'dps_proxy'").await, 0);

    let said = migrate_as_owner(&gateway);
    assert!(said.contains("created schema 2; gateway was granted"), "{said}");
    let said = migrate_as_owner(&gateway);
    assert!(said.contains("has schema 2 already, nothing was changed"), "{said}");
    gateway.start_again().await;
    let hub = gateway.assigned(&TestDevice::of_fleet("first")).await.json["assignedHub"].clone();
    assert_eq!(hub, dps.hubs()[0]);
    gateway.assigned(&TestDevice::of_fleet("second")).await;
    for (before, device) in ["third", "fourth", "fifth"].iter().enumerate() {
        assert_eq!(position(&gateway, device).await, before as u64 + 1);
    }
    gateway.kill9();
    gateway.start_again().await;
    assert_eq!(gateway.provision(&TestDevice::of_fleet("first")).await.ok().json["assignedHub"], hub);
    for (before, device) in ["third", "fourth", "fifth"].iter().enumerate() {
        assert_eq!(position(&gateway, device).await, before as u64 + 1);
    }
    assert_eq!(position(&gateway, "sixth").await, 4, "behind those who were there before the crash");
    assert_eq!(dps.registers(), 2, "the quota of this minute was used before the crash");
    gateway
        .reconfigure(|config| {
            config.set("instances.eu-1.quota_per_minute", "1000");
        })
        .await;
    for device in ["third", "fourth", "fifth", "sixth"] {
        gateway.assigned(&TestDevice::of_fleet(device)).await;
        assert_eq!(dps.registers_of(device), 1);
    }
    assert_eq!(gateway.terminate().await.code(), Some(0));
    assert_eq!(count(&database, "SELECT count(*) FROM dps_proxy.device").await, 6);
    assert!(!gateway.log_lines().join("\n").contains(PASSWORD));
}

#[tokio::test]
async fn a_second_process_on_the_same_database_is_refused_until_the_first_one_has_ended() {
    let Some(database) = Database::new(None, false).await else { return };
    let dps = TestDps::start().await;
    let mut first = builder(&dps, &database).prepare();
    migrate_as_owner(&first);
    first.start_again().await;
    let mut second = builder(&dps, &database).prepare();
    let (code, log) = second.run_to_end().await;
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("in use by another dps-proxy (session ") && log.contains("a database of its own"), "{log}");
    first.assigned(&TestDevice::of_fleet("sn-1")).await;
    first.kill9();
    second.start_again().await;
    second.provision(&TestDevice::of_fleet("sn-1")).await.ok();
    // Somebody else has it by now: whoever lost it ends.
    let thief = database.admin().await;
    let held = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND mode = 'ExclusiveLock' \
        AND (classid::bigint << 32 | objid::bigint) = 7237411454980156517";
    let take = "SELECT pg_advisory_lock(7237411454980156517)";
    let keeper: i32 = thief.query_one(held, &[]).await.unwrap().get(0);
    let (taken, _) = tokio::join!(thief.batch_execute(take), async {
        let admin = database.admin().await;
        admin.execute("SELECT pg_terminate_backend($1)", &[&keeper]).await.unwrap();
    });
    taken.unwrap();
    assert_eq!(second.ended().await.code(), Some(1));
    let log = second.log_lines().join("\n");
    assert!(log.contains("it stopped because the database at") && log.contains("in use by another"), "{log}");
}

#[tokio::test]
async fn while_the_database_is_away_devices_come_back_later_and_nothing_leaves_and_it_goes_on_by_itself() {
    let Some(database) = Database::new(None, true).await else { return };
    let dps = TestDps::start().await;
    // One may leave each second.
    let paced = builder(&dps, &database).set("instances.eu-1.quota_per_minute", "60").set("instances.eu-1.burst", "1");
    let mut gateway = paced.prepare();
    migrate_as_owner(&gateway);
    gateway.start_again().await;
    let pid = gateway.pid();
    let known = TestDevice::of_fleet("known");
    let hub = gateway.assigned(&known).await.json["assignedHub"].clone();
    let waiting: Vec<String> = (0..8).map(|number| format!("waits-{number}")).collect();
    for device in &waiting {
        gateway.provision(&TestDevice::of_fleet(device)).await;
    }
    database.cluster.stop().await;
    eventually("the gateway notices", async || {
        gateway.operator_get("/metrics").await.body.contains("dps_proxy_store_writable 0")
    })
    .await;
    let (sent, since) = (dps.registers(), Instant::now());
    for number in 0..5 {
        let told = gateway.provision(&TestDevice::of_fleet(&format!("new-{number}"))).await;
        assert!((1..=120).contains(&told.retry_after()), "{told:?}");
        told.problem(503, "store-unavailable");
    }
    gateway.provision(&known).await.problem(503, "store-unavailable");
    gateway.backend_get("/v1/devices/known/assignment").await.problem(503, "store-unavailable");
    eventually("three more would have left", async || since.elapsed() > Duration::from_secs(3)).await;
    assert_eq!(dps.registers(), sent, "nothing leaves that could not be noted");
    database.cluster.resume().await;
    eventually("it goes on by itself", async || gateway.provision(&known).await.status == 200).await;
    assert_eq!(gateway.provision(&known).await.ok().json["assignedHub"], hub);
    for device in waiting.iter().map(String::as_str).chain(["new-0"]) {
        gateway.assigned(&TestDevice::of_fleet(device)).await;
        assert_eq!(dps.registers_of(device), 1);
    }
    assert_eq!(gateway.pid(), pid);
    // It is still the only one.
    let (code, log) = builder(&dps, &database).prepare().run_to_end().await;
    assert!(code == Some(1) && log.contains("in use by another dps-proxy"), "{log}");
    assert_eq!(gateway.terminate().await.code(), Some(0));
}

#[tokio::test]
async fn each_database_that_cannot_be_used_is_told_with_the_way_out_and_nothing_is_written() {
    let Some(database) = Database::new(None, false).await else { return };
    let dps = TestDps::start().await;
    migrate_as_owner(&builder(&dps, &database).prepare());
    let port = database.cluster.port;
    let at = |port: u16, name: &str| format!("\"postgresql://gateway@127.0.0.1:{port}/{name}\"");
    let connection = "store.postgresql.connection";
    let ca = database.cluster.root_pem();
    let sound = || builder(&dps, &database);
    for (gateway, expected) in [
        (sound().secret("gateway.password", "hunter2"), "password authentication failed"),
        (sound().set(connection, &at(1, &database.name)), "cannot be reached"),
        (sound().set(connection, &at(port, "nowhere")), "does not exist"),
        (sound().set("store.postgresql.tls", "\"on\"").set("store.postgresql.ca_file", "\"ca.pem\""), "certificate"),
        (sound().set("store.postgresql.durability", "\"synchronous\""), "synchronous_standby_names"),
        (sound().set("store.create", "false"), "holds no records, and store.create = false"),
    ] {
        let (code, log) = gateway.prepare().run_to_end().await;
        assert_eq!(code, Some(1), "{expected}: {log}");
        assert!(log.contains(expected), "{expected}: {log}");
        assert!(!log.contains("hunter2") && !log.contains(PASSWORD), "{log}");
    }
    let admin = database.admin().await;
    for (sql, back, expected) in [
        (
            "INSERT INTO dps_proxy.schema VALUES (99, 99, 'of a later release')",
            "DELETE FROM dps_proxy.schema WHERE version = 99",
            "run a newer release",
        ),
        (
            "REVOKE SELECT ON dps_proxy.schema FROM gateway",
            "GRANT SELECT ON dps_proxy.schema TO gateway",
            "dps-proxy migrate --grant-to",
        ),
        (
            "REVOKE SELECT ON dps_proxy.device FROM gateway",
            "GRANT SELECT ON dps_proxy.device TO gateway",
            "permission denied for table device",
        ),
    ] {
        admin.batch_execute(sql).await.unwrap();
        let (code, log) = sound().prepare().run_to_end().await;
        admin.batch_execute(back).await.unwrap();
        assert_eq!(code, Some(1), "{expected}: {log}");
        assert!(log.contains(expected), "{expected}: {log}");
    }
    assert_eq!(
        count(&database, "SELECT (SELECT count(*) FROM dps_proxy.entry) + (SELECT count(*) FROM dps_proxy.device)")
            .await,
        0
    );
    // With the right authority the connection is encrypted, and none of this keeps the service from starting.
    let encrypted = sound().secret("db-ca.pem", &ca).set("store.postgresql.ca_file", "\"db-ca.pem\"");
    let gateway = encrypted.set("store.postgresql.tls", "\"on\"").start().await;
    let sessions = "SELECT count(*) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) \
        WHERE NOT s.ssl AND a.datname = current_database() AND a.usename = 'gateway'";
    assert_eq!(count(&database, sessions).await, 0);
    gateway.assigned(&TestDevice::of_fleet("sn-1")).await;
}

#[tokio::test]
async fn a_database_that_does_not_sync_is_refused() {
    let Some(database) = Database::new(None, true).await else { return };
    let dps = TestDps::start().await;
    let mut gateway = builder(&dps, &database).prepare();
    migrate_as_owner(&gateway);
    let admin = database.admin().await;
    let set = async |value: &str| {
        admin.batch_execute(&format!("ALTER SYSTEM SET fsync = {value}")).await.unwrap();
        admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        eventually("the server has read its settings", async || {
            admin.query_one("SHOW fsync", &[]).await.unwrap().get::<_, String>(0) == value
        })
        .await;
    };
    set("off").await;
    let (code, log) = gateway.run_to_end().await;
    set("on").await;
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("fsync = off") && log.contains("Switch it on"), "{log}");
}

#[tokio::test]
async fn a_schema_can_be_brought_up_at_the_start_and_sled_has_none() {
    let Some(database) = Database::new(None, false).await else { return };
    let dps = TestDps::start().await;
    let owner = format!("\"host=127.0.0.1 port={} user=owner dbname={}\"", database.cluster.port, database.name);
    let mut gateway = builder(&dps, &database)
        .set("store.postgresql.connection", &owner)
        .set("store.postgresql.migrate_on_start", "true")
        .start()
        .await;
    gateway.assigned(&TestDevice::of_fleet("sn-1")).await;
    gateway.terminate().await;
    let embedded = TestGateway::builder().instance("eu-1", &dps).prepare();
    let refused = migrate(&embedded, &[]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("nothing to migrate"));
}
