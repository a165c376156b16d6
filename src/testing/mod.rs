//! The contracts of `Registry` and `Discovery` as a suite that every implementation can run.
//!
//! Write a [`Harness`], which tells how to reach the thing under test and what it lacks, and run
//! [`registry_suite`] (what can be written to) and [`discovery_suite`] (everything). A broken
//! promise is a panic that names the case and the promise. A case that needs what the thing under
//! test lacks is left out, printed, and listed in the [`Report`]. Every case is a public function,
//! so that one may be run alone.
//!
//! With tokio's clock paused the suite takes as long as its computation; otherwise it waits for
//! leases to end.
//!
//! ```
//! # use std::sync::Arc;
//! # use std::time::Duration;
//! use srpc::backend::memory::MemoryRegistry;
//! use srpc::discovery::Discovery;
//! use srpc::registry::Registry;
//! use srpc::testing::{self, Harness};
//!
//! struct InProcess(MemoryRegistry);
//!
//! impl Harness for InProcess {
//!     fn registry(&self) -> Option<Arc<dyn Registry>> {
//!         Some(Arc::new(self.0.clone()))
//!     }
//!     fn discovery(&self) -> Arc<dyn Discovery> {
//!         Arc::new(self.0.clone())
//!     }
//!     fn granularity(&self) -> Duration {
//!         Duration::from_millis(500) // its sweep
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
//! # .block_on(async {
//! let report = testing::expiry(&InProcess(MemoryRegistry::new())).await;
//! assert_eq!(report, Ok(()));
//! # });
//! ```

mod harness;
mod identity;
mod leases;
mod lists;
mod outages;
mod registration;
mod report;
mod scene;
mod watches;

pub use self::harness::{Capability, Harness};
pub use self::identity::{
    address_has_one_holder, address_spelling, epochs, newer_holder_keeps_its_address,
};
pub use self::leases::{
    a_lease_ends_alone, expiry, lease_lost, renew_after_expiry_is_lost, renew_keeps_alive,
};
pub use self::lists::{
    full_state_survives, many_instances, services_are_listed, services_are_separate,
    unknown_service_is_empty,
};
pub use self::outages::{
    deregistered_together, empty_and_shrunken_lists, expired_together, registrar_survives_restart,
    restarted_empty, source_down,
};
pub use self::registration::{
    deregister, deregister_unknown_succeeds, health_is_set, register_and_see,
    register_is_idempotent,
};
pub use self::report::{LeftOut, Outcome, Report};
pub use self::watches::{watch_first_is_set, watch_gap, watch_sees_changes};

/// Runs cases one after the other and prints what became of each.
macro_rules! run {
    ($harness:expr, $($case:ident),+ $(,)?) => {{
        let mut report = Report::default();
        $(report.record(stringify!($case), $case($harness).await);)+
        println!("{report}");
        report
    }};
}

/// Runs everything that a `Registry` and the `Discovery` over it promise, and prints the report.
///
/// # Panics
/// At the first promise that is broken.
///
/// # Cancellation
/// Leaves registrations behind, which end with their leases.
pub async fn registry_suite(harness: &dyn Harness) -> Report {
    run!(
        harness,
        register_and_see,
        register_is_idempotent,
        renew_keeps_alive,
        expiry,
        a_lease_ends_alone,
        lease_lost,
        renew_after_expiry_is_lost,
        deregister,
        deregister_unknown_succeeds,
        epochs,
        address_has_one_holder,
        address_spelling,
        newer_holder_keeps_its_address,
        health_is_set,
        services_are_separate,
        many_instances,
        full_state_survives,
        registrar_survives_restart,
        deregistered_together,
        expired_together,
    )
}

/// Runs everything that a `Discovery` promises, be its source written to through a registry or by
/// [`Harness::put`], and prints the report.
///
/// # Panics
/// At the first promise that is broken.
///
/// # Cancellation
/// Leaves behind what it put.
pub async fn discovery_suite(harness: &dyn Harness) -> Report {
    run!(
        harness,
        unknown_service_is_empty,
        services_are_separate,
        services_are_listed,
        many_instances,
        full_state_survives,
        source_down,
        empty_and_shrunken_lists,
        restarted_empty,
        watch_first_is_set,
        watch_sees_changes,
        watch_gap,
    )
}
