//! Keeps one address registered by the contract of one header, as the seed's servers do.

use std::time::Duration;

use super::client::HttpRegistry;
use crate::instance::Address;
use crate::sync::event;

/// The default TTL of an entry less a minute, so that there is time before it is removed.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(4 * 60);
/// The pause after a failure; doubled with each further one, up to the interval.
const MIN_PAUSE: Duration = Duration::from_secs(1);

/// Registers `address`, such as `tcp@10.0.0.7:7001`, with the registry at `registry_url`: at once,
/// and then every `interval`, where 0 stands for 4 minutes.
///
/// A beat that fails, be it by its status, is repeated with a growing pause, which is never longer
/// than the interval. It never gives up and never returns; each change from good to bad and back is
/// a `tracing` event. A URL that cannot be read is one too, and nothing is sent then.
///
/// Instances that serve calls by this crate are kept alive by a
/// [`Registrar`](crate::registry::Registrar) instead, which also carries what this contract cannot:
/// service, weight, zone, health.
///
/// # Cancellation
/// Dropping the future ends it; the entry lives until its time is over.
pub async fn heartbeat(registry_url: &str, address: &str, interval: Duration) {
    match HttpRegistry::new(registry_url) {
        Ok(registry) => {
            // A registry of the original contract compares texts.
            let canonical = address.parse::<Address>();
            let address = canonical.as_ref().map_or(address, Address::as_str);
            beat(&registry, address, interval).await;
        }
        Err(error) => {
            event!(ERROR, %error, address, "no heartbeat can be sent");
            std::future::pending().await
        }
    }
}

async fn beat(registry: &HttpRegistry, address: &str, interval: Duration) {
    let interval = if interval.is_zero() { DEFAULT_INTERVAL } else { interval };
    let first_pause = MIN_PAUSE.min(interval);
    let mut pause = first_pause;
    // So that the first success is told too.
    let mut failing = true;
    loop {
        let wait = match registry.post(address).await {
            Ok(()) => {
                if failing {
                    event!(INFO, address, ?interval, "registered by heartbeat");
                }
                (failing, pause) = (false, first_pause);
                interval
            }
            Err(error) => {
                // Servers that lost one registry together must not come back to it together.
                let wait = pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
                event!(WARN, %error, address, retry_in = ?wait, "heartbeat failed");
                failing = true;
                pause = (pause * 2).min(interval);
                wait
            }
        };
        tokio::time::sleep(wait).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::Instant;

    use super::*;
    use crate::backend::http::RegistryServer;
    use crate::transport::{Memory, Transport};

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_outlives_a_registry_that_is_away() {
        let net = Memory::new();
        let url = "http://registry:9999/srpc/registry";
        let builder = HttpRegistry::builder(url).transport(Arc::new(net.clone()));
        let registry = builder.build().unwrap();
        let beating = tokio::spawn(async move {
            beat(&registry, "tcp@10.0.0.7:7001", Duration::ZERO).await;
        });
        // Nobody listens yet: it goes on trying.
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(!beating.is_finished());

        let listener = net.bind(&"tcp@registry:9999".parse().unwrap()).await.unwrap();
        let server = RegistryServer::builder().ttl(Some(Duration::from_secs(300))).build();
        let state = server.registry().unwrap().clone();
        let serving = tokio::spawn(server.serve(listener, std::future::pending()));
        let back = Instant::now();
        while state.list(None).entries.is_empty() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert!(back.elapsed() <= Duration::from_secs(245), "{:?}", back.elapsed());
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(state.list(None).entries.len(), 1);
        }
        beating.abort();
        tokio::time::sleep(Duration::from_secs(302)).await;
        assert!(state.list(None).entries.is_empty());
        serving.abort();
    }
}
