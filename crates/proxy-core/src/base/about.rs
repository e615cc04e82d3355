//! What log lines about a registration carry: who, at which instance, because of which request, and DPS's own names for it.
//!
//! The fields live in spans, so that every line has them: those of libraries too, and those of code that does not know the device.

use std::sync::Arc;

use tracing::field::Empty;
use tracing::{Span, error_span};

use crate::device::{Record, Stage};
use crate::ids::{InstanceName, OperationId, RegistrationId};
use crate::upstream::Answer;
use crate::upstream::verdict::tracking_id;

tokio::task_local! {
    static REQUEST_ID: Arc<str>;
}

/// Handles a request: places that are given meanwhile remember its ID, so that the lines of a registration lead to who caused it.
pub async fn with_request_id<T>(id: Arc<str>, handling: impl Future<Output = T>) -> T {
    REQUEST_ID.scope(id, handling).await
}

/// The ID of the request that is being handled, if one is.
#[must_use]
pub fn request_id() -> Option<Arc<str>> {
    REQUEST_ID.try_with(Arc::clone).ok()
}

/// The span of everything that is done about one registration. Of the highest level, so that no filter takes it from a line that
/// is written.
pub(crate) fn registration_span(id: &RegistrationId, instance: &InstanceName) -> Span {
    error_span!(parent: None, "registration", registration_id = %id, %instance, request_id = Empty, operation_id = Empty, tracking_id = Empty)
}

/// The lines that follow are about this device's place: where it is, and who caused it.
pub(crate) fn cause(record: &Record) {
    if let Some(request_id) = record.pending().and_then(|pending| pending.request_id.as_deref()) {
        Span::current().record("request_id", request_id);
    }
}

/// The lines that follow are about a device at this instance.
pub(crate) fn instance(instance: &InstanceName) {
    Span::current().record("instance", instance.as_str());
}

/// The lines that follow are about a device that is where its record says.
pub(crate) fn whereabouts(record: &Record) {
    let assigned = record.assignment().map(|assignment| &assignment.instance);
    if let Some(at) = record.pending().map(|pending| &pending.instance).or(assigned) {
        instance(at);
    }
    if let Some(Stage::Assigning { operation_id, .. }) = record.pending().map(|pending| &pending.stage) {
        operation(operation_id);
    }
}

/// The lines that follow are about this operation of DPS.
pub(crate) fn operation(operation_id: &OperationId) {
    Span::current().record("operation_id", operation_id.as_str());
}

/// The lines that follow are about this answer of DPS.
pub(crate) fn answer(answer: &Answer) {
    if let Some(id) = tracking_id(answer) {
        Span::current().record("tracking_id", id);
    }
}
