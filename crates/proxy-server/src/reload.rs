//! Tuning live: a changed file, SIGHUP and `POST /v1/config/reload` all come here.
//!
//! Invariant: a configuration is taken over whole or not at all; what is refused is reported with every reason.

use std::sync::Arc;

use crate::config;
use crate::state::App;
use crate::telemetry;
use crate::tls::Renewal;

/// What a configuration that was taken over still asks of the operator.
#[derive(Debug, Clone, Default)]
pub struct Applied {
    /// Keys that changed but take effect only after a restart.
    pub restart_needed: Vec<String>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// Loads the configuration anew and takes it over.
///
/// # Errors
/// Every reason why it is refused; the values in force stay.
pub async fn reload(app: &App) -> Result<Applied, Vec<String>> {
    let outcome = try_reload(app).await;
    app.metrics.reloaded(outcome.is_ok());
    match &outcome {
        Ok(applied) => {
            let (restart_needed, warnings) =
                (telemetry::list(&applied.restart_needed), telemetry::list(&applied.warnings));
            tracing::info!(restart_needed, warnings, "configuration applied");
        }
        Err(problems) => {
            let problems = telemetry::list(problems);
            tracing::error!(problems, "configuration rejected; the current values stay in force");
        }
    }
    outcome
}

async fn try_reload(app: &App) -> Result<Applied, Vec<String>> {
    let _one_at_a_time = app.reloading.lock().await;
    let Some(source) = &app.source else {
        return Err(vec!["this service was started without a configuration file".to_owned()]);
    };
    let loading = config::load_for_service(&source.path, source.environment.clone(), app.served_chains());
    let loaded = loading.map_err(|problems| {
        app.watch(problems.files.clone());
        problems.problems.iter().map(ToString::to_string).collect::<Vec<_>>()
    })?;
    app.watch(loaded.files.clone());
    // Whatever can fail comes first.
    let certificates = app.read_certificates()?;
    app.gateway.apply(loaded.settings).await.map_err(|refused| refused.0)?;
    app.live.store(Arc::new(loaded.live));
    certificates.into_iter().for_each(Renewal::renew);
    telemetry::set_filter(&loaded.server.log.filter);
    Ok(Applied {
        restart_needed: config::restart_needed(&app.server, &loaded.server),
        warnings: loaded.warnings.iter().map(ToString::to_string).collect(),
    })
}
