//! `store copy`: a fleet moves from one store to the other, and nobody loses its hub or its place.

use std::fmt::Write as _;

use dps_proxy_tests::{TestDevice, TestDps, TestGateway, binary, eventually};
use postgresql_cluster::Database;

use crate::on_database::{builder, migrate_as_owner};

/// Many pages of a copy.
const LISTED: usize = 1500;

/// Exit code and everything that it said.
fn copy(from: &TestGateway, to: &TestGateway) -> (Option<i32>, String) {
    let mut command = binary::command();
    command.args(["store", "copy", "--from"]).arg(from.config_path()).arg("--to").arg(to.config_path());
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
    (output.status.code(), said)
}

async fn position(gateway: &TestGateway, device: &str) -> u64 {
    let reply = gateway.provision(&TestDevice::of_fleet(device)).await;
    assert_eq!(reply.status, 202, "{device}: {}", reply.body);
    reply.json["position"].as_u64().unwrap()
}

/// Some have a hub, some wait, many are listed.
async fn live_a_day(gateway: &mut TestGateway) {
    gateway.start_again().await;
    for device in ["known-1", "known-2"] {
        gateway.assigned(&TestDevice::of_fleet(device)).await;
    }
    for device in ["waits-2", "waits-1"] {
        position(gateway, device).await;
    }
    let mut csv = "hardwareId,enrollment\n".to_owned();
    for number in 0..LISTED {
        writeln!(csv, "listed-{number:05},fleet").unwrap();
    }
    gateway.import_csv(csv).await.ok();
    assert_eq!(gateway.terminate().await.code(), Some(0));
}

async fn assert_goes_on(gateway: &mut TestGateway, dps: &TestDps, newcomer: &str, waiting: &[&str]) {
    gateway.start_again().await;
    for device in ["known-1", "known-2"] {
        let hub = gateway.provision(&TestDevice::of_fleet(device)).await.ok().json["assignedHub"].clone();
        assert_eq!(hub, dps.hubs()[0]);
    }
    for (before, device) in waiting.iter().enumerate() {
        assert_eq!(position(gateway, device).await, before as u64 + 1, "{device}");
    }
    let behind = waiting.len() as u64 + 1;
    assert_eq!(position(gateway, newcomer).await, behind, "numbers go on behind those that were copied");
    gateway.operator_get("/v1/registrations/listed-01499").await.ok();
    assert_eq!(dps.registers(), 2, "the quota slots were copied too");
    gateway.terminate().await;
}

#[tokio::test]
async fn a_fleet_moves_to_the_database_and_back_also_when_it_is_interrupted() {
    let Some(database) = Database::new(None, false).await else { return };
    let dps = TestDps::start().await;
    let slow = "instances.eu-1.quota_per_minute";
    let mut embedded = TestGateway::builder().instance("eu-1", &dps).set(slow, "2").prepare();
    let mut shared = builder(&dps, &database).set(slow, "2").prepare();
    let (code, said) = copy(&embedded, &shared);
    assert!(code == Some(1) && said.contains("holds no store"), "{said}");
    live_a_day(&mut embedded).await;
    let (code, said) = copy(&embedded, &shared);
    assert!(code == Some(1) && said.contains("dps-proxy migrate"), "{said}");
    migrate_as_owner(&shared);

    // In the midst of the devices the target refuses.
    let admin = database.admin().await;
    admin
        .batch_execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no room'; END $$;
             CREATE TRIGGER refuse BEFORE INSERT ON dps_proxy.device FOR EACH ROW WHEN (NEW.name = 'listed-00700') EXECUTE FUNCTION refuse()",
        )
        .await
        .unwrap();
    let (code, said) = copy(&embedded, &shared);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("no room") && said.contains("run the same command again to go on"), "{said}");
    let copied: i64 = admin.query_one("SELECT count(*) FROM dps_proxy.device", &[]).await.unwrap().get(0);
    assert!(0 < copied && copied < 1000, "{copied}");
    let (code, log) = shared.run_to_end().await;
    assert!(code == Some(1) && log.contains("a copy that is not finished"), "{log}");
    admin.batch_execute("DROP TRIGGER refuse ON dps_proxy.device").await.unwrap();
    let (code, said) = copy(&embedded, &shared);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("going on with the copy") && said.contains("devices: 1504"), "{said}");
    let (code, said) = copy(&embedded, &shared);
    assert!(code == Some(1) && said.contains("holds something already"), "{said}");
    let (code, said) = copy(&embedded, &embedded);
    assert!(code == Some(2) && said.contains("the same store"), "{said}");
    assert_goes_on(&mut shared, &dps, "later-1", &["waits-2", "waits-1"]).await;

    // And back, into a new embedded store. In the midst of the devices the source cannot be read.
    let mut back = TestGateway::builder().instance("eu-1", &dps).set(slow, "2").prepare();
    let damage = "UPDATE dps_proxy.device SET value = convert_to(translate(convert_from(value, 'UTF8'), '{}', '}{'), 'UTF8') \
        WHERE name = 'listed-00700'";
    admin.batch_execute(damage).await.unwrap();
    let (code, said) = copy(&shared, &back);
    assert!(code == Some(1) && said.contains("the record of listed-00700 cannot be read"), "{said}");
    admin.batch_execute(damage).await.unwrap();
    let (code, said) = copy(&shared, &back);
    assert!(code == Some(0) && said.contains("going on with the copy") && said.contains("devices: 1505"), "{said}");
    assert_goes_on(&mut back, &dps, "later-2", &["waits-2", "waits-1", "later-1"]).await;
}

#[tokio::test]
async fn a_store_that_is_in_use_is_not_copied() {
    let Some(database) = Database::new(None, false).await else { return };
    let dps = TestDps::start().await;
    let embedded = TestGateway::builder().instance("eu-1", &dps).start().await;
    let mut shared = builder(&dps, &database).prepare();
    migrate_as_owner(&shared);
    let (code, said) = copy(&embedded, &shared);
    assert!(code == Some(1) && said.contains("in use by another process"), "{said}");
    shared.start_again().await;
    let other = TestGateway::builder().instance("eu-1", &dps).prepare();
    let (code, said) = copy(&shared, &other);
    assert!(code == Some(1) && said.contains("in use by another dps-proxy"), "{said}");
    assert!(!other.directory().join("store").exists(), "nothing was written");
}

#[tokio::test]
async fn a_copy_that_is_killed_goes_on() {
    let Some(database) = Database::new(None, false).await else { return };
    let dps = TestDps::start().await;
    let slow = "instances.eu-1.quota_per_minute";
    let mut embedded = TestGateway::builder().instance("eu-1", &dps).set(slow, "2").prepare();
    let mut shared = builder(&dps, &database).set(slow, "2").prepare();
    live_a_day(&mut embedded).await;
    migrate_as_owner(&shared);
    let admin = database.admin().await;
    admin
        .batch_execute(
            "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN NEW; END $$;
             CREATE TRIGGER wait BEFORE INSERT ON dps_proxy.device FOR EACH ROW WHEN (NEW.name = 'listed-00700') EXECUTE FUNCTION wait()",
        )
        .await
        .unwrap();
    let mut command = binary::command();
    command.args(["store", "copy", "--from"]).arg(embedded.config_path()).arg("--to").arg(shared.config_path());
    let mut copying = command.spawn().unwrap();
    eventually("it is in the midst of the devices", async || {
        let waits =
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()";
        admin.query_one(waits, &[]).await.unwrap().get::<_, i64>(0) > 0
    })
    .await;
    copying.kill().unwrap();
    copying.wait().unwrap();
    let rest = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'gateway' AND datname = current_database()";
    admin.query(rest, &[]).await.unwrap();
    admin.batch_execute("DROP TRIGGER wait ON dps_proxy.device").await.unwrap();
    let (code, said) = copy(&embedded, &shared);
    assert!(code == Some(0) && said.contains("going on with the copy") && said.contains("devices: 1504"), "{said}");
    assert_goes_on(&mut shared, &dps, "later", &["waits-2", "waits-1"]).await;
}
