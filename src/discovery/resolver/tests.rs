//! The resolver against a source that does as it is told, on a paused clock.

mod fake;
mod listing;
mod polling;
mod watching;
