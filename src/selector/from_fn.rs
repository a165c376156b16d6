//! A policy that is a closure.

use std::fmt;
use std::sync::Arc;

use super::{PickContext, Picker, Selector};
use crate::discovery::EndpointSet;

/// Makes a closure a selector. It is asked for each attempt and answers with an index into the set,
/// or `None` if it has no choice to offer; what it need not do is said at [`Picker`].
///
/// ```
/// use srpc::selector::from_fn;
///
/// // Whatever serves version 2; if nothing does, the framework takes any other.
/// let second_version = from_fn(|endpoints, cx| {
///     endpoints.iter().position(|endpoint| {
///         endpoint.is_usable(cx.now) && endpoint.instance().version.as_deref() == Some("2")
///     })
/// });
/// # let _ = second_version;
/// ```
pub fn from_fn<F>(choose: F) -> FromFn<F>
where
    F: Fn(&EndpointSet, &PickContext<'_>) -> Option<usize> + Send + Sync + 'static,
{
    FromFn(Arc::new(choose))
}

/// A selector that asks a closure; made by [`from_fn`]. Clones share the closure.
pub struct FromFn<F>(Arc<F>);

impl<F> Selector for FromFn<F>
where
    F: Fn(&EndpointSet, &PickContext<'_>) -> Option<usize> + Send + Sync + 'static,
{
    fn prepare(&self, _: &Arc<EndpointSet>) -> Box<dyn Picker> {
        Box::new(self.clone())
    }
}

impl<F> Picker for FromFn<F>
where
    F: Fn(&EndpointSet, &PickContext<'_>) -> Option<usize> + Send + Sync,
{
    fn pick(&self, endpoints: &EndpointSet, cx: &PickContext<'_>) -> Option<usize> {
        (self.0)(endpoints, cx)
    }
}

// Not derived: that would ask for a closure that is `Clone`.
impl<F> Clone for FromFn<F> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<F> fmt::Debug for FromFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FromFn")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;
    use crate::selector::guarded::fixture::{cx, set};

    #[test]
    fn a_closure_that_is_not_clone_chooses() {
        let asked = AtomicUsize::new(0);
        let selector = from_fn(move |endpoints, cx| {
            asked.fetch_add(1, Relaxed);
            (cx.attempt == 1).then(|| asked.load(Relaxed) % endpoints.len())
        });
        let set = set(&[1, 1, 1]);
        let picker = selector.prepare(&set);
        assert_eq!(picker.pick(&set, &cx(1)), Some(1));
        assert_eq!(selector.clone().prepare(&set).pick(&set, &cx(1)), Some(2));
        assert_eq!(picker.pick(&set, &cx(1).retry(2, &[])), None);
    }

    #[test]
    fn it_is_a_selector_behind_a_pointer() {
        let selector: Arc<dyn Selector> = Arc::new(from_fn(|_, _| Some(0)));
        let set = set(&[1]);
        assert_eq!(selector.prepare(&set).pick(&set, &cx(1)), Some(0));
        assert_eq!(format!("{selector:?}"), "Selector");
    }
}
