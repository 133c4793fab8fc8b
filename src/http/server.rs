//! The accept loop: TLS, a limit on connections, deadlines for slow clients, graceful shutdown.
//!
//! `axum::serve` has no deadline for a request's head, so a few thousand half-open requests would hold the server; here
//! a connection that does not finish its head in time, or idles longer, is closed.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, extract::ConnectInfo};
use hyper::{
    Request,
    body::{Body, Bytes, Frame, Incoming, SizeHint},
    header::{self, HeaderValue},
    server::conn::http1,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use crate::config::Config;

/// How long requests in progress may take when the daemon stops.
const DRAIN: Duration = Duration::from_secs(8);
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Largest request head, query included, bytes: 431 beyond it.
const MAX_HEAD: usize = 64 << 10;
/// Connections that may wait to be accepted; the kernel limits it to `net.core.somaxconn`. Beyond it a client retries
/// after a second.
const BACKLOG: u32 = 4096;
/// Files, sockets and process handles other than connections; at most half of what the host allows.
const SPARE_FILES: u64 = 4096;

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("cannot listen on {address}: {source}; is another server running there? choose another with --port")]
    Listen { address: String, source: io::Error },
    #[error("cannot read the TLS file {path}: {reason}")]
    Tls { path: std::path::PathBuf, reason: String },
}

/// A bound port.
pub struct Server {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    connections: Arc<Semaphore>,
    header_timeout: Duration,
}

impl Server {
    pub async fn bind(host: &str, port: u16, config: &Config) -> Result<Self, ServerError> {
        let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let listener = listen(&address).await.map_err(|source| ServerError::Listen { address, source })?;
        let tls = match (&config.tls_cert, &config.tls_key) {
            (Some(cert), Some(key)) => Some(acceptor(cert, key)?),
            _ => None,
        };
        let limit = config.server.max_connections.min(usize::try_from(raise_file_limit()).unwrap_or(usize::MAX));
        Ok(Self {
            listener,
            tls,
            connections: Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS))),
            header_timeout: Duration::from_secs(config.server.header_timeout_seconds.max(1)),
        })
    }

    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Serves until `stop`; then requests in progress finish, within [`DRAIN`].
    pub async fn run(self, router: Router, stop: CancellationToken) {
        let under_way = TaskTracker::new();
        loop {
            // A free slot first: beyond the limit clients wait in the listen queue.
            let place = tokio::select! {
                place = self.connections.clone().acquire_owned() => place,
                () = stop.cancelled() => break,
            };
            let Ok(place) = place else { break };
            let (stream, peer) = tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of files or memory: it passes, and a tight loop would not help.
                        tracing::warn!(%error, "could not accept a connection");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
                () = stop.cancelled() => break,
            };
            let _ = stream.set_nodelay(true);
            let (router, tls, stop) = (router.clone(), self.tls.clone(), stop.clone());
            let header_timeout = self.header_timeout;
            under_way.spawn(async move {
                let _place = place;
                match tls {
                    None => serve(TokioIo::new(stream), peer, router, header_timeout, stop).await,
                    Some(tls) => match shake_hands(&tls, stream).await {
                        Some(stream) => serve(TokioIo::new(stream), peer, router, header_timeout, stop).await,
                        None => tracing::debug!(%peer, "no TLS handshake"),
                    },
                }
            });
        }
        drop(self.listener);
        under_way.close();
        let _ = tokio::time::timeout(DRAIN, under_way.wait()).await;
    }
}

async fn listen(address: &str) -> io::Result<TcpListener> {
    let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in tokio::net::lookup_host(address).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // Allows a port whose last server has just ended.
        socket.set_reuseaddr(true)?;
        match socket.bind(address).and_then(|()| socket.listen(BACKLOG)) {
            Ok(listener) => return Ok(listener),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

async fn shake_hands(tls: &TlsAcceptor, stream: TcpStream) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
    tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await.ok()?.ok()
}

/// A request's body that knows whether it was read to its end. Many refusals do not wait for it. The connection ends
/// with such a response, and that must be announced: the client would send its next request into it.
struct WatchedBody {
    body: Incoming,
    is_read: Arc<AtomicBool>,
}

impl WatchedBody {
    fn new(body: Incoming) -> (Self, Arc<AtomicBool>) {
        let is_read = Arc::new(AtomicBool::new(body.is_end_stream()));
        (Self { body, is_read: is_read.clone() }, is_read)
    }
}

impl Body for WatchedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(ctx);
        if matches!(frame, Poll::Ready(None)) || self.body.is_end_stream() {
            self.is_read.store(true, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

async fn serve<S>(
    stream: TokioIo<S>,
    peer: SocketAddr,
    router: Router,
    header_timeout: Duration,
    stop: CancellationToken,
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (head, body) = request.into_parts();
        let (body, is_read) = WatchedBody::new(body);
        let mut request = Request::from_parts(head, body);
        request.extensions_mut().insert(ConnectInfo(peer));
        let answer = router.clone().oneshot(request);
        async move {
            let mut response = answer.await?;
            if !is_read.load(Ordering::Relaxed) {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(header_timeout).max_buf_size(MAX_HEAD).pipeline_flush(true);
    let mut connection = std::pin::pin!(builder.serve_connection(stream, service).with_upgrades());
    // A client that disconnects is nothing to report.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

fn acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor, ServerError> {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    crate::tls::install_provider();
    let error = |path: &Path, reason: String| ServerError::Tls { path: path.to_owned(), reason };
    let chain =
        CertificateDer::pem_file_iter(cert).and_then(Iterator::collect).map_err(|e| error(cert, e.to_string()))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| error(key, e.to_string()))?;
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, secret);
    let mut config = config.map_err(|e| error(key, e.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Raises the limit of open files as far as the host allows; returns how many of them connections may use.
fn raise_file_limit() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 768 };
    let files = if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft };
    files - SPARE_FILES.min(files / 2)
}
