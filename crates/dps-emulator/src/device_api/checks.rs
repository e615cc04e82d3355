//! What is checked about a call before its credential: version, size, content type, body and registration ID.

use super::message::Request;
use super::refusal::Refusal;
use crate::wire::{DeviceRegistration, MESSAGE_BYTES_MAX, is_api_version, is_registration_id};

pub(super) fn check_version(query: &str) -> Result<(), Refusal> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix("api-version="));
    match value {
        None => Err(Refusal::new(400_000, "The query parameter `api-version` is required")),
        Some(version) if is_api_version(version) => Ok(()),
        Some(_) => Err(Refusal::new(400_000, "`api-version` is not of the form YYYY-MM-DD or YYYY-MM-DD-preview")),
    }
}

pub(super) fn check_size(body: &[u8]) -> Result<(), Refusal> {
    if body.len() > MESSAGE_BYTES_MAX {
        return Err(Refusal::new(413_000, format!("The message is larger than {MESSAGE_BYTES_MAX} bytes")));
    }
    Ok(())
}

pub(super) fn check_id(id: &str) -> Result<(), Refusal> {
    if is_registration_id(id) {
        return Ok(());
    }
    Err(Refusal::new(
        400_000,
        "The registration ID has 1 to 128 letters, digits and `-` `.` `_` `:`, begins with a letter or digit and ends with a \
         letter, digit or `-`",
    ))
}

/// Checks everything about a register or lookup call but its credential.
pub(super) fn read_body(request: &Request<'_>, id: &str) -> Result<DeviceRegistration, Refusal> {
    check_version(request.query)?;
    check_size(request.body)?;
    let body = request.body.trim_ascii();
    let registration = if body.is_empty() {
        DeviceRegistration::default()
    } else {
        let media_type = request.content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        if !media_type.eq_ignore_ascii_case("application/json") {
            return Err(Refusal::new(415_000, "Content-Type must be application/json"));
        }
        serde_json::from_slice(body)
            .map_err(|error| Refusal::new(400_000, format!("The body is malformed: {error}")))?
    };
    check_id(id)?;
    if registration.registration_id.as_deref().is_some_and(|named| !named.eq_ignore_ascii_case(id)) {
        return Err(Refusal::new(400_000, "`registrationId` in the body is not the one in the URL"));
    }
    if registration.payload.as_ref().is_some_and(|payload| !payload.is_object()) {
        return Err(Refusal::new(400_000, "`payload` is not an object"));
    }
    if registration.tpm.is_some() {
        return Err(Refusal::new(400_000, "dps-emulator does not know TPM attestation (`tpm`)"));
    }
    Ok(registration)
}
