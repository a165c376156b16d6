//! What became of each case: it ran, or it was left out for a stated reason.

use std::fmt;

/// How a case ended; a broken promise is a panic instead.
pub type Outcome = Result<(), LeftOut>;

/// A case needs what the thing under test lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("left out: {reason}")]
pub struct LeftOut {
    reason: &'static str,
}

impl LeftOut {
    /// Left out for this reason.
    pub fn new(reason: &'static str) -> Self {
        Self { reason }
    }

    /// What is lacking, in words.
    pub fn reason(&self) -> &'static str {
        self.reason
    }
}

/// Which cases ran, and which were left out and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The cases that ran, all of whose promises were kept.
    pub ran: Vec<&'static str>,
    /// The cases that did not run, each with its reason.
    pub left_out: Vec<(&'static str, &'static str)>,
}

impl Report {
    pub(super) fn record(&mut self, case: &'static str, outcome: Outcome) {
        match outcome {
            Ok(()) => self.ran.push(case),
            Err(left_out) => self.left_out.push((case, left_out.reason())),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ran {}: {}", self.ran.len(), self.ran.join(", "))?;
        for (case, reason) in &self.left_out {
            write!(f, "\nleft out {case}: {reason}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_told_with_its_reason() {
        let mut report = Report::default();
        report.record("expiry", Ok(()));
        report.record("epochs", Err(LeftOut::new("it keeps no epochs")));
        assert_eq!(report.to_string(), "ran 1: expiry\nleft out epochs: it keeps no epochs");
    }
}
