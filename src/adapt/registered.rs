//! A server of one's own, registered while it serves.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::instance::{Instance, ServiceName};
use crate::registry::Registrar;
use crate::sync::event;

/// A server that is not this crate's, registered while it serves: axum, tonic, hyper, or any that stops
/// when it is told to.
///
/// ```no_run
/// # async fn example(registrar: srpc::registry::Registrar) -> Result<(), Box<dyn std::error::Error>> {
/// # let ctrl_c = std::future::pending::<()>();
/// # async fn axum_serve<F: Future<Output = ()>>(_: tokio::net::TcpListener, shutdown: F) -> std::io::Result<()> { shutdown.await; Ok(()) }
/// use srpc::Instance;
/// use srpc::adapt::Registered;
///
/// let listener = tokio::net::TcpListener::bind("10.0.0.7:0").await?;
/// let address = format!("tcp@{}", listener.local_addr()?).parse()?;
/// let served = Registered::new(registrar, "web".parse()?, Instance::at(address))
///     .serve(ctrl_c, |stopped| axum_serve(listener, stopped))
///     .await;
/// served.transpose()?; // `None`: requests outlived the grace
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "nothing is registered before it serves"]
pub struct Registered {
    registrar: Registrar,
    service: ServiceName,
    instance: Instance,
    drain_delay: Duration,
    grace: Duration,
}

impl Registered {
    /// This instance of this service, which listens already. The registrar is closed at the end.
    pub fn new(registrar: Registrar, service: ServiceName, instance: Instance) -> Self {
        let (drain_delay, grace) = (Duration::from_secs(2), Duration::from_secs(10));
        Self { registrar, service, instance, drain_delay, grace }
    }

    /// Sets how long the server goes on after its clients were told that it drains: as late as their view
    /// may be. Default: 2 s.
    pub fn drain_delay(mut self, delay: Duration) -> Self {
        self.drain_delay = delay;
        self
    }

    /// Sets how long requests under way get to end once the server was told to stop. Default: 10 s.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Registers, and serves until `shutdown` ends; then marks the registration as draining, goes on serving
    /// for the drain delay, tells the server to stop, lets it end within the grace, and deregisters.
    ///
    /// `server` is called at once, with what ends when the server is to stop. What it comes to is returned;
    /// `None` if the grace passed before, whereupon it is dropped. If the server ends by itself, it is
    /// deregistered at once. A registry that cannot be reached does not keep it from serving: the
    /// registrar tries on.
    ///
    /// Dropping the future drops the server, and deregisters nothing.
    pub async fn serve<S>(
        self,
        shutdown: impl Future<Output = ()>,
        server: impl FnOnce(Stopped) -> S,
    ) -> Option<S::Output>
    where
        S: IntoFuture,
    {
        let Self { registrar, service, instance, drain_delay, grace } = self;
        let (stop, stopped) = oneshot::channel();
        let mut serving = std::pin::pin!(server(Stopped(stopped)).into_future());
        let until = async {
            if let Err(error) = registrar.register(service.clone(), instance).await {
                event!(WARN, %service, %error, "not registered at the first try");
            }
            std::future::pending::<()>().await;
        };
        let draining = async {
            tokio::select! {
                () = shutdown => {}
                () = until => {}
            }
            tokio::join!(registrar.drain(), sleep(drain_delay));
        };
        let ended = tokio::select! {
            biased;
            ended = &mut serving => Some(ended),
            () = draining => {
                // Whether it still listens for it or not, it is over.
                let _ = stop.send(());
                timeout(grace, &mut serving).await.ok()
            }
        };
        registrar.close().await;
        ended
    }
}

/// Ends when a server is to stop.
#[derive(Debug)]
pub struct Stopped(oneshot::Receiver<()>);

impl Future for Stopped {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(cx).map(|_| ())
    }
}
