//! One register on the wire per ledger entry: counted by a relay that sees every connection and every byte between the service and DPS.
//!
//! A connection that is reset or has gone stale is where HTTP libraries retry on their own; a hidden retry would be a registration that
//! no ledger knows of.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dps_emulator::{CallKind, Emulator, Fault, FaultAction, Tls};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Instance, Plan, Site, emulator_config, registers};

/// What went through the relay.
#[derive(Default)]
struct Seen {
    connections: AtomicU64,
    register_lines: AtomicU64,
}

/// Passes bytes on, and the end of a connection as a reset.
async fn relay(listener: TcpListener, emulator: std::net::SocketAddr, seen: Arc<Seen>) {
    while let Ok((client, _)) = listener.accept().await {
        seen.connections.fetch_add(1, Ordering::Relaxed);
        let seen = Arc::clone(&seen);
        tokio::spawn(async move {
            // A reset, whoever ends it and however: the harder end for the client.
            client.set_zero_linger().unwrap();
            let Ok(server) = TcpStream::connect(emulator).await else { return };
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            let up = async {
                let mut buffer = vec![0; 65_536];
                while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
                    let lines = buffer[..length].windows(4).filter(|window| window == b"PUT ").count();
                    seen.register_lines.fetch_add(lines as u64, Ordering::Relaxed);
                    if to_server.write_all(&buffer[..length]).await.is_err() {
                        return;
                    }
                }
            };
            let down = tokio::io::copy(&mut from_server, &mut to_client);
            tokio::select! {
                () = up => {}
                _ended = down => {}
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_on_a_reused_connection_is_one_register_on_the_wire() {
    const ROUNDS: u64 = 2;
    let mut config = emulator_config("eu-1", 1000);
    config.tls = Tls::Off;
    config.retry_after_seconds = 2;
    let emulator = Emulator::start(config).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Seen::default());
    let relay = tokio::spawn(relay(listener, emulator.addr(), Arc::clone(&seen)));
    let site = Site::new(&Plan {
        instances: vec![Instance { name: "eu-1".to_owned(), endpoint, quota: 1000, burst: 100 }],
        registration: "backoff_min = \"100ms\"\nbackoff_max = \"1s\"\nidle_connections_max = 1".to_owned(),
        ..Plan::default()
    });
    let service = site.start().await;
    let connections = || seen.connections.load(Ordering::Relaxed);

    let (mut resets, mut devices) = (0, 0);
    for round in 0..ROUNDS {
        // Two devices warm the connection; the second proves that it is reused.
        for warm in ["a", "b"] {
            let before = connections();
            site.device(&format!("warm-{round}{warm}")).ask_until_assigned(Duration::from_secs(30)).await;
            devices += 1;
            if warm == "b" {
                assert_eq!(connections(), before, "the connection was not reused, so this proves nothing");
            }
        }
        // Then the register is reset on that connection: once before, once after DPS has processed it.
        let action = if round % 2 == 0 { FaultAction::Reset } else { FaultAction::LoseReply };
        let fault = emulator.add_fault(Fault::new(action).on(CallKind::Register).times(1));
        site.device(&format!("reset-{round}")).ask_until_assigned(Duration::from_secs(30)).await;
        assert_eq!(emulator.faults().iter().find(|active| active.id == fault).map(|active| active.acted), Some(1));
        devices += 1;
        resets += 1;
        // And a connection that DPS closed while it was idle.
        emulator.pause().await;
        emulator.resume().await.unwrap();
        site.device(&format!("stale-{round}")).ask_until_assigned(Duration::from_secs(30)).await;
        devices += 1;
    }
    let on_wire = seen.register_lines.load(Ordering::Relaxed);
    let at_dps = registers(&emulator.journal()).count() as u64;
    let view = site.instance("eu-1").await;
    let counted = view["counts"]["registrations"].as_u64().unwrap();
    let measured = site.metric("instance_registrations_sent_total", "eu-1").await;
    println!(
        "wire: {resets} resets on reused connections, {ROUNDS} stale connections: {on_wire} registers on the wire, {at_dps} in DPS's journal, \
         {counted} in the service's own count; {} connections",
        connections()
    );
    // What was reset before it was processed is repeated, knowingly; a lost reply is looked up, and repeated if in doubt.
    let repeated = view["counts"]["repeated"].as_u64().unwrap();
    assert!((ROUNDS / 2..=ROUNDS).contains(&repeated), "{repeated} repeated");
    assert_eq!([on_wire, at_dps, counted, measured], [devices + repeated; 4]);
    relay.abort();
    service.stop().await;
}
