//! One registry, and which of the two APIs it speaks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::time::Instant;

use super::failure::{Failure, plain};
use super::urls::{Location, Mount};
use super::{Found, api, seed, v1};
use crate::backend::exchange::{Answer, Ask, Connections, Host};
use crate::instance::{Health, InstanceId, ServiceName};
use crate::registry::{HealthOverride, Held, Lease, Registration, RegistryError, Renewal};
use crate::sync::{Mutex, event};
use crate::transport::Transport;

/// How many requests to one registry are under way at once, long polls apart.
const MAX_REQUESTS: usize = 4;
/// How long a registry that lacks `/v1` is not asked for it by lists and renewals, one whose URL
/// may mean two places is not looked for again, and one that does not filter is not tested again.
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
    /// Where the registry was found, if its URL may mean two places.
    mounted: Mutex<Option<Mounted>>,
    /// Until when its header contract is known to filter nothing.
    unfiltered: Mutex<Option<Instant>>,
}

/// Where a registry was found whose URL may mean two places.
#[derive(Clone, Copy)]
enum Mounted {
    /// Below the path of its URL.
    Below,
    /// `/v1` at the root, which may be another registry's: the path is looked at again.
    Elsewhere { look_again: Instant },
}

/// As much of a list of `/v1` as tells it from other JSON.
#[derive(Deserialize)]
struct AnyList {
    #[serde(rename = "revision")]
    _revision: IgnoredAny,
    #[serde(rename = "instances")]
    _instances: Vec<IgnoredAny>,
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
            connections: Connections::new(token, MAX_REQUESTS),
            spoke_v1: AtomicBool::new(false),
            name: Mutex::new(None),
            is_introduced: AtomicBool::new(false),
            is_down: AtomicBool::new(false),
            has_listed: AtomicBool::new(false),
            refuses: AtomicBool::new(false),
            fallback: Mutex::new(None),
            mounted: Mutex::new(None),
            unfiltered: Mutex::new(None),
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
            event!(WARN, url, %refusal, "a registry refuses this client");
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

    /// Without `/v1` the list of the header contract, which may not be filtered by service.
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

    /// `longer`: how long the registry may hold the answer back, beyond the usual timeout.
    pub(super) async fn ask(&self, ask: &Ask, longer: Duration) -> Result<Answer, Failure> {
        let limit = self.timeout.saturating_add(longer);
        let Location { address, authority, .. } = &self.location;
        let host = Host { address, authority };
        let (connections, transport) = (&self.connections, &*self.transport);
        Ok(match longer.is_zero() {
            true => connections.ask(transport, host, ask, limit).await?,
            false => connections.poll(transport, host, ask, limit).await?,
        })
    }

    /// Asks `/v1`. `None`: there is none here.
    pub(super) async fn ask_v1<T: DeserializeOwned>(
        &self,
        ask: Ask,
        longer: Duration,
    ) -> Result<Option<T>, Failure> {
        Ok(self.ask_v1_hinted(ask, longer).await?.map(|(read, _)| read))
    }

    /// [`ask_v1`](Self::ask_v1) with the time after which the registry wants to be asked again, where
    /// it tells one.
    pub(super) async fn ask_v1_hinted<T: DeserializeOwned>(
        &self,
        ask: Ask,
        longer: Duration,
    ) -> Result<Option<(T, Option<Duration>)>, Failure> {
        let mount = self.mount().await?;
        let answer = self.ask(&ask.below(&mount.prefix), longer).await?;
        let mut read = read(&answer);
        if matches!(read, Ok(None)) && answer.status.is_success() && self.has_spoken_v1() {
            // A page does not unteach it: something stands in its way for a moment.
            read = Err(Failure::Nonsense("the answer is no JSON".to_owned()));
        }
        match &read {
            Ok(Some(_)) => {
                self.answered_at(mount);
                self.found_v1();
            }
            Ok(None) => self.lacks_v1(answer.status),
            Err(_) if is_problem(&answer) => self.found_v1(),
            Err(_) => {}
        }
        Ok(read?.map(|read| (read, answer.retry_after())))
    }

    /// Where the registry's contracts are. If its URL may mean two places, both contracts are looked
    /// for below its path first.
    pub(super) async fn mount(&self) -> Result<&Mount, Failure> {
        let Location { mount, elsewhere, .. } = &self.location;
        let Some(elsewhere) = elsewhere else { return Ok(mount) };
        let mounted = *self.mounted.lock();
        match mounted {
            Some(Mounted::Below) => return Ok(mount),
            Some(Mounted::Elsewhere { look_again }) if Instant::now() < look_again => {
                return Ok(elsewhere);
            }
            _ => {}
        }
        match self.serves(mount).await {
            Ok(true) => {
                *self.mounted.lock() = Some(Mounted::Below);
                Ok(mount)
            }
            Ok(false) => Ok(elsewhere),
            Err(_) if mounted.is_some() => Ok(elsewhere),
            // Not told that it is absent: at the root there may be another registry.
            Err(failure) => Err(failure),
        }
    }

    /// Whether one of the two contracts is served at this mount.
    async fn serves(&self, mount: &Mount) -> Result<bool, Failure> {
        let target = format!("{}{}?service={}", mount.prefix, api::INSTANCES, seed::nobody());
        let answer = self.ask(&Ask::get(target), Duration::ZERO).await?;
        let refusal = match read::<AnyList>(&answer) {
            Ok(Some(_)) => return Ok(true),
            // A scope is asked for only at a path that is served.
            Err(Failure::Problem(problem)) if problem.kind == api::NOT_ALLOWED => return Ok(true),
            Err(failure @ (Failure::Unavailable { .. } | Failure::Problem(_)))
                if !is_absent(answer.status) =>
            {
                Some(failure)
            }
            Ok(None) | Err(_) => None,
        };
        let answer = self.ask(&Ask::get(&*mount.header_path), Duration::ZERO).await?;
        let is_list = match seed::succeeded(&answer) {
            Ok(()) => answer.headers.contains_key(api::SERVERS),
            Err(Failure::Nonsense(_)) => false,
            Err(_) if is_absent(answer.status) => false,
            Err(failure) => return Err(refusal.unwrap_or(failure)),
        };
        match refusal {
            Some(failure) if !is_list => Err(failure),
            _ => Ok(is_list),
        }
    }

    /// Remembers where the registry has answered.
    pub(super) fn answered_at(&self, mount: &Mount) {
        if self.location.elsewhere.as_ref() != Some(mount) {
            return;
        }
        let now = Instant::now();
        let before = {
            let mut mounted = self.mounted.lock();
            let before = *mounted;
            match before {
                Some(Mounted::Below) => return,
                Some(Mounted::Elsewhere { look_again }) if now < look_again => return,
                _ => {}
            }
            *mounted = Some(Mounted::Elsewhere { look_again: now + ASK_AGAIN });
            before
        };
        if before.is_none() {
            event!(
                WARN,
                url = self.location.url,
                "no registry below the path of its URL: /v1 is asked for at the root"
            );
        }
    }

    /// Whether its lists were not filtered by service when that was last looked at.
    pub(super) fn is_unfiltered(&self) -> bool {
        self.unfiltered.lock().is_some_and(|until| Instant::now() < until)
    }

    /// The registry filters nothing by service: told once.
    pub(super) fn filters_nothing(&self) {
        let was = self.unfiltered.lock().replace(Instant::now() + ASK_AGAIN);
        if was.is_none() {
            event!(
                WARN,
                url = self.location.url,
                "the registry has no /v1 and filters nothing: its one list serves every service"
            );
        }
    }

    fn asks_v1(&self) -> bool {
        self.fallback.lock().is_none_or(|again| again <= Instant::now())
    }

    pub(super) fn has_spoken_v1(&self) -> bool {
        self.spoke_v1.load(Relaxed)
    }

    fn found_v1(&self) {
        *self.unfiltered.lock() = None;
        self.spoke_v1.store(true, Relaxed);
        if self.fallback.lock().take().is_some() {
            event!(INFO, url = self.location.url, "fallback left: the registry speaks /v1");
        }
    }

    fn lacks_v1(&self, status: StatusCode) {
        let was = self.fallback.lock().replace(Instant::now() + ASK_AGAIN);
        if was.is_none() {
            event!(
                INFO,
                url = self.location.url,
                status = status.as_u16(),
                "fallback taken: the registry has no /v1, its header contract is used"
            );
        }
    }
}

/// Whether a status says that nothing is served at a path.
fn is_absent(status: StatusCode) -> bool {
    matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED)
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
        status if is_absent(status) => Ok(None),
        status if status.is_server_error() => Err(Failure::unavailable(format!("status {status}"))),
        status if status.is_client_error() => Err(Failure::refused(answer)),
        status => Err(Failure::Nonsense(format!("status {status}"))),
    }
}
