//! The table that finds how many calls may be at work: no sockets, no clock.

use std::time::Duration;

use tokio::time::Instant;

use super::setting::Adaptive;

/// The least time, and the fewest calls, that a decision is made from.
const WINDOW: Duration = Duration::from_millis(100);
const ENOUGH: u32 = 20;
/// Calls that started in a window must have held this share of the places in it, or those that
/// take long would not be heard.
const SHARE: f64 = 2.0 / 3.0;
/// When a decision is made from what there is: calls that started before may hold most of the
/// places for minutes.
const LONGEST: Duration = Duration::from_secs(2);
/// What takes at most this many times as long as usual is not slow.
const NOT_SLOW: f64 = 1.2;
/// A method that takes less counts as taking this long when it gets slower: what a busy machine
/// adds to a call of microseconds says nothing.
const FLOOR: f64 = 0.001;
/// A call weighs as much as its method takes, this many seconds at most: one call of a minute must
/// not outweigh the hundreds of its time.
const HEAVIEST: f64 = 0.1;
/// How many times as long as usual one call counts at most.
const CLIP: f64 = 4.0;
/// How far a window moves what a method usually takes.
const SHIFT: f64 = 0.1;
/// The first pause between two measurements at low load, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long it may take until the calls before such a measurement have ended, and again until
/// there are enough of its own: four times what a call took that filled the limit, this at most.
const PATIENCE: Duration = Duration::from_secs(5);

/// A call that has ended.
pub(super) struct Sample {
    /// The number of its method.
    pub(super) method: usize,
    /// When it was read.
    pub(super) read: Instant,
    pub(super) ended: Ended,
    /// Calls at work, with this one.
    pub(super) in_flight: usize,
    /// Calls turned away so far.
    pub(super) rejected: u64,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::server) enum Ended {
    /// With a result.
    Answered,
    /// With an error, a panic, or because its caller left: a result might have taken longer, so it
    /// counts only if it took longer than usual.
    Failed,
    /// By its deadline. If that was longer than usual, nobody knows how slow it would have been.
    Overdue,
}

/// Finds the limit: how many calls can be at work before they take noticeably longer than their
/// methods usually do.
///
/// What a method usually takes is learnt while less than half of the limit is used. A server that
/// is always full does not get there; so while it turns calls away it is held at a quarter of its
/// limit from time to time, until some calls have been through.
#[derive(Debug)]
pub(super) struct Table {
    settings: Adaptive,
    /// Fractions matter: a small limit grows by less than one.
    limit: f64,
    methods: Vec<Method>,
    /// `None` until a call ends.
    window: Option<Window>,
    probe: Option<Probe>,
    /// When the last measurement at low load ended, or calls were first turned away, and how long
    /// to wait from then.
    probed: Option<Instant>,
    pause: Duration,
}

/// A method's times in seconds.
#[derive(Clone, Debug, Default)]
struct Method {
    /// What it usually takes at low load.
    usual: Option<f64>,
    /// Of the window or the measurement under way.
    sum: f64,
    calls: u32,
}

/// Calls that started and ended since the last decision.
#[derive(Debug)]
struct Window {
    since: Instant,
    rejected: u64,
    /// How long the calls took in all, in seconds, and how many they are.
    spent: f64,
    calls: u32,
    /// The sum of the squares of those times: over their sum, it is the mean of the calls that a
    /// look at the places finds there.
    squares: f64,
    /// The sum of their slowness, weighed, and of the weights.
    slowness: f64,
    weight: f64,
    /// Calls at work, as every call that ended saw them, also those that started before.
    seen: f64,
    seen_by: u32,
    peak: usize,
}

/// A measurement at low load.
#[derive(Debug)]
struct Probe {
    since: Instant,
    patience: Duration,
    /// Since no more calls are at work than it allows.
    low: Option<Window>,
}

impl Table {
    pub(super) fn new(settings: &Adaptive, methods: usize) -> Self {
        let min = settings.min.max(1);
        let max = settings.max.max(min);
        let settings = Adaptive {
            min,
            max,
            initial: settings.initial.clamp(min, max),
            tolerance: settings.tolerance.max(1.1),
        };
        Self {
            limit: settings.initial as f64,
            settings,
            methods: vec![Method::default(); methods],
            window: None,
            probe: None,
            probed: None,
            pause: FIRST_PAUSE,
        }
    }

    /// How many calls may be at work now.
    pub(super) fn limit(&self) -> usize {
        match self.probe {
            Some(_) => (self.limit / 4.0).max(1.0) as usize,
            None => self.limit as usize,
        }
    }

    /// Takes in a call that has ended.
    pub(super) fn add(&mut self, now: Instant, sample: &Sample) {
        if self.probe.is_some() {
            return self.add_to_probe(now, sample);
        }
        let window = self.window.get_or_insert_with(|| Window::new(sample.read, sample.rejected));
        window.add(now, sample, &mut self.methods[sample.method]);
        let elapsed = now.saturating_duration_since(window.since);
        let whole = elapsed >= WINDOW && window.speaks(now);
        if whole || (elapsed >= LONGEST && window.calls >= ENOUGH) {
            self.decide(now, sample.rejected);
        }
    }

    /// Takes in that a call was turned away: a measurement that no call ends must end as well.
    pub(super) fn turn_away(&mut self, now: Instant, rejected: u64) {
        if self.probe.as_ref().is_some_and(|probe| probe.is_overdue(now)) {
            self.end_probe(now, rejected);
        }
    }

    /// Ends a window: moves the limit, and what the methods usually take.
    fn decide(&mut self, now: Instant, rejected: u64) {
        let Some(window) = self.window.replace(Window::new(now, rejected)) else { return };
        // A limit that is not used proves nothing, neither up nor down.
        let used = window.peak as f64 >= self.limit / 2.0;
        let low = !used;
        for method in &mut self.methods {
            method.learn(low);
        }
        if low {
            self.pause = FIRST_PAUSE;
            return;
        }
        if window.weight == 0.0 {
            return;
        }
        let slowness = window.slowness / window.weight;
        let room = self.limit.sqrt();
        let wanted = if slowness <= NOT_SLOW {
            self.limit + room.max(self.limit / 4.0)
        } else if slowness <= self.settings.tolerance {
            self.limit + room
        } else {
            // Half of the way, and never below half: one window may be an accident.
            let wanted = self.limit * (self.settings.tolerance / slowness).max(0.5) + room;
            (self.limit + wanted) / 2.0
        };
        self.limit = wanted.clamp(self.settings.min as f64, self.settings.max as f64);
        // Calls that take as long as ever need no measurement.
        let sheds = rejected > window.rejected;
        if sheds && slowness > NOT_SLOW {
            let last = *self.probed.get_or_insert(now);
            if now.saturating_duration_since(last) >= self.pause {
                let patience = Duration::from_secs_f64(4.0 * window.squares / window.spent);
                let patience = patience.clamp(WINDOW, PATIENCE);
                self.probe = Some(Probe { since: now, patience, low: None });
            }
        }
    }

    fn add_to_probe(&mut self, now: Instant, sample: &Sample) {
        let limit = self.limit();
        let Some(probe) = &mut self.probe else { return };
        if probe.low.is_none() && sample.in_flight <= limit {
            (probe.since, probe.low) = (now, Some(Window::new(now, sample.rejected)));
        }
        let mut done = probe.is_overdue(now);
        if let Some(low) = &mut probe.low {
            low.add(now, sample, &mut self.methods[sample.method]);
            done |= low.speaks(now);
        }
        if done {
            self.end_probe(now, sample.rejected);
        }
    }

    fn end_probe(&mut self, now: Instant, rejected: u64) {
        self.probe = None;
        for method in &mut self.methods {
            method.replace();
        }
        self.probed = Some(now);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.window = Some(Window::new(now, rejected));
    }
}

impl Probe {
    fn is_overdue(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= self.patience
    }
}

impl Method {
    /// How long a call took, in seconds; `None` if that says nothing.
    fn took(&mut self, now: Instant, sample: &Sample) -> Option<f64> {
        let took = now.saturating_duration_since(sample.read).as_secs_f64();
        if sample.ended == Ended::Answered {
            self.sum += took;
            self.calls += 1;
            return Some(took);
        }
        self.usual.is_some_and(|usual| took > usual).then_some(took)
    }

    /// Ends a window. Only at low load is what it took what it usually takes.
    fn learn(&mut self, low: bool) {
        let (sum, calls) = self.empty();
        if calls == 0 {
            return;
        }
        let mean = sum / f64::from(calls);
        match &mut self.usual {
            None => self.usual = Some(mean),
            Some(usual) if low => {
                let sure = f64::from(calls.min(ENOUGH)) / f64::from(ENOUGH);
                *usual += (mean - *usual) * SHIFT * sure;
            }
            Some(_) => {}
        }
    }

    /// Ends a measurement at low load.
    fn replace(&mut self) {
        let (sum, calls) = self.empty();
        // Two calls may be accidents.
        if calls > 2 {
            self.usual = Some(sum / f64::from(calls));
        }
    }

    fn empty(&mut self) -> (f64, u32) {
        (std::mem::take(&mut self.sum), std::mem::take(&mut self.calls))
    }
}

impl Window {
    fn new(since: Instant, rejected: u64) -> Self {
        Self {
            since,
            rejected,
            spent: 0.0,
            calls: 0,
            squares: 0.0,
            slowness: 0.0,
            weight: 0.0,
            seen: 0.0,
            seen_by: 0,
            peak: 0,
        }
    }

    fn add(&mut self, now: Instant, sample: &Sample, method: &mut Method) {
        self.seen += sample.in_flight as f64;
        self.seen_by += 1;
        self.peak = self.peak.max(sample.in_flight);
        // What started before was under another limit.
        if sample.read >= self.since
            && let Some(took) = method.took(now, sample)
        {
            self.count(took, method.usual, sample.ended);
        }
    }

    fn count(&mut self, took: f64, usual: Option<f64>, ended: Ended) {
        self.spent += took;
        self.calls += 1;
        self.squares += took * took;
        if let Some(usual) = usual {
            let weight = usual.min(HEAVIEST);
            self.slowness += weight
                * match ended {
                    Ended::Answered | Ended::Failed => (took / usual.max(FLOOR)).min(CLIP),
                    Ended::Overdue => CLIP,
                };
            self.weight += weight;
        }
    }

    /// Whether its calls are enough, and speak for those that fill the places.
    fn speaks(&self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.since).as_secs_f64();
        let held = self.seen / f64::from(self.seen_by.max(1)) * elapsed;
        self.calls >= ENOUGH && self.spent >= held * SHARE
    }
}

#[cfg(test)]
mod tests;
