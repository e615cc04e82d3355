//! The device listener: a thin adapter from actix-web to [`crate::Dps`].
//!
//! A reset is a real one: the socket is told not to linger and the response's body fails before its first byte is flushed,
//! so the client gets a TCP reset and not a single byte of an answer.

use std::any::Any;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix_tls::accept::rustls_0_23::TlsStream;
use actix_web::dev::{Extensions, Server};
use actix_web::http::StatusCode;
use actix_web::rt::net::TcpStream;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};

use super::shared::Shared;
use crate::device_api::{Answer, Request};
use crate::journal::RefusedCall;
use crate::wire::MESSAGE_BYTES_MAX;

/// A second handle to a connection's socket, and whether the connection has carried a call.
struct Connection {
    socket: socket2::Socket,
    used: AtomicBool,
}

fn remember_socket(connection: &dyn Any, extensions: &mut Extensions) {
    let tcp = connection
        .downcast_ref::<TlsStream<TcpStream>>()
        .map(|tls| tls.get_ref().0)
        .or_else(|| connection.downcast_ref::<TcpStream>());
    if let Some(socket) = tcp.and_then(|tcp| socket2::SockRef::from(tcp).try_clone().ok()) {
        extensions.insert(Connection { socket, used: AtomicBool::new(false) });
    }
}

pub(crate) fn server(
    shared: Arc<Shared>,
    listener: std::net::TcpListener,
    tls: Option<rustls::ServerConfig>,
    workers: usize,
) -> io::Result<Server> {
    let data = web::Data::from(shared);
    let server = HttpServer::new(move || App::new().app_data(data.clone()).default_service(web::to(handle)))
        .workers(workers)
        .disable_signals()
        .shutdown_timeout(1)
        // Longer than clients keep idle connections (reqwest: 90 s), so that the server is never the one who closes.
        .keep_alive(Duration::from_secs(120))
        .client_request_timeout(Duration::from_secs(30))
        .on_connect(remember_socket);
    let server = match tls {
        Some(config) => server.listen_rustls_0_23(listener, config)?,
        None => server.listen(listener)?,
    };
    Ok(server.run())
}

async fn handle(request: HttpRequest, mut payload: web::Payload, shared: web::Data<Shared>) -> HttpResponse {
    let mut body = BytesMut::new();
    // One byte too many is enough to know that the message is too large.
    while body.len() <= MESSAGE_BYTES_MAX {
        match payload.next().await {
            Some(Ok(chunk)) => body.extend_from_slice(&chunk[..chunk.len().min(MESSAGE_BYTES_MAX + 1 - body.len())]),
            Some(Err(error)) => {
                tracing::info!(method = %request.method(), path = request.uri().path(), reason = %error, "refused: the body did not arrive");
                return HttpResponse::BadRequest().finish();
            }
            None => break,
        }
    }
    if shared.is_paused() {
        return reset(&request);
    }
    let connection = request.conn_data::<Connection>();
    let reused_connection = connection.is_some_and(|connection| connection.used.swap(true, Ordering::Relaxed));
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let host = header("host").map_or_else(|| shared.addr().to_string(), str::to_owned);
    let origin = format!("{}://{host}", shared.scheme());
    let (reply, unix_ms) = shared.handle(&Request {
        method: request.method().as_str(),
        path: request.uri().path(),
        query: request.uri().query().unwrap_or_default(),
        origin: &origin,
        authorization: header("authorization"),
        content_type: header("content-type"),
        reused_connection,
        body: &body,
    });
    if let (Some(refused), Some(answer)) = (&reply.refused, &reply.answer) {
        log(refused, answer.status);
    }
    if !reply.delay.is_zero() {
        actix_web::rt::time::sleep(reply.delay).await;
    }
    match reply.answer {
        Some(answer) => respond(answer, unix_ms),
        None => reset(&request),
    }
}

/// One line for each refusal. Throttling is told on demand only: a client that is tested for it is throttled often.
fn log(refused: &RefusedCall, status: u16) {
    let RefusedCall { reason, method, path } = refused;
    if status == 429 {
        tracing::debug!(method, path, status, reason, "refused");
    } else {
        tracing::info!(method, path, status, reason, "refused");
    }
}

fn http_date(unix_ms: u64) -> Option<String> {
    let moment = jiff::Timestamp::from_second(i64::try_from(unix_ms / 1000).ok()?).ok()?;
    jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&moment).ok()
}

fn respond(answer: Answer, unix_ms: u64) -> HttpResponse {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = HttpResponse::build(status);
    for (name, value) in answer.headers {
        response.insert_header((name, value));
    }
    // By the emulator's own clock, which need not be the machine's.
    if let Some(date) = http_date(unix_ms) {
        response.insert_header(("Date", date));
    }
    let mut response = if answer.body.is_empty() {
        response.finish()
    } else {
        // Chunked, as the service sends its bodies.
        response.streaming(stream::once(std::future::ready(Ok::<_, io::Error>(Bytes::from(answer.body)))))
    };
    response.head_mut().set_camel_case_headers(true);
    response
}

fn reset(request: &HttpRequest) -> HttpResponse {
    if let Some(connection) = request.conn_data::<Connection>()
        && let Err(error) = connection.socket.set_linger(Some(Duration::ZERO))
    {
        tracing::warn!(%error, "cannot reset this connection; it is closed instead");
    }
    let failing = stream::once(std::future::ready(Err::<Bytes, _>(io::Error::from(io::ErrorKind::ConnectionReset))));
    HttpResponse::Ok().streaming(failing)
}
