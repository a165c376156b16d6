//! A fleet in simulated time: clients whose calls come at random, servers that do one thing after the other.
#![allow(clippy::expect_used, reason = "what cannot be is a defect of the study")]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use srpc::Instance;
use srpc::backend::static_list::StaticList;
use srpc::backend::wrap::Subset;
use srpc::discovery::{Discovery, Endpoint, EndpointSet, InFlight, Outcome};
use srpc::selector::{PickContext, Picker, guarded_pick};
use tokio::time::Instant;

use crate::policy::Policy;

/// What one call takes a server, in the mean; how long it takes varies as an exponential distribution does.
const WORK: f64 = 10e-3;
/// How long a call and its reply are under way, each.
const WAY: u64 = 250_000;
/// How many servers a client of the policy by that name knows.
const SUBSET: usize = 10;

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fleet {
    pub(crate) servers: usize,
    pub(crate) clients: usize,
    /// The share of the servers' time that the calls need.
    pub(crate) load: f64,
    /// Whether every other server takes three times as long as those between, the mean being the same.
    pub(crate) uneven: bool,
    pub(crate) length: Duration,
}

/// What happens next, and when, in nanoseconds.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A server has done a call.
    Done { call: usize },
    /// Its client has the reply.
    Replied { call: usize },
}

struct Call {
    server: usize,
    sent: u64,
    counted: Option<InFlight>,
    /// What the server says that it has in flight.
    load: u32,
}

/// One client: its own view of the servers, and its own picker.
struct Client {
    endpoints: EndpointSet,
    picker: Box<dyn Picker>,
    /// The server that each endpoint is.
    servers: Vec<usize>,
}

impl Fleet {
    /// The 99th percentile of the calls after the first quarter of the time.
    pub(crate) fn p99(&self, policy: Policy, seed: u64) -> Duration {
        let mut rng = StdRng::seed_from_u64(seed);
        let busy: Arc<[AtomicU32]> = (0..self.servers).map(|_| AtomicU32::new(0)).collect();
        let born = Instant::now();
        let clients = self.clients(policy, born, &busy, &mut rng);
        let end = nanos(self.length);
        let mut free = vec![0_u64; self.servers];
        let mut calls: Vec<Call> = Vec::new();
        let mut unused = Vec::new();
        let mut events = BinaryHeap::new();
        let mut took: Vec<u64> = Vec::new();
        let pause = WORK / (self.load * self.servers as f64);
        let mut arrives = random_time(&mut rng, pause);
        while arrives < end {
            // What happens before the next call comes.
            while let Some(Reverse((at, _))) = events.peek()
                && *at <= arrives
            {
                let Some(Reverse((at, event))) = events.pop() else { break };
                match event {
                    Event::Done { call } => {
                        let done = &mut calls[call];
                        done.load = busy[done.server].fetch_sub(1, Relaxed);
                        events.push(Reverse((at + WAY, Event::Replied { call })));
                    }
                    Event::Replied { call } => {
                        let replied = &mut calls[call];
                        let load = if policy.hears() { replied.load } else { 0 };
                        if let Some(counted) = replied.counted.take() {
                            let now = born + Duration::from_nanos(at);
                            counted.end(Outcome::Succeeded { load }, now);
                        }
                        if replied.sent > end / 4 {
                            took.push(at - replied.sent);
                        }
                        unused.push(call);
                    }
                }
            }
            let client = rng.random_range(0..clients.len());
            let (server, counted) =
                clients[client].pick(born + Duration::from_nanos(arrives), &mut rng);
            busy[server].fetch_add(1, Relaxed);
            let begins = free[server].max(arrives + WAY);
            free[server] = begins + random_time(&mut rng, self.work(server));
            let call = Call { server, sent: arrives, counted: Some(counted), load: 0 };
            let at = match unused.pop() {
                Some(at) => {
                    calls[at] = call;
                    at
                }
                None => {
                    calls.push(call);
                    calls.len() - 1
                }
            };
            events.push(Reverse((free[server], Event::Done { call: at })));
            arrives += random_time(&mut rng, pause);
        }
        // Those that are not answered yet count with the time that they have taken so far.
        let left = calls.iter().filter(|call| call.counted.is_some() && call.sent > end / 4);
        took.extend(left.map(|call| end - call.sent));
        let place = took.len() * 99 / 100;
        Duration::from_nanos(*took.select_nth_unstable(place).1)
    }

    fn work(&self, server: usize) -> f64 {
        match (self.uneven, server % 2) {
            (false, _) => WORK,
            (true, 0) => WORK * 1.5,
            (true, _) => WORK * 0.5,
        }
    }

    fn clients(
        &self,
        policy: Policy,
        born: Instant,
        busy: &Arc<[AtomicU32]>,
        rng: &mut StdRng,
    ) -> Vec<Client> {
        let instances: Vec<Instance> = (0..self.servers).map(instance).collect();
        let shared: Vec<Arc<Instance>> = instances.iter().cloned().map(Arc::new).collect();
        let list = StaticList::new(instances);
        (0..self.clients)
            .map(|number| {
                let servers: Vec<usize> = match policy {
                    Policy::Subset => known(&list, number),
                    _ => (0..self.servers).collect(),
                };
                let endpoint = |at: &usize| Endpoint::new(Arc::clone(&shared[*at]), born);
                let endpoints = EndpointSet::new(servers.iter().map(endpoint).collect());
                let selector = policy.selector(rng.random(), busy);
                let picker = selector.prepare(&Arc::new(endpoints.clone()));
                Client { endpoints, picker, servers }
            })
            .collect()
    }
}

impl Client {
    fn pick(&self, now: Instant, rng: &mut StdRng) -> (usize, InFlight) {
        let cx = PickContext::new(now, rng.random());
        let picked = guarded_pick(&*self.picker, &self.endpoints, &cx);
        let at = picked.expect("every server is usable");
        let endpoint = self.endpoints.at(at).expect("a pick is one of the set");
        (self.servers[at], endpoint.start(now))
    }
}

fn instance(number: usize) -> Instance {
    let address = format!("tcp@10.0.{}.{}:7001", number / 250, number % 250 + 1);
    Instance::new(number.to_string(), address.parse().expect("it is an address"))
}

/// Which servers a client knows of this list.
fn known(list: &StaticList, client: usize) -> Vec<usize> {
    let subset = Subset::new(list.clone(), SUBSET, client as u32);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let resolved = runtime.block_on(subset.resolve(&"Any".parse().expect("it is a name")));
    let known = resolved.expect("a list does not fail").instances;
    known.iter().map(|one| one.id.as_str().parse().expect("its number")).collect()
}

fn random_time(rng: &mut StdRng, mean: f64) -> u64 {
    // Above 0: its logarithm is finite.
    let uniform: f64 = 1.0 - rng.random::<f64>();
    (-uniform.ln() * mean * 1e9) as u64
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
