//! Some of a source's instances.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::discovery::{Discovery, DiscoveryError, Resolved, Update, UpdateStream};
use crate::instance::{Instance, ServiceName};

type Suits = Arc<dyn Fn(&Instance) -> bool + Send + Sync>;

/// A source of which only the instances that suit are seen. Conditions add up.
///
/// ```
/// use srpc::backend::static_list::StaticList;
/// use srpc::backend::wrap::Filtered;
///
/// let all = StaticList::parse("tcp@10.0.0.1:7001")?;
/// let canaries = Filtered::new(all).zone("eu-1").meta("track", "canary");
/// # Ok::<(), srpc::instance::InvalidAddress>(())
/// ```
#[derive(Clone)]
pub struct Filtered<D> {
    source: D,
    suits: Suits,
}

impl<D> Filtered<D> {
    /// All of a source's instances, to be narrowed down.
    pub fn new(source: D) -> Self {
        Self { source, suits: Arc::new(|_| true) }
    }

    /// Only those that `suits` answers true for; asked at every change.
    #[must_use]
    pub fn only(self, suits: impl Fn(&Instance) -> bool + Send + Sync + 'static) -> Self {
        let before = self.suits;
        Self { source: self.source, suits: Arc::new(move |one| before(one) && suits(one)) }
    }

    /// Only those in this zone.
    #[must_use]
    pub fn zone(self, zone: impl Into<String>) -> Self {
        let zone = zone.into();
        self.only(move |instance| instance.zone.as_ref() == Some(&zone))
    }

    /// Only those of this version.
    #[must_use]
    pub fn version(self, version: impl Into<String>) -> Self {
        let version = version.into();
        self.only(move |instance| instance.version.as_ref() == Some(&version))
    }

    /// Only those with this entry in their metadata.
    #[must_use]
    pub fn meta(self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let (key, value) = (key.into(), value.into());
        self.only(move |instance| instance.metadata.get(&key) == Some(&value))
    }
}

#[async_trait]
impl<D: Discovery> Discovery for Filtered<D> {
    async fn resolve(&self, service: &ServiceName) -> Result<Resolved, DiscoveryError> {
        let mut resolved = self.source.resolve(service).await?;
        resolved.instances.retain(|instance| (self.suits)(instance));
        Ok(resolved)
    }

    fn watch(&self, service: &ServiceName) -> Option<UpdateStream> {
        let mut watch = self.source.watch(service)?;
        let suits = Arc::clone(&self.suits);
        Some(UpdateStream::fed(1, |updates| async move {
            while let Some(item) = watch.next().await {
                let items = match item {
                    Ok(update) => filtered(update, &suits).into_iter().map(Ok).collect(),
                    Err(error) => vec![Err(error)],
                };
                for item in items {
                    if !updates.send(item).await {
                        return;
                    }
                }
            }
        }))
    }

    async fn services(&self) -> Result<Vec<ServiceName>, DiscoveryError> {
        self.source.services().await
    }
}

/// One that no longer suits has gone, as far as is seen here.
fn filtered(update: Update, suits: &Suits) -> Vec<Update> {
    match update {
        Update::Set(mut resolved) => {
            resolved.instances.retain(|instance| suits(instance));
            vec![Update::Set(resolved)]
        }
        Update::Upsert(instances) => {
            let (fit, unfit): (Vec<_>, Vec<_>) =
                instances.into_iter().partition(|instance| suits(instance));
            let gone: Vec<_> = unfit.into_iter().map(|instance| instance.id).collect();
            let fit = (!fit.is_empty()).then_some(Update::Upsert(fit));
            let gone = (!gone.is_empty()).then_some(Update::Remove(gone));
            fit.into_iter().chain(gone).collect()
        }
        other => vec![other],
    }
}

impl<D: fmt::Debug> fmt::Debug for Filtered<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filtered").field("source", &self.source).finish_non_exhaustive()
    }
}
