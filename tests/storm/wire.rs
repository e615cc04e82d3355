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

/// What becomes of the one connection that the service has to DPS.
#[derive(Debug, Clone, Copy)]
enum Harm {
    /// It is closed while it is idle.
    ClosedIdle,
    /// It is reset with a register on it that DPS has not seen.
    Reset,
    /// It is reset with a register on it that DPS has processed.
    LoseReply,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_on_a_reused_connection_is_one_register_on_the_wire() {
    // One service each: after a connection broke, others are not used twice for a while.
    for harm in [Harm::ClosedIdle, Harm::Reset, Harm::LoseReply] {
        one_register_on_the_wire(harm).await;
    }
}

async fn one_register_on_the_wire(harm: Harm) {
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

    // Two devices warm the connection; the second proves that it is reused.
    site.device("warm-a").ask_until_assigned(Duration::from_secs(30)).await;
    let before = connections();
    site.device("warm-b").ask_until_assigned(Duration::from_secs(30)).await;
    assert_eq!(connections(), before, "the connection was not reused, so this proves nothing");
    let fault = match harm {
        Harm::ClosedIdle => {
            emulator.pause().await;
            emulator.resume().await.unwrap();
            None
        }
        Harm::Reset => Some(FaultAction::Reset),
        Harm::LoseReply => Some(FaultAction::LoseReply),
    };
    let fault = fault.map(|action| emulator.add_fault(Fault::new(action).on(CallKind::Register).times(1)));
    for device in ["harmed", "after"] {
        site.device(device).ask_until_assigned(Duration::from_secs(30)).await;
    }
    let acted = emulator.faults().iter().find(|active| Some(active.id) == fault).map(|active| active.acted);
    assert_eq!(acted, fault.map(|_| 1), "{harm:?}");

    let on_wire = seen.register_lines.load(Ordering::Relaxed);
    let at_dps = registers(&emulator.journal()).count() as u64;
    let view = site.instance("eu-1").await;
    let counted = view["counts"]["registrations"].as_u64().unwrap();
    let measured = site.metric("instance_registrations_sent_total", "eu-1").await;
    println!(
        "wire: {harm:?}: {on_wire} registers on the wire, {at_dps} in DPS's journal, {counted} in the service's own count; {} connections",
        connections()
    );
    // What was reset before it was processed is repeated, knowingly; a lost reply is looked up, and repeated if in doubt.
    let repeated = view["counts"]["repeated"].as_u64().unwrap();
    let expected = match harm {
        Harm::ClosedIdle => 0..=0,
        Harm::Reset => 1..=1,
        Harm::LoseReply => 0..=1,
    };
    assert!(expected.contains(&repeated), "{harm:?}: {repeated} repeated");
    assert_eq!([on_wire, at_dps, counted, measured], [4 + repeated; 4], "{harm:?}");
    relay.abort();
    service.stop().await;
}
