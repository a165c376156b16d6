//! One running server of a service, as it registers itself and as clients see it.

mod address;
mod precedence;
mod service_name;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub(crate) use self::address::UNDIALLABLE;
#[cfg(feature = "dns")]
pub(crate) use self::address::ends_in_number;
pub use self::address::{Address, InvalidAddress};
pub(crate) use self::precedence::Precedence;
pub use self::service_name::{InvalidServiceName, ServiceName};

/// The weight of an instance that names none.
pub const DEFAULT_WEIGHT: u32 = 1;

/// One running server of a service.
///
/// Within a service an `id` names one process and an `address` has one holder. The `epoch` orders
/// the registrations of one id: the higher one is newer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Instance {
    /// Names the process within its service; kept through every re-registration.
    pub id: InstanceId,
    /// Orders registrations of the same id: starts at the process's Unix milliseconds and rises by
    /// one at each change. Default: 0.
    #[serde(default)]
    pub epoch: u64,
    /// Where others reach it.
    pub address: Address,
    /// Its share of calls relative to its peers'; 0 means none while another is usable. Default: 1.
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// The failure domain it runs in. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// The version of the program that serves. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Anything else its owner wants its clients to know. Default: empty.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// What the instance says of itself. Default: up.
    #[serde(default)]
    pub health: Health,
}

fn default_weight() -> u32 {
    DEFAULT_WEIGHT
}

impl Instance {
    /// An instance that is known by its address alone: its id is the address's text, without a
    /// final dot of its host.
    pub fn at(address: Address) -> Self {
        let id = InstanceId::from(&*address.identity());
        Self::new(id, address)
    }

    /// An instance with the given id at the given address, up, with the default weight.
    pub fn new(id: impl Into<InstanceId>, address: Address) -> Self {
        Self {
            id: id.into(),
            epoch: 0,
            address,
            weight: DEFAULT_WEIGHT,
            zone: None,
            version: None,
            metadata: BTreeMap::new(),
            health: Health::Up,
        }
    }

    /// Sets the epoch. Default: 0.
    #[must_use]
    pub fn epoch(mut self, epoch: u64) -> Self {
        self.epoch = epoch;
        self
    }

    /// Sets the weight. Default: 1.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Sets the zone. Default: none.
    #[must_use]
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// Sets the version. Default: none.
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// Adds one entry of metadata.
    #[must_use]
    pub fn meta(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Sets the health. Default: up.
    #[must_use]
    pub fn health(mut self, health: Health) -> Self {
        self.health = health;
        self
    }
}

/// Names one process within its service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(Arc<str>);

impl InstanceId {
    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for InstanceId {
    fn from(id: &str) -> Self {
        Self(id.into())
    }
}

impl From<String> for InstanceId {
    fn from(id: String) -> Self {
        Self(id.into())
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an instance says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Health {
    /// Takes calls.
    #[default]
    Up,
    /// Finishes what it has and takes nothing new.
    Draining,
    /// Runs, but is not ready for calls.
    Unready,
}

impl Health {
    /// The worse of two: up, unready, draining.
    pub(crate) fn worse_of(self, other: Self) -> Self {
        match (self, other) {
            (Self::Draining, _) | (_, Self::Draining) => Self::Draining,
            (Self::Unready, _) | (_, Self::Unready) => Self::Unready,
            (Self::Up, Self::Up) => Self::Up,
        }
    }

    /// The word for it on the wire and in the command.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Draining => "draining",
            Self::Unready => "unready",
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
