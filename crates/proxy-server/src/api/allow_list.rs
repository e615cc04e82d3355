//! An allow-list, as operators send it, and what became of its rows.

use proxy_core::use_cases::import::ImportRow;
use serde::Serialize;
use utoipa::ToSchema;

use super::members::{FromMembers, Members};
use super::names::{EnrollmentName, HardwareId, TenantName};
use super::problem::{ACT, EVERY, STORE, problems};

/// One device of an allow-list: a line of NDJSON, or a row of CSV whose first line names these as its columns. An empty text counts as
/// left out.
#[derive(Debug, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AllowListRow {
    /// What names the device.
    #[schema(value_type = HardwareId)]
    pub hardware_id: String,
    /// By which rules it is judged.
    #[schema(value_type = EnrollmentName)]
    pub enrollment: String,
    /// Whose it is; the enrollment's tenant.
    #[schema(value_type = Option<TenantName>)]
    pub tenant: Option<String>,
    /// The delivery it comes with.
    pub batch: Option<String>,
    /// Its individual symmetric key, in base64. Never told again.
    #[schema(write_only)]
    pub key: Option<String>,
}

impl FromMembers for AllowListRow {
    fn from_members(members: &Members) -> Result<Self, String> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        Ok(Self {
            hardware_id: members.required_text("hardwareId")?,
            enrollment: members.required_text("enrollment")?,
            tenant: given(members.text("tenant")?),
            batch: given(members.text("batch")?),
            key: given(members.text("key")?),
        })
    }
}

impl From<AllowListRow> for ImportRow {
    fn from(row: AllowListRow) -> Self {
        let AllowListRow { hardware_id, enrollment, tenant, batch, key } = row;
        Self { hardware_id, enrollment, tenant, batch, key }
    }
}

/// What became of the rows; every row is counted once.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct ImportOutcome {
    /// Rows that are neither blank nor the header, whether or not they can be read.
    pub rows: u64,
    /// Devices that were not known.
    pub new: u64,
    /// Devices whose entry was renewed.
    pub renewed: u64,
    /// Devices that were on the list exactly so.
    pub unchanged: u64,
    /// Rows that are wrong.
    pub rejected: u64,
    /// The first hundred of these, by their lines.
    pub problems: Vec<RowProblem>,
}

/// What is wrong with a row.
#[derive(Debug, Serialize, ToSchema)]
pub struct RowProblem {
    /// The line in which it begins, as an editor shows it.
    #[schema(minimum = 1)]
    pub line: u64,
    /// What is wrong.
    pub problem: String,
}

problems! {
    /// What `POST /v1/registrations/import` refuses.
    ImportProblems = [EVERY, ACT, STORE] + {
        400: [InvalidContentEncoding, IncompleteBody, WrongHeader, NoRows],
        408: [RequestTimeout],
        413: [BodyTooLarge, TooManyLines, LineTooLong],
        415: [UnsupportedMediaType, UnsupportedContentEncoding],
    }
}
