//! A case's view of its service: what the source says, now or before long.

use std::time::Duration;

use tokio::time::Instant;

use super::{HOLD, Scene};
use crate::discovery::Resolved;
use crate::instance::{Instance, ServiceName};
use crate::testing::Capability;

impl Scene<'_> {
    /// What the source says now.
    pub(in crate::testing) async fn resolve(&self) -> Resolved {
        match self.discovery.resolve(&self.service).await {
            Ok(resolved) => resolved,
            Err(error) => {
                self.fails(format_args!("resolve answers while the source runs: {error}"))
            }
        }
    }

    /// Waits until exactly these addresses are seen, within the granularity.
    pub(in crate::testing) async fn sees(&self, promise: &str, expected: &[Instance]) {
        let expected = addresses(expected);
        self.eventually(promise, self.granularity(), |seen| addresses(seen) == expected).await;
    }

    /// Waits until the source, of all services of this case, names exactly these.
    pub(in crate::testing) async fn lists(&self, expected: &[&ServiceName]) {
        let mut expected: Vec<ServiceName> = expected.iter().copied().cloned().collect();
        expected.sort();
        let start = Instant::now();
        loop {
            let asked = start.elapsed();
            let mut services = match self.discovery().services().await {
                Ok(services) => services,
                Err(error) => self.fails(format_args!("services are listed: {error}")),
            };
            if !services.is_sorted() {
                self.fails(format_args!("services are listed in order: {services:?}"));
            }
            let prefix = format!("conformance.{}", self.case);
            services.retain(|service| service.as_str().starts_with(&prefix));
            if services == expected {
                return;
            }
            if asked >= self.granularity() {
                self.fails(format_args!(
                    "the services that have an instance are listed, {expected:?}; there are {services:?}"
                ));
            }
            self.advance((self.granularity() / 20).max(Duration::from_millis(1))).await;
        }
    }

    /// Looks again and again until `holds`, at most for `within`.
    pub(in crate::testing) async fn eventually(
        &self,
        promise: &str,
        within: Duration,
        mut holds: impl FnMut(&[Instance]) -> bool + Send,
    ) {
        let start = Instant::now();
        loop {
            let asked = start.elapsed();
            let seen = self.resolve().await.instances;
            if holds(&seen) {
                return;
            }
            if asked >= within {
                self.fails(format_args!("{promise}; after {asked:?} there is {}", shown(&seen)));
            }
            self.advance((within / 20).max(Duration::from_millis(1))).await;
        }
    }

    /// Waits until the service has no instance, for a lease's time where nothing can be taken back.
    pub(in crate::testing) async fn empties(&self) {
        let lease = if self.has(Capability::Deregister) { Duration::ZERO } else { HOLD };
        let within = lease + self.granularity();
        self.eventually("what a case takes back is gone", within, <[Instance]>::is_empty).await;
    }
}

/// The addresses in order, each as often as it is there.
fn addresses(instances: &[Instance]) -> Vec<&str> {
    let mut addresses: Vec<_> = instances.iter().map(|i| i.address.as_str()).collect();
    addresses.sort_unstable();
    addresses
}

/// A list for a message: a thousand instances would hide what it says.
fn shown(instances: &[Instance]) -> String {
    match instances {
        [] => "no instance".to_owned(),
        few if few.len() <= 5 => format!("{few:?}"),
        many => format!("{} instances, the first {:?}", many.len(), many[0]),
    }
}
