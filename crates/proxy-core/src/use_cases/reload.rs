//! New settings while the service runs: whole, or not at all.

use std::sync::Arc;

use crate::base::{Base, NotApplicable, StoreError};
use crate::owner::Owner;
use crate::placement::Occupancy;
use crate::records::Records;
use crate::records::scopes::{read_scopes, remember_scopes};
use crate::settings::Settings;

/// Applies settings. See the module.
#[derive(Debug)]
pub(crate) struct Reload {
    base: Arc<Base>,
    records: Arc<Records>,
    owner: Arc<Owner>,
    applying: tokio::sync::Mutex<()>,
}

impl Reload {
    pub(crate) fn new(base: Arc<Base>, records: Arc<Records>, owner: Arc<Owner>) -> Self {
        Self { base, records, owner, applying: tokio::sync::Mutex::default() }
    }

    /// Applies new settings whole, or none of them: rates, bursts, bounds, weights, draining and enrollments at once, in mid-storm,
    /// without losing a place. Remembered refusals are dropped, as the change may have mended their cause.
    ///
    /// # Errors
    /// [`NotApplicable`] with every reason; the old settings stay in force.
    pub(crate) async fn apply(&self, new: Settings) -> Result<(), NotApplicable> {
        let _one_at_a_time = self.applying.lock().await;
        let old = self.base.settings();
        if *old == new {
            self.base.forget_refusals();
            return Ok(());
        }
        check_applicable(&self.records.occupancy.lock(), &old, &new)?;
        let renewed = self.owner.renew(&old, &new).await?;
        self.remember_scopes_of(&new).await?;
        let new = Arc::new(new);
        let applicable = {
            // Asked again, as devices were placed meanwhile: they are placed by the settings in force under this lock.
            let occupancy = self.records.occupancy.lock();
            let applicable = check_applicable(&occupancy, &old, &new);
            if applicable.is_ok() {
                self.base.put_in_force(Arc::clone(&new));
                self.owner.put_in_force(&renewed);
            }
            applicable
        };
        if let Err(problems) = applicable {
            let _ = self.remember_scopes_of(&old).await;
            return Err(problems);
        }
        self.base.forget_refusals();
        self.owner.follow_settings(renewed, &old, &new);
        Ok(())
    }

    /// The ID scopes are on disk before a record can refer to them.
    async fn remember_scopes_of(&self, settings: &Settings) -> Result<(), NotApplicable> {
        let refused = |error: StoreError| NotApplicable(vec![error.to_string()]);
        let scopes = read_scopes(&*self.base.store, settings).await.map_err(|error| refused(error.into()))?;
        remember_scopes(&self.base, scopes).await.map_err(|error| refused(error.into()))
    }
}

fn check_applicable(occupancy: &Occupancy, old: &Settings, new: &Settings) -> Result<(), NotApplicable> {
    let mut problems = Vec::new();
    for (name, before) in &old.instances {
        let filled = occupancy.filled(name);
        match new.instances.get(name) {
            None if filled > 0 => problems.push(format!(
                "instances.{name}: {filled} device records refer to this instance, so it cannot be removed; set draining = true instead"
            )),
            Some(after) if after.id_scope != before.id_scope && filled > 0 => problems.push(format!(
                "instances.{name}.id_scope: {filled} device records refer to this instance, so its ID scope cannot change; add another instance"
            )),
            None | Some(_) => {}
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(NotApplicable(problems)) }
}
