//! The requests of a plane on the connections of its [`listener`](crate::listener): actix's HTTP/1.1, with time limits of our own.
//!
//! Invariant: an idle connection costs no buffers. actix, which keeps 16 KiB for each of its connections, has it only from the first
//! byte of a request until a moment after the answer.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix_http::{Extensions, HttpServiceBuilder, KeepAlive};
use actix_service::{IntoServiceFactory as _, Service as _, ServiceFactory as _, ServiceFactoryExt as _, map_config};
use actix_web::dev::AppConfig;
use actix_web::web;
use anyhow::anyhow;
use futures_util::FutureExt as _;

use super::exchange::{Exchange, Timeouts};
use super::middleware::{self, HeaderBounds};
use super::routes::{Routes, no_such_path};
use super::turns::OneAtATime;
use crate::config::HttpSettings;
use crate::listener::{Protocol, Serve, Stream};
use crate::state::App;

/// How long a refused request may go on sending its body, so that the refusal is not lost with a reset.
const LINGER: Duration = Duration::from_secs(1);
/// How much of an answer actix writes ahead.
const WRITE_AHEAD_MAX: usize = 32 * 1024;

/// The requests of a plane, as a listener's protocol.
#[must_use]
pub fn protocol(routes: Routes, settings: &HttpSettings, app: &web::Data<App>) -> Protocol {
    let bounds = HeaderBounds::of(settings);
    let timeouts = Timeouts { request: settings.request_timeout, keep_alive: settings.keep_alive };
    let write_ahead = settings.unread_max_bytes.min(WRITE_AHEAD_MAX);
    // The handle of actix is not for other threads, but what it points to is.
    let app = Arc::clone(app);
    Arc::new(move || on_worker(routes, bounds, timeouts, write_ahead, web::Data::from(Arc::clone(&app))).boxed_local())
}

async fn on_worker(
    routes: Routes,
    bounds: HeaderBounds,
    timeouts: Timeouts,
    write_ahead: usize,
    app: web::Data<App>,
) -> anyhow::Result<Serve> {
    let plane = routes.plane;
    let handlers = actix_web::App::new()
        .app_data(app)
        .wrap(actix_web::middleware::from_fn(move |request, next| middleware::observe(routes, bounds, request, next)))
        .configure(routes.configure)
        .default_service(web::to(no_such_path));
    let handlers = handlers.into_factory().map_err(|error: actix_web::Error| error.error_response());
    // The connection's time limits are ours; actix has none but for lingering.
    let service = HttpServiceBuilder::<OneAtATime, _>::default()
        .keep_alive(KeepAlive::Os)
        .client_request_timeout(Duration::ZERO)
        .client_disconnect_timeout(LINGER)
        .h1_write_buffer_size(write_ahead)
        .on_connect_ext(|stream: &OneAtATime, data: &mut Extensions| {
            data.insert(Rc::clone(stream.exchange()));
        })
        .h1(map_config(handlers, |()| AppConfig::default()))
        .new_service(())
        .await
        .map_err(|()| anyhow!("the {} plane's routes cannot be made", plane.as_str()))?;
    let service = Rc::new(service);
    Ok(Rc::new(move |stream: Stream| {
        let service = Rc::clone(&service);
        async move {
            let connection = Rc::clone(stream.connection());
            let peer = connection.peer();
            let exchange = Exchange::begin(connection, timeouts);
            loop {
                let spells_names = middleware::spells_names(plane);
                let mut requests = OneAtATime::new(stream.handle(), Rc::clone(&exchange), spells_names);
                if !requests.arrive().await {
                    break;
                }
                exchange.set_taken_back(false);
                // However it ends, whoever was connected knows.
                let _ended = service.call((requests, Some(peer))).await;
                if !exchange.is_taken_back() {
                    break;
                }
            }
        }
        .boxed_local()
    }))
}
