//! The fence: whether this replica may write now, asked at the reconcile, at the write, and by the
//! socket itself.
//!
//! Invariant: no byte of a write leaves this process after the fence has fallen. A process that was
//! stopped between asking and sending wakes with a write in its hands; hence the question stands in
//! [`FencedStream`], immediately before the system call. What the kernel had by then is in flight.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::{
    client::legacy::{
        Client as HttpClient,
        connect::{Connected, Connection, HttpConnector},
    },
    rt::{TokioExecutor, TokioIo},
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Instant,
};
use tower::{BoxError, ServiceBuilder, ServiceExt};

/// This replica does not lead (any more).
#[derive(Debug, thiserror::Error)]
#[error("this replica does not lead")]
pub(super) struct NotLeader;

/// One uninterrupted time of leading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Term(u64);

#[derive(Debug)]
struct State {
    /// Until when this replica leads, by its monotonic clock; `None`: it does not.
    until: Option<Instant>,
    term: u64,
}

/// Tells whether this replica may write, by the monotonic clock (which goes on while the process is
/// stopped).
#[derive(Clone, Debug)]
pub(super) struct Fence(Arc<Mutex<State>>);

impl Default for Fence {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State { until: None, term: 0 })))
    }
}

impl Fence {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asked immediately before each write.
    ///
    /// # Errors
    /// [`NotLeader`] when the lease is not held or may have been taken over.
    pub(super) fn check(&self) -> Result<Term, NotLeader> {
        let state = self.state();
        match state.until {
            Some(until) if Instant::now() < until => Ok(Term(state.term)),
            _ => Err(NotLeader),
        }
    }

    /// Ends when the term is over: what was begun in it is not finished in a later one.
    pub(super) async fn fallen(&self, term: Term) {
        loop {
            let until = match *self.state() {
                State { until: Some(until), term: now } if now == term.0 && Instant::now() < until => until,
                _ => return,
            };
            tokio::time::sleep_until(until).await;
        }
    }

    /// The lease is held, `valid` long from when its renewal was sent.
    pub(super) fn hold(&self, sent: Instant, valid: Duration) {
        let mut state = self.state();
        if state.until.is_none_or(|until| until <= Instant::now()) {
            state.term += 1;
        }
        state.until = Some(sent + valid);
    }

    /// The lease is not held.
    pub(super) fn drop_now(&self) {
        self.state().until = None;
    }
}

/// A connection that refuses to send while the fence is down. It breaks then, and the request on it.
#[derive(Debug)]
pub(super) struct FencedStream<S> {
    stream: S,
    fence: Fence,
}

impl<S> FencedStream<S> {
    fn may_send(&self) -> io::Result<()> {
        self.fence.check().map(|_| ()).map_err(|e| io::Error::new(io::ErrorKind::PermissionDenied, e))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FencedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FencedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.may_send()?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.may_send()?;
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Connection for FencedStream<TcpStream> {
    fn connected(&self) -> Connected {
        self.stream.connected()
    }
}

/// A client that can send only while the fence stands, and that never sends anything twice.
///
/// # Errors
/// When the configuration's certificates or credentials cannot be used.
pub(super) fn client(config: &Config, fence: Fence) -> kube::Result<Client> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(config.connect_timeout);
    tcp.set_nodelay(true);
    let fenced = tcp.map_response(move |tcp: TokioIo<TcpStream>| {
        TokioIo::new(FencedStream { stream: tcp.into_inner(), fence: fence.clone() })
    });
    let connector = config.rustls_https_connector_with_connector(fenced)?;
    let http: HttpClient<_, Body> =
        HttpClient::builder(TokioExecutor::new()).retry_canceled_requests(false).build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const VALID: Duration = Duration::from_secs(4);

    #[tokio::test(start_paused = true)]
    async fn it_falls_by_the_local_clock_alone() {
        let fence = Fence::default();
        assert!(fence.check().is_err(), "not elected");
        fence.hold(Instant::now(), VALID);
        let term = fence.check().unwrap();
        tokio::time::advance(VALID - Duration::from_millis(1)).await;
        assert_eq!(fence.check().unwrap(), term);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(fence.check().is_err(), "expired without anybody saying so");
        // A renewal counts from when it was sent.
        let sent = Instant::now();
        tokio::time::advance(VALID).await;
        fence.hold(sent, VALID);
        assert!(fence.check().is_err());
        fence.hold(Instant::now(), VALID);
        fence.drop_now();
        assert!(fence.check().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_term_ends_when_it_is_not_renewed_and_never_comes_back() {
        let fence = Fence::default();
        fence.hold(Instant::now(), VALID);
        let term = fence.check().unwrap();
        let start = Instant::now();
        let renewed = fence.clone();
        tokio::spawn(async move {
            tokio::time::sleep(VALID / 2).await;
            renewed.hold(Instant::now(), VALID);
        });
        fence.fallen(term).await;
        assert_eq!(start.elapsed(), VALID + VALID / 2, "one renewal");
        // Elected again before anybody looked: still over.
        fence.hold(Instant::now(), VALID);
        fence.fallen(term).await;
        assert_eq!(start.elapsed(), VALID + VALID / 2);
        assert_ne!(fence.check().unwrap(), term);
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_sends_nothing_behind_the_fence() {
        let fence = Fence::default();
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut stream = FencedStream { stream: ours, fence: fence.clone() };
        fence.hold(Instant::now(), VALID);
        stream.write_all(b"before ").await.unwrap();
        tokio::time::advance(VALID).await;
        assert_eq!(stream.write_all(b"after").await.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        drop(stream);
        let mut sent = String::new();
        theirs.read_to_string(&mut sent).await.unwrap();
        assert_eq!(sent, "before ");
    }
}
