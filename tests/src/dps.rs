//! Emulated DPS instances.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dps_emulator::{CallKind, Config, Emulator, GroupConfig, HubConfig, TestCa, Tls};

use crate::device::FLEET_KEY;

/// The certificate authority of this test process; every [`TestDps`] and every gateway with TLS has a certificate of it.
///
/// # Panics
/// If it cannot be made.
#[must_use]
pub fn test_ca() -> &'static TestCa {
    static CA: OnceLock<TestCa> = OnceLock::new();
    CA.get_or_init(|| {
        dps_emulator::install_crypto();
        TestCa::generate().expect("a certificate authority can be made")
    })
}

/// An emulated DPS instance: TLS, an ID scope of its own, the group `fleet`, one hub, an ample quota, quick allocation.
#[derive(Debug)]
pub struct TestDps {
    /// Faults, journal, counters, quota, hubs: see its documentation.
    pub emulator: Emulator,
    id_scope: String,
    hubs: Vec<String>,
}

impl TestDps {
    /// Starts one.
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// Starts one whose configuration was changed by `change`.
    ///
    /// # Panics
    /// If it cannot start.
    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut config = Config {
            tls: Tls::Issued(test_ca().clone()),
            id_scope: format!("0ne{number:08X}"),
            groups: vec![GroupConfig::new("fleet", FLEET_KEY)],
            hubs: vec![HubConfig::new(format!("hub-{number}.azure-devices.net"))],
            assigning: Duration::from_millis(5),
            retry_after_seconds: 2,
            journal_capacity: 100_000,
            ..Config::default()
        };
        change(&mut config);
        let id_scope = config.id_scope.clone();
        let hubs = config.hubs.iter().map(|hub| hub.name.clone()).collect();
        let emulator = Emulator::start(config).await.expect("an emulator starts");
        Self { emulator, id_scope, hubs }
    }

    /// Its ID scope.
    #[must_use]
    pub fn id_scope(&self) -> &str {
        &self.id_scope
    }

    /// The hubs it was started with.
    #[must_use]
    pub fn hubs(&self) -> &[String] {
        &self.hubs
    }

    /// Register calls that came, of one device.
    #[must_use]
    pub fn registers_of(&self, registration_id: &str) -> usize {
        let mine = |entry: &dps_emulator::JournalEntry| {
            entry.call == CallKind::Register && entry.registration_id.as_deref() == Some(registration_id)
        };
        self.emulator.journal().iter().filter(|entry| mine(entry)).count()
    }

    /// Register calls that came, of all devices.
    #[must_use]
    pub fn registers(&self) -> u64 {
        self.emulator.stats().registers
    }
}
