//! The service itself, as operators see it: its health, and its configuration loaded anew.

use serde::Serialize;
use utoipa::ToSchema;

use super::problem::{ACT, EVERY, TOKEN, problems};

/// The service answers.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// Always `alive`.
    pub status: HealthStatus,
}

/// Whether the service answers.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HealthStatus {
    /// It does.
    Alive,
}

/// Whether the service can do its main job.
#[derive(Debug, Serialize, ToSchema)]
pub struct Readiness {
    /// `ready` or `not-ready`.
    pub status: ReadinessStatus,
}

/// Whether the service can do its main job.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReadinessStatus {
    /// It can. A store that has gone read-only does not change that: known devices are still answered.
    Ready,
    /// It starts or stops.
    NotReady,
}

/// The configuration was taken over.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Reloaded {
    /// Always `true`.
    pub applied: bool,
    /// Keys that changed but take effect only after a restart.
    pub restart_needed: Vec<String>,
    /// What to know.
    pub warnings: Vec<String>,
}

problems! {
    /// What may be asked of anybody, without a token.
    OpenProblems = [EVERY] + {}
}

problems! {
    /// What `GET /metrics` refuses.
    MetricsProblems = [EVERY, TOKEN] + {}
}

problems! {
    /// What `POST /v1/config/reload` refuses.
    ReloadProblems = [EVERY, ACT] + { 422: [InvalidConfiguration] }
}
