//! Outlier ejection: an endpoint that fails while its lease holds gets no calls for a while.

mod keeper;
mod probe;
mod settings;
mod table;
#[cfg(test)]
mod tests;

pub(super) use self::keeper::keep;
pub use self::probe::Probe;
pub(super) use self::probe::Probes;
pub use self::settings::OutlierEjection;
pub(super) use self::table::Outliers;
