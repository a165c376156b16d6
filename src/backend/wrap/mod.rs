//! Sources made of other sources: each is a [`Discovery`](crate::discovery::Discovery) around another one.
//!
//! | wrapper | what it adds |
//! |---|---|
//! | [`Cached`] | the last good list on disk, for a start while the source is down |
//! | [`Merged`] | several sources as one: a move from one registry to another without a gap |
//! | [`Filtered`] | some of the instances: of a zone, a version, with a word in their metadata |
//! | [`Prefixed`] | other names: `staging.Foo` where its users say `Foo`; a registry too |
//! | [`Subset`] | a few of very many instances, evenly over all clients |

mod cached;
mod filtered;
mod follow;
mod merged;
mod prefixed;
mod subset;

pub use self::cached::Cached;
pub use self::filtered::Filtered;
#[cfg(feature = "etcd")]
pub(in crate::backend) use self::follow::apply;
#[cfg(feature = "http")]
pub(in crate::backend) use self::follow::endless;
pub use self::merged::Merged;
pub use self::prefixed::Prefixed;
pub use self::subset::Subset;
