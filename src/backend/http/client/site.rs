//! One registry, and which of the two APIs it speaks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::failure::{Failure, plain};
use super::urls::Location;
use super::{Found, api, seed, v1};
use crate::backend::exchange::{Answer, Ask, Connections, Host};
use crate::instance::{Health, InstanceId, ServiceName};
use crate::registry::{HealthOverride, Held, Lease, Registration, RegistryError, Renewal};
use crate::transport::Transport;

/// How long a registry that lacks `/v1` is not asked for it by lists and renewals.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// One registry.
pub(super) struct Site {
    /// Its place among the URLs given.
    pub(super) index: usize,
    pub(super) location: Location,
    transport: Arc<dyn Transport>,
    timeout: Duration,
    connections: Connections,
    spoke_v1: AtomicBool,
    /// Which registry it leads to, as its answers say.
    name: Mutex<Option<Arc<str>>>,
    /// Whether it has answered, so that it has a name or tells none.
    is_introduced: AtomicBool,
    /// Whether it failed when it was last asked.
    is_down: AtomicBool,
    has_listed: AtomicBool,
    /// Whether it did not let this client in when it was last asked.
    refuses: AtomicBool,
    /// When `/v1` is worth asking for again; `None` while it is spoken.
    fallback: Mutex<Option<Instant>>,
}

impl Site {
    pub(super) fn new(
        index: usize,
        location: Location,
        transport: Arc<dyn Transport>,
        timeout: Duration,
        token: Option<HeaderValue>,
    ) -> Self {
        Self {
            index,
            location,
            transport,
            timeout,
            connections: Connections::new(token),
            spoke_v1: AtomicBool::new(false),
            name: Mutex::new(None),
            is_introduced: AtomicBool::new(false),
            is_down: AtomicBool::new(false),
            has_listed: AtomicBool::new(false),
            refuses: AtomicBool::new(false),
            fallback: Mutex::new(None),
        }
    }

    /// Which registry it leads to; `None`: it does not say.
    pub(super) fn name(&self) -> Option<Arc<str>> {
        self.name.lock().clone()
    }

    /// Takes in what an answer says of the registry's name.
    pub(super) fn is_called(&self, name: Option<Arc<str>>) {
        self.is_introduced.store(true, Relaxed);
        if let Some(name) = name {
            let mut known = self.name.lock();
            if known.as_ref() != Some(&name) {
                *known = Some(name);
            }
        }
    }

    /// Whether it is not known yet which registry it leads to, and worth asking.
    pub(super) fn is_unknown(&self) -> bool {
        !self.is_introduced.load(Relaxed) && !self.is_down()
    }

    /// Asks which registry it leads to.
    pub(super) async fn introduce(&self) -> Result<(), Failure> {
        match v1::introduce(self).await {
            Err(failure) if !failure.is_final() => {
                self.failed();
                Err(failure)
            }
            answered => {
                self.is_introduced.store(true, Relaxed);
                answered.map(|_| ())
            }
        }
    }

    pub(super) fn is_down(&self) -> bool {
        self.is_down.load(Relaxed)
    }

    pub(super) fn failed(&self) {
        self.is_down.store(true, Relaxed);
    }

    /// It has answered, perhaps with a refusal.
    pub(super) fn answered(&self, refusal: Option<&Failure>) {
        self.is_down.store(false, Relaxed);
        let refuses = refusal.is_some_and(Failure::is_not_allowed);
        if refuses != self.refuses.swap(refuses, Relaxed)
            && let Some(refusal) = refusal
        {
            let url = self.location.url.as_str();
            tracing::warn!(url, %refusal, "a registry refuses this client");
        }
    }

    pub(super) fn has_listed(&self) {
        self.has_listed.store(true, Relaxed);
    }

    pub(super) fn listed_once(&self) -> bool {
        self.has_listed.load(Relaxed)
    }

    /// Asks for `/v1` whatever is known: the registry may have been replaced by a newer one.
    pub(super) async fn register(&self, registration: &Registration) -> Result<Lease, Failure> {
        if let Some(lease) = v1::register(self, registration).await? {
            return Ok(lease);
        }
        self.post_if_up(registration).await?;
        Ok(Lease::new("", None))
    }

    pub(super) async fn renew(
        &self,
        held: &[Held],
    ) -> Result<Vec<Result<Renewal, RegistryError>>, Failure> {
        if self.asks_v1()
            && let Some(renewed) = v1::renew(self, held).await?
        {
            return Ok(renewed);
        }
        for Held { registration, .. } in held {
            self.post_if_up(registration).await?;
        }
        Ok(held.iter().map(|_| Ok(Renewal::Renewed)).collect())
    }

    /// By the seed's contract an instance is listed or not: one that takes no calls is left to run
    /// out.
    async fn post_if_up(&self, registration: &Registration) -> Result<(), Failure> {
        let instance = &registration.instance;
        if instance.health != Health::Up {
            return Ok(());
        }
        seed::post(self, Some(&registration.service), instance.address.as_str()).await
    }

    /// The seed's contract has no such verb: there the entry lives until its time is over.
    pub(super) async fn deregister(&self, held: &[Held]) -> Result<(), Failure> {
        if self.asks_v1() {
            v1::deregister(self, held).await?;
        }
        Ok(())
    }

    pub(super) async fn set_health(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        word: &HealthOverride,
    ) -> Result<bool, Failure> {
        let set = match self.asks_v1() {
            true => v1::set_health(self, service, id, word).await?,
            false => None,
        };
        set.ok_or_else(Failure::unsupported)
    }

    pub(super) async fn services(&self) -> Result<Vec<ServiceName>, Failure> {
        let services = if self.asks_v1() { v1::services(self).await? } else { None };
        services.ok_or_else(Failure::unsupported)
    }

    /// The seed's one plain list serves every service.
    pub(super) async fn list(&self, service: Option<&ServiceName>) -> Result<Found, Failure> {
        if self.asks_v1()
            && let Some(found) = v1::list(self, service, None).await?
        {
            return Ok(found);
        }
        seed::list(self, service).await
    }

    /// The list once it differs from the revision `after`, or once the wait is over. `None`: there
    /// is no `/v1` here.
    pub(super) async fn changes(
        &self,
        service: &ServiceName,
        after: Option<(&str, Duration)>,
    ) -> Result<Option<Found>, Failure> {
        v1::list(self, Some(service), after).await
    }

    pub(super) async fn ask(&self, ask: &Ask, longer: Duration) -> Result<Answer, Failure> {
        let limit = self.timeout.saturating_add(longer);
        let Location { address, authority, .. } = &self.location;
        let host = Host { address, authority };
        Ok(self.connections.ask(&*self.transport, host, ask, limit).await?)
    }

    /// Asks `/v1`. `None`: there is none here.
    pub(super) async fn ask_v1<T: DeserializeOwned>(
        &self,
        ask: &Ask,
        longer: Duration,
    ) -> Result<Option<T>, Failure> {
        let answer = self.ask(ask, longer).await?;
        let mut read = read(&answer);
        if matches!(read, Ok(None)) && answer.status.is_success() && self.has_spoken_v1() {
            // A page does not unteach it: something stands in its way for a moment.
            read = Err(Failure::Nonsense("the answer is no JSON".to_owned()));
        }
        match &read {
            Ok(Some(_)) => self.found_v1(),
            Ok(None) => self.lacks_v1(answer.status),
            Err(_) if is_problem(&answer) => self.found_v1(),
            Err(_) => {}
        }
        read
    }

    fn asks_v1(&self) -> bool {
        self.fallback.lock().is_none_or(|again| again <= Instant::now())
    }

    pub(super) fn has_spoken_v1(&self) -> bool {
        self.spoke_v1.load(Relaxed)
    }

    fn found_v1(&self) {
        self.spoke_v1.store(true, Relaxed);
        if self.fallback.lock().take().is_some() {
            tracing::info!(url = self.location.url, "fallback left: the registry speaks /v1");
        }
    }

    fn lacks_v1(&self, status: StatusCode) {
        let was = self.fallback.lock().replace(Instant::now() + ASK_AGAIN);
        if was.is_none() {
            tracing::info!(
                url = self.location.url,
                status = status.as_u16(),
                "fallback taken: the registry has no /v1, its one list serves every service"
            );
        }
    }
}

fn is_json(answer: &Answer) -> bool {
    answer.content_type().eq_ignore_ascii_case(api::JSON)
}

fn is_problem(answer: &Answer) -> bool {
    answer.content_type().eq_ignore_ascii_case(api::PROBLEM_JSON)
}

/// What `/v1` answered. `None`: something else answered in its place.
fn read<T: DeserializeOwned>(answer: &Answer) -> Result<Option<T>, Failure> {
    let status = answer.status;
    if status.is_success() {
        return match serde_json::from_slice(&answer.body) {
            Ok(read) => Ok(Some(read)),
            // Damaged JSON is no sign that there is no `/v1`.
            Err(error) if error.is_data() || is_json(answer) => {
                Err(Failure::Nonsense(format!("the answer is not what was asked for: {error}")))
            }
            Err(_) => Ok(None),
        };
    }
    if is_problem(answer) {
        let mut problem: Box<api::Problem> = serde_json::from_slice(&answer.body)
            .map_err(|error| Failure::Nonsense(format!("status {status}, and {error}")))?;
        problem.status = status.as_u16();
        problem.detail = plain(&problem.detail);
        problem.title = plain(&problem.title).into();
        problem.retry_after = answer.retry_after();
        return Err(Failure::Problem(problem));
    }
    match status {
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Ok(None),
        status if status.is_server_error() => Err(Failure::unavailable(format!("status {status}"))),
        status if status.is_client_error() => Err(Failure::refused(answer)),
        status => Err(Failure::Nonsense(format!("status {status}"))),
    }
}
