//! Allow-lists: devices that may come.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::base::task_names::IMPORT;
use crate::base::{Base, StoreError};
use crate::device::{Claim, Command, Draft, Listing, Record, Rejected};
use crate::ids::RegistrationId;
use crate::records::{CAS_ATTEMPTS_MAX, Records};
use crate::secret::SymmetricKey;
use crate::settings::{Settings, UpstreamAttestation};
use crate::store::CommitError;

/// One line of an allow-list.
#[derive(Debug, Clone)]
pub struct ImportRow {
    /// The hardware ID in whatever case.
    pub hardware_id: String,
    /// By which rules.
    pub enrollment: String,
    /// Whose, if the file says so; must be the enrollment's tenant.
    pub tenant: Option<String>,
    /// The delivery.
    pub batch: Option<String>,
    /// The device's individual key, base64. A secret.
    pub key: Option<String>,
}

/// What became of one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Imported {
    /// The device was not known.
    New,
    /// It was, and its entry was renewed.
    Renewed,
    /// It was, exactly so.
    Unchanged,
    /// The line is wrong; the text says how.
    Rejected(String),
}

/// Puts devices onto allow-lists.
#[derive(Debug, Clone)]
pub(crate) struct Import {
    base: Arc<Base>,
    records: Arc<Records>,
}

impl Import {
    pub(crate) const fn new(base: Arc<Base>, records: Arc<Records>) -> Self {
        Self { base, records }
    }

    /// Puts devices onto the allow-list, at most [`MAX_WRITES`](crate::store::MAX_WRITES) at once, durably. Lines are judged one by
    /// one, in order: a wrong one does not stop the others, and of two for one device the last one stands. Safe to repeat. It goes on to
    /// the end if nobody waits for it any more, on the gateway's own threads: the caller may read the next lines meanwhile.
    ///
    /// # Errors
    /// If the store fails; none of these lines is on the list then.
    pub(crate) async fn import(&self, rows: Vec<ImportRow>) -> Result<Vec<Imported>, StoreError> {
        let import = self.clone();
        self.base.on_own_threads(IMPORT, async move { import.import_here(&rows).await }).await
    }

    async fn import_here(&self, rows: &[ImportRow]) -> Result<Vec<Imported>, StoreError> {
        let settings = self.base.settings();
        for _ in 0..CAS_ATTEMPTS_MAX {
            let mut outcomes = Vec::with_capacity(rows.len());
            let mut changed: BTreeMap<RegistrationId, Draft> = BTreeMap::new();
            for row in rows {
                outcomes.push(match self.import_row(&settings, row, &mut changed).await? {
                    Ok(imported) => imported,
                    Err(problem) => Imported::Rejected(problem),
                });
            }
            if changed.is_empty() {
                return Ok(outcomes);
            }
            match self.base.commit(changed.values().map(Draft::write).collect()).await {
                Ok(_) => return Ok(outcomes),
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Contended)
    }

    /// `changed` holds what the lines before this one have made of their devices.
    async fn import_row(
        &self,
        settings: &Settings,
        row: &ImportRow,
        changed: &mut BTreeMap<RegistrationId, Draft>,
    ) -> Result<Result<Imported, String>, StoreError> {
        let (id, listing) = match check_row(settings, row) {
            Ok(checked) => checked,
            Err(problem) => return Ok(Err(problem)),
        };
        let now = self.base.now();
        let stored = match changed.get(&id) {
            Some(_) => None,
            None => self.records.load(&id).await?,
        };
        let (mut draft, known) = match (changed.get(&id), stored) {
            (Some(draft), _) => (draft.clone(), true),
            (None, Some(stored)) => {
                let known = !stored.record.is_unclaimed();
                (self.records.draft(stored, now), known)
            }
            (None, None) => {
                let Claim { tenant, enrollment, .. } = listing.claim.clone();
                (self.records.new_draft(Record::new(id.clone(), tenant, enrollment), now), false)
            }
        };
        let before = draft.record().clone();
        match draft.apply(Command::List(listing)) {
            Ok(()) if *draft.record() == before => return Ok(Ok(Imported::Unchanged)),
            Ok(()) => {}
            Err(Rejected::OtherTenant) => return Ok(Err(format!("{id} belongs to tenant {}", before.tenant()))),
            Err(Rejected::Retired) => {
                return Ok(Err(format!(
                    "{id} is retired; delete it with dpsRecordDeleted=true before you import it again"
                )));
            }
            Err(rejected) => return Ok(Err(format!("{id}: {rejected}"))),
        }
        changed.insert(id, draft);
        Ok(Ok(if known { Imported::Renewed } else { Imported::New }))
    }
}

/// A line that makes sense in itself.
fn check_row(settings: &Settings, row: &ImportRow) -> Result<(RegistrationId, Listing), String> {
    let id = RegistrationId::parse(&row.hardware_id).map_err(|error| format!("hardwareId: {error}"))?;
    let found = settings.enrollments.get_key_value(row.enrollment.as_str());
    let (name, enrollment) =
        found.ok_or_else(|| format!("enrollment: there is no enrollment {:?} in the configuration", row.enrollment))?;
    if row.tenant.as_deref().is_some_and(|tenant| tenant != enrollment.tenant.as_str()) {
        return Err(format!("tenant: enrollment {name} belongs to tenant {}", enrollment.tenant));
    }
    match (&enrollment.upstream, &row.key) {
        (UpstreamAttestation::Individual, None) => {
            return Err(format!("key: enrollment {name} is individual, so every device needs its key"));
        }
        (UpstreamAttestation::Group { .. }, Some(_)) => {
            return Err(format!("key: enrollment {name} derives keys from its group, so a device has none of its own"));
        }
        (UpstreamAttestation::Individual, Some(key)) => {
            SymmetricKey::from_base64(key).map_err(|error| format!("key: {error}"))?;
        }
        (UpstreamAttestation::Group { .. }, None) => {}
    }
    let spelling = (row.hardware_id != id.as_str()).then(|| row.hardware_id.clone());
    let claim = Claim { tenant: enrollment.tenant.clone(), enrollment: name.clone(), spelling };
    Ok((id, Listing { claim, batch: row.batch.clone(), key: row.key.clone() }))
}
