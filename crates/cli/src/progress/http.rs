//! Metrics over HTTP/1.1: `GET /metrics`, as long as the transfer lasts.

use std::{convert::Infallible, io, net::SocketAddr, thread, time::Duration};

use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header::CONTENT_TYPE, server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use prometheus::{Registry, TEXT_FORMAT};
use tokio::{
    net::TcpListener,
    runtime::Builder,
    time::{sleep, timeout},
};

use super::metrics::text;

/// How long a connection may last: a scrape takes milliseconds.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause behind a connection that could not be accepted, for want of descriptors.
const PAUSE: Duration = Duration::from_secs(1);

/// Serves them on a thread of its own, to the end of the process.
pub(super) fn serve(address: SocketAddr, registry: Registry) -> io::Result<()> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let serving = move || runtime.block_on(accept(listener, registry));
    thread::Builder::new().name("metrics".to_owned()).spawn(serving)?;
    Ok(())
}

async fn accept(listener: std::net::TcpListener, registry: Registry) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::warn!(%error, "metrics are not served"),
    };
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        let registry = registry.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                let answer = answer(&request, &registry);
                async { Ok::<_, Infallible>(answer) }
            });
            let connection =
                http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), answer);
            if let Ok(Err(error)) = timeout(CONNECTION_TIMEOUT, connection).await {
                tracing::debug!(%error, "metrics");
            }
        });
    }
}

fn answer(request: &Request<Incoming>, registry: &Registry) -> Response<String> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, text(registry)),
        _ => (StatusCode::NOT_FOUND, "GET /metrics\n".to_owned()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(TEXT_FORMAT));
    response
}
