//! DNS as a source: the addresses of a name, or the targets of SRV records.
//!
//! ```no_run
//! use srpc::XClient;
//! use srpc::backend::dns::Dns;
//!
//! # fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = XClient::new("Foo", Dns::srv("_foo._tcp.example.org").build()?)?;
//! let other = XClient::new("Foo", Dns::addresses("{service}.svc.example.org", 7001).build()?)?;
//! # drop((client, other));
//! # Ok(())
//! # }
//! ```

mod names;

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use hickory_resolver::{Resolver, TokioResolver};
use tokio::time::{Instant, timeout, timeout_at};

use self::names::candidates;
use super::join::all;
use super::url::{InvalidUrl, masked};
use crate::call::after;
use crate::discovery::{Discovery, DiscoveryError, DiscoveryErrorKind, Resolved};
use crate::instance::{Address, Instance, ServiceName, UNDIALLABLE, ends_in_number};
use crate::sync::{Mutex, event};

/// How soon a name is asked for again at the earliest, whatever its records say.
const LEAST_TTL: Duration = Duration::from_secs(1);
/// How soon a name that is not there is asked for again, where no server says.
const MISSING_TTL: Duration = Duration::from_secs(5);
/// How soon what was not answered is asked for again, in seconds.
const FAILED_TTL: u32 = 5;
/// Of how many services it is remembered what the last list was made of.
const MAX_REMEMBERED: usize = 10_000;
/// How many targets' addresses are asked for at once.
const AT_ONCE: usize = 16;
/// How many names an alias may lead through.
const MOST_ALIASES: usize = 8;

/// DNS as a source. Nothing can be registered there, and nothing is watched: it is asked again when the
/// first of its records has run out, a second later at the earliest.
///
/// An instance has its address for an id. Of SRV records those with the lowest number for a priority
/// take the calls, by their weights (one of weight 0 counts 1); the others get weight 0, so that they take
/// calls only while none of the first can. A target `.` is none.
///
/// Its lists prove nothing. A name that is not there is an empty list. Where one of several questions (A
/// and AAAA, the targets of SRV records) is not answered, the list has the rest and what that question
/// gave before. It is incomplete then, as it is without a record that cannot be dialled. If no question
/// is answered it is an error, and clients keep what they have.
///
/// The search list and `ndots` of `resolv.conf` count for names without a dot at their end; `/etc/hosts` does
/// not. The file is read once, when the source is made.
#[derive(Clone)]
pub struct Dns {
    question: Question,
    config: ResolverConfig,
    options: ResolverOpts,
    timeout: Duration,
    /// What the last list of each service was made of.
    known: Arc<Mutex<HashMap<ServiceName, Arc<Parts>>>>,
}

/// The addresses of one kind of one name.
type Part = (Name, RecordType);
/// What each part of a list gave.
type Parts = HashMap<Part, Vec<IpAddr>>;
/// What came of the question for one part.
type PartAnswer = Result<Answer, DiscoveryError>;

/// What one list is asked over. dnsmasq answers a connection by what it knew when that was made, for as
/// long as it lasts: so no list is asked over one that an earlier list was.
struct Asking {
    resolver: TokioResolver,
    /// When what has no answer yet counts as failed.
    deadline: Instant,
    /// How long one kind of address is waited for once there are some of the other.
    patience: Duration,
    before: Arc<Parts>,
}

#[derive(Clone, Debug)]
enum Question {
    Addresses { name: String, port: u16 },
    Srv { name: String },
}

/// Configures a [`Dns`] source.
#[derive(Clone, Debug)]
#[must_use]
pub struct DnsBuilder {
    question: Question,
    server: Option<SocketAddr>,
    timeout: Duration,
}

impl Dns {
    /// Every address of a name (A and AAAA), at this port. In the name `{service}` stands for the
    /// service that is asked for.
    pub fn addresses(name: impl Into<String>, port: u16) -> DnsBuilder {
        DnsBuilder::new(Question::Addresses { name: name.into(), port })
    }

    /// Every target of the SRV records of a name such as `_foo._tcp.example.org`. In the name `{service}`
    /// stands for the service that is asked for.
    pub fn srv(name: impl Into<String>) -> DnsBuilder {
        DnsBuilder::new(Question::Srv { name: name.into() })
    }

    async fn answer(&self, service: &ServiceName) -> Result<Resolved, DiscoveryError> {
        let mut found = Found::default();
        let resolver = resolver(&self.config, &self.options);
        let resolver = resolver
            .map_err(|error| DiscoveryError::unavailable(error.to_string()).because(error))?;
        let before = self.known.lock().get(service).cloned().unwrap_or_default();
        let asking = Asking {
            resolver,
            // Before the time for the whole list is over, so that what was answered is told.
            deadline: after(Instant::now(), self.timeout.mul_f64(0.9)),
            patience: self.timeout / 4,
            before,
        };
        let candidates = |name: &Name| candidates(name, &self.config, self.options.ndots);
        match &self.question {
            Question::Addresses { name, port } => match parse(name, service)? {
                (_, Some(ip)) => found.add(ip, *port, 1),
                (name, None) => {
                    for name in candidates(&name) {
                        if !found.instances.is_empty() {
                            break;
                        }
                        let mut addresses = asking.addresses_of(&name).await;
                        if !addresses.is_answered
                            && let Some(error) = addresses.failed.take()
                        {
                            return Err(error);
                        }
                        found.add_all(addresses, *port, 1);
                    }
                }
            },
            Question::Srv { name } => {
                for name in candidates(&parse(name, service)?.0) {
                    let targets = asking.targets(name, &mut found).await?;
                    if !targets.is_empty() {
                        asking.add_targets(&targets, &mut found).await?;
                        break;
                    }
                }
            }
        }
        self.remember(service, std::mem::take(&mut found.parts));
        Ok(found.resolved())
    }

    fn remember(&self, service: &ServiceName, parts: Parts) {
        let mut known = self.known.lock();
        if parts.is_empty() {
            known.remove(service);
        } else if known.contains_key(service) || known.len() < MAX_REMEMBERED {
            known.insert(service.clone(), Arc::new(parts));
        }
    }
}

impl Asking {
    /// Both kinds of addresses. Each is asked for by itself: one that fails is not the other's absence.
    async fn addresses_of(&self, name: &Name) -> Addresses {
        let v4 = pin!(self.ask(name, RecordType::A));
        let v6 = pin!(self.ask(name, RecordType::AAAA));
        let answers = self.both(v4, v6).await;
        let mut addresses = Addresses::default();
        for (kind, answer) in [RecordType::A, RecordType::AAAA].into_iter().zip(answers) {
            let part = (name.clone(), kind);
            match answer {
                Ok(Answer::Records(lookup)) => {
                    addresses.is_answered = true;
                    let mut ips = Vec::new();
                    for record in lookup.answers() {
                        match (record.data.ip_addr(), &record.data) {
                            (Some(ip), _) => {
                                ips.push(ip);
                                addresses.ips.push((ip, record.ttl));
                            }
                            // The alias may point elsewhere before the addresses change.
                            (None, RData::CNAME(_)) => addresses.aliases.push(record.ttl),
                            _ => {}
                        }
                    }
                    addresses.parts.push((part, ips));
                }
                Ok(Answer::Missing(ttl)) => {
                    addresses.is_answered = true;
                    addresses.missing_for = addresses.missing_for.max(Some(ttl));
                }
                Err(error) => {
                    event!(DEBUG, %name, %kind, %error, "a part of a list was not answered");
                    if let Some(ips) = self.before.get(&part) {
                        addresses.ips.extend(ips.iter().map(|ip| (*ip, FAILED_TTL)));
                        addresses.parts.push((part, ips.clone()));
                    }
                    addresses.failed.get_or_insert(error);
                }
            }
        }
        addresses
    }

    async fn ask(&self, name: &Name, kind: RecordType) -> PartAnswer {
        let asked = async {
            match kind {
                RecordType::AAAA => self.resolver.ipv6_lookup(name.clone()).await,
                _ => self.resolver.ipv4_lookup(name.clone()).await,
            }
        };
        let late = |_| DiscoveryError::unavailable(format!("{name}: no answer in time"));
        records(name, timeout_at(self.deadline, asked).await.map_err(late)?)
    }

    /// Waits for both; once one has given addresses, a little longer for the other.
    async fn both<F>(&self, mut v4: Pin<&mut F>, mut v6: Pin<&mut F>) -> [PartAnswer; 2]
    where
        F: Future<Output = PartAnswer>,
    {
        tokio::select! {
            first = &mut v4 => {
                let second = self.second(&first, v6).await;
                [first, second]
            }
            first = &mut v6 => {
                let second = self.second(&first, v4).await;
                [second, first]
            }
        }
    }

    async fn second<F>(&self, first: &PartAnswer, second: Pin<&mut F>) -> PartAnswer
    where
        F: Future<Output = PartAnswer>,
    {
        // Without addresses the other has the time to be asked a second time: a packet may be lost.
        if !matches!(first, Ok(Answer::Records(lookup)) if has_addresses(lookup)) {
            return second.await;
        }
        let late = |_| Err(DiscoveryError::unavailable("no answer in time"));
        timeout(self.patience, second).await.unwrap_or_else(late)
    }

    /// Adds the addresses of all targets.
    ///
    /// # Errors
    /// None of them was answered, and nothing is known from before.
    async fn add_targets(&self, targets: &[SRV], found: &mut Found) -> Result<(), DiscoveryError> {
        let first = targets.iter().map(|srv| srv.priority).min().unwrap_or_default();
        let (mut is_answered, mut failed) = (false, None);
        for targets in targets.chunks(AT_ONCE) {
            let asked = targets.iter().map(|srv| self.addresses_of(&srv.target));
            let answers: Vec<Addresses> =
                all(asked.map(|asked| Box::pin(asked) as _).collect()).await;
            for (srv, mut addresses) in targets.iter().zip(answers) {
                is_answered |= addresses.is_answered;
                if let Some(error) = addresses.failed.take() {
                    found.lacks_a_part();
                    failed.get_or_insert(error);
                }
                let weight = if srv.priority == first { u32::from(srv.weight).max(1) } else { 0 };
                found.add_all(addresses, srv.port, weight);
            }
        }
        match failed {
            Some(error) if !is_answered && found.instances.is_empty() => Err(error),
            _ => Ok(()),
        }
    }

    async fn targets(&self, name: Name, found: &mut Found) -> Result<Vec<SRV>, DiscoveryError> {
        let mut asked = name;
        for _ in 0..MOST_ALIASES {
            let answer = self.resolver.srv_lookup(asked.clone()).await;
            // The library asks for the wrong name behind an alias (0.26.3): the alias is followed here.
            let is_elsewhere = matches!(
                &answer,
                Err(NetError::Dns(DnsError::NoRecordsFound(none))) if *none.query.name() != asked
            );
            if is_elsewhere {
                let alias = self.resolver.lookup(asked.clone(), RecordType::CNAME).await;
                if let Answer::Records(lookup) = records(&asked, alias)? {
                    let target = lookup.answers().iter().find_map(|record| match &record.data {
                        RData::CNAME(target) => Some((target.0.clone(), record.ttl)),
                        _ => None,
                    });
                    if let Some((target, ttl)) = target {
                        found.holds(ttl);
                        asked = target;
                        continue;
                    }
                }
            }
            return Ok(match records(&asked, answer)? {
                Answer::Records(lookup) => {
                    let mut targets = Vec::new();
                    for record in lookup.answers() {
                        if let RData::SRV(srv) = &record.data {
                            found.holds(record.ttl);
                            if !srv.target.is_root() {
                                targets.push(srv.clone());
                            }
                        }
                    }
                    targets
                }
                Answer::Missing(ttl) => {
                    found.missing(ttl);
                    Vec::new()
                }
            });
        }
        Err(invalid(format!("{asked}: more than {MOST_ALIASES} aliases")))
    }
}

#[async_trait]
impl Discovery for Dns {
    async fn resolve(&self, service: &ServiceName) -> Result<Resolved, DiscoveryError> {
        let limit = self.timeout;
        let late = |_| DiscoveryError::unavailable(format!("no answer within {limit:?}"));
        timeout(limit, self.answer(service)).await.map_err(late)?
    }
}

/// The addresses of a name, each with its TTL in seconds, or for how long there are none.
#[derive(Default)]
struct Addresses {
    ips: Vec<(IpAddr, u32)>,
    /// The TTLs of the aliases that led there.
    aliases: Vec<u32>,
    missing_for: Option<Duration>,
    /// What each kind gave, or gave before if it failed.
    parts: Vec<(Part, Vec<IpAddr>)>,
    /// Whether any kind was answered.
    is_answered: bool,
    /// Why one was not.
    failed: Option<DiscoveryError>,
}

/// What is known so far, and for how long.
#[derive(Default)]
struct Found {
    instances: Vec<Instance>,
    parts: Parts,
    /// A part of it was not answered, or cannot be dialled.
    is_incomplete: bool,
    valid_for: Option<Duration>,
    /// For how long a name is known not to be there.
    missing_for: Option<Duration>,
}

impl Found {
    fn add(&mut self, ip: IpAddr, port: u16, weight: u32) {
        let address = match Address::to_dial(&format!("tcp@{}", SocketAddr::new(ip, port))) {
            Ok(address) => address,
            // Port 0, or 0.0.0.0.
            Err(error) => {
                event!(DEBUG, %error, "a record that cannot be dialled");
                self.is_incomplete = true;
                return;
            }
        };
        match self.instances.iter_mut().find(|one| one.address == address) {
            Some(known) => known.weight = known.weight.max(weight),
            None => self.instances.push(Instance::at(address).weight(weight)),
        }
    }

    fn add_all(&mut self, addresses: Addresses, port: u16, weight: u32) {
        if addresses.failed.is_some() {
            self.lacks_a_part();
        }
        if let (true, Some(ttl)) = (addresses.ips.is_empty(), addresses.missing_for) {
            self.missing(ttl);
        }
        addresses.aliases.iter().for_each(|ttl| self.holds(*ttl));
        for (ip, ttl) in addresses.ips {
            self.holds(ttl);
            self.add(ip, port, weight);
        }
        self.parts.extend(addresses.parts);
    }

    /// A part was not answered: it is asked for again soon.
    fn lacks_a_part(&mut self) {
        self.is_incomplete = true;
        self.holds(FAILED_TTL);
    }

    fn holds(&mut self, ttl: u32) {
        let ttl = Duration::from_secs(ttl.into());
        self.valid_for = Some(self.valid_for.map_or(ttl, |least| least.min(ttl)));
    }

    fn missing(&mut self, ttl: Duration) {
        self.missing_for = Some(self.missing_for.map_or(ttl, |least| least.min(ttl)));
    }

    fn resolved(self) -> Resolved {
        let ttl = match self.instances.is_empty() && !self.is_incomplete {
            true => self.missing_for.or(self.valid_for),
            false => self.valid_for,
        };
        let mut resolved = Resolved::new(self.instances).complete(!self.is_incomplete);
        resolved.valid_for = ttl.map(|ttl| ttl.max(LEAST_TTL));
        resolved
    }
}

enum Answer {
    Records(Lookup),
    /// There is none of the kind that was asked for, which holds for so long.
    Missing(Duration),
}

fn has_addresses(lookup: &Lookup) -> bool {
    lookup.answers().iter().any(|record| record.data.ip_addr().is_some())
}

fn records(name: &Name, answer: Result<Lookup, NetError>) -> Result<Answer, DiscoveryError> {
    match answer {
        Ok(lookup) => Ok(Answer::Records(lookup)),
        // Without its zone's record, and with other servers to ask: a server that does not know.
        Err(NetError::Dns(DnsError::NoRecordsFound(none)))
            if none.soa.is_none() && none.ns.is_some() =>
        {
            Err(DiscoveryError::unavailable(format!("{name}: the server refers to others")))
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
            let ttl = none.negative_ttl.map(|ttl| Duration::from_secs(ttl.into()));
            Ok(Answer::Missing(ttl.unwrap_or(MISSING_TTL)))
        }
        Err(error) => Err(DiscoveryError::unavailable(format!("{name}: {error}")).because(error)),
    }
}

/// The name with the service in its place; and the address, if it is one.
fn parse(template: &str, service: &ServiceName) -> Result<(Name, Option<IpAddr>), DiscoveryError> {
    let text = template.replace("{service}", service.as_str());
    let bare = text.strip_suffix('.').unwrap_or(&text);
    let ip: Option<IpAddr> = bare.trim_start_matches('[').trim_end_matches(']').parse().ok();
    if ip.is_none() && ends_in_number(bare) {
        return Err(invalid(format!("{text:?}: it ends in a number, and is no IP address")));
    }
    if ip.is_some_and(|ip| ip.to_canonical().is_unspecified()) {
        return Err(invalid(format!("{text:?}: {UNDIALLABLE}")));
    }
    let name = match ip {
        Some(_) => Name::root(),
        None => Name::from_str(&text)
            .map_err(|error| invalid(format!("{:?}: {error}", masked(&text))))?,
    };
    Ok((name, ip))
}

fn invalid(message: impl Into<String>) -> DiscoveryError {
    DiscoveryError::new(DiscoveryErrorKind::Invalid, message)
}

impl DnsBuilder {
    fn new(question: Question) -> Self {
        Self { question, server: None, timeout: Duration::from_secs(5) }
    }

    /// The server to ask, over UDP, and over TCP for what is too long. Default: those of `resolv.conf`.
    pub fn server(mut self, server: SocketAddr) -> Self {
        self.server = Some(server);
        self
    }

    /// How long an answer may take, with all the questions that it needs; each of them is asked twice,
    /// with a quarter of it each time. Default: 5 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The source. Nothing is asked before it is used, which must be within one tokio runtime.
    ///
    /// # Errors
    /// [`InvalidUrl`] if the name can be none, if the port is 0, or if no server is named and `resolv.conf` names none.
    pub fn build(self) -> Result<Dns, InvalidUrl> {
        let name = match &self.question {
            Question::Addresses { name, .. } | Question::Srv { name } => name.clone(),
        };
        let refused = |reason: String| InvalidUrl::new(&name, reason);
        let any = "Any".parse::<ServiceName>().map_err(|error| refused(error.to_string()))?;
        if name.is_empty() {
            return Err(refused("an empty name".to_owned()));
        }
        if matches!(self.question, Question::Addresses { port: 0, .. }) {
            return Err(refused("port 0".to_owned()));
        }
        parse(&name, &any).map_err(|error| refused(error.message().to_owned()))?;
        let (config, mut options) = match self.server {
            Some(server) => {
                let servers = vec![name_server(server)];
                (ResolverConfig::from_parts(None, Vec::new(), servers), ResolverOpts::default())
            }
            None => read_system_conf().map_err(|error| refused(format!("resolv.conf: {error}")))?,
        };
        // Whoever asks has a schedule and a list of its own.
        options.cache_size = 0;
        options.attempts = 1;
        options.timeout = self.timeout / 4;
        options.use_hosts_file = ResolveHosts::Never;
        resolver(&config, &options).map_err(|error| refused(error.to_string()))?;
        Ok(Dns {
            question: self.question,
            config,
            options,
            timeout: self.timeout,
            known: Arc::default(),
        })
    }
}

fn resolver(config: &ResolverConfig, options: &ResolverOpts) -> Result<TokioResolver, NetError> {
    let provider = TokioRuntimeProvider::default();
    let builder = Resolver::builder_with_config(config.clone(), provider);
    builder.with_options(options.clone()).build()
}

fn name_server(server: SocketAddr) -> NameServerConfig {
    let (mut udp, mut tcp) = (ConnectionConfig::udp(), ConnectionConfig::tcp());
    (udp.port, tcp.port) = (server.port(), server.port());
    NameServerConfig::new(server.ip(), true, vec![udp, tcp])
}

impl fmt::Debug for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dns").field("question", &self.question).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_ends_in_a_number_is_an_ip_address_or_none() {
        let service = "Foo".parse().unwrap();
        for ip in ["10.9.9.9", "10.9.9.9.", "[::1]", "::1"] {
            assert!(parse(ip, &service).unwrap().1.is_some(), "{ip}");
        }
        for name in ["foo.example", "foo.example.", "_foo._tcp.example", "{service}"] {
            assert_eq!(parse(name, &service).unwrap().1, None, "{name}");
        }
        for none in ["0", "127.1", "0x7f.1", "a.0x.", "0.0.0.0", "[::]", "::ffff:0.0.0.0"] {
            assert!(parse(none, &service).is_err(), "{none}");
        }
    }

    #[test]
    fn what_cannot_be_dialled_takes_nothing_from_the_rest() {
        let mut found = Found::default();
        let [any, one, other] = ["0.0.0.0", "10.0.0.1", "::ffff:10.0.0.1"];
        for (ip, port) in [(any, 7001), (one, 7001), (other, 7001), (one, 0)] {
            found.add(ip.parse().unwrap(), port, 1);
        }
        found.missing(Duration::from_secs(3600));
        found.lacks_a_part();
        let resolved = found.resolved();
        let at: Vec<_> = resolved.instances.iter().map(|one| one.address.as_str()).collect();
        assert_eq!((at, resolved.complete), (vec!["tcp@10.0.0.1:7001"], false));
        assert_eq!(resolved.valid_for, Some(Duration::from_secs(5)));
    }
}
