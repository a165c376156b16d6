//! What an operator says of an instance's health, who says it, why, and for how long.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::instance::Health;

/// What an operator says of an instance's health.
///
/// The operator's word and the instance's own are kept apart, and the worse one is told: up, unready,
/// draining. [`Health::Up`] takes an earlier word back.
///
/// Its JSON is `{"health": "draining", "by": "...", "reason": "...", "for_ms": 60000}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HealthOverride {
    /// What the instance is said to be.
    pub health: Health,
    /// Who says it. Default: nobody is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why. Default: no reason is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How much longer it holds; `None`: until it is taken back. It is a length of time and not a date,
    /// so that no clocks are compared. Default: none.
    #[serde(default, rename = "for_ms", skip_serializing_if = "Option::is_none")]
    #[serde(serialize_with = "to_millis", deserialize_with = "from_millis")]
    pub duration: Option<Duration>,
}

impl HealthOverride {
    /// A word of nobody in particular that holds until it is taken back.
    pub fn new(health: Health) -> Self {
        Self { health, by: None, reason: None, duration: None }
    }

    /// Says who. Default: nobody is named.
    #[must_use]
    pub fn by(mut self, by: impl Into<String>) -> Self {
        self.by = Some(by.into());
        self
    }

    /// Says why. Default: no reason is given.
    #[must_use]
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Says for how long. Default: until it is taken back.
    #[must_use]
    pub fn lasting(mut self, duration: Duration) -> Self {
        self.duration = Some(duration);
        self
    }

    /// Whether the registered state of an instance, whose epoch is higher than when this was said, has
    /// taken it over: from then on the instance itself says so.
    pub(crate) fn is_taken_over_by(&self, health: Health) -> bool {
        match self.health {
            Health::Up => health == Health::Up,
            said => health.worse_of(said) == health,
        }
    }
}

impl From<Health> for HealthOverride {
    fn from(health: Health) -> Self {
        Self::new(health)
    }
}

fn to_millis<S: Serializer>(duration: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    let millis = |duration: &Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    duration.as_ref().map(millis).serialize(to)
}

fn from_millis<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    Ok(Option::<u64>::deserialize(from)?.map(Duration::from_millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_json_is_what_the_registry_api_says() {
        let drained = HealthOverride::new(Health::Draining)
            .by("ops")
            .reason("kernel")
            .lasting(Duration::from_secs(60));
        let json = r#"{"health":"draining","by":"ops","reason":"kernel","for_ms":60000}"#;
        assert_eq!(serde_json::to_string(&drained).unwrap(), json);
        assert_eq!(serde_json::from_str::<HealthOverride>(json).unwrap(), drained);
        let plain = HealthOverride::from(Health::Up);
        assert_eq!(serde_json::from_str::<HealthOverride>(r#"{"health":"up"}"#).unwrap(), plain);
    }

    #[test]
    fn only_a_state_that_is_as_bad_has_taken_it_over() {
        let drained = HealthOverride::new(Health::Draining);
        assert!(drained.is_taken_over_by(Health::Draining));
        assert!(!drained.is_taken_over_by(Health::Unready));
        assert!(HealthOverride::new(Health::Unready).is_taken_over_by(Health::Draining));
        assert!(HealthOverride::new(Health::Up).is_taken_over_by(Health::Up));
        assert!(!HealthOverride::new(Health::Up).is_taken_over_by(Health::Draining));
    }
}
