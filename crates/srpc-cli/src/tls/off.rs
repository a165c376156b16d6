//! Without the feature `tls` nothing can be said about certificates, and sockets are plain.

use std::sync::Arc;

use clap::Args;
use srpc::transport::{Net, Transport};

use crate::exit::Exit;

pub(crate) const LACKS_AUTHORITY: &str = "this command was built without the feature `tls`";
pub(super) const LACKS_CERTIFICATE: &str = LACKS_AUTHORITY;

// What is listened with.
#[derive(Debug, Args)]
pub(crate) struct Listening {}

impl Listening {
    /// Whether clients must prove who they are.
    pub(crate) fn identifies(&self) -> bool {
        false
    }

    pub(super) fn is_given(&self) -> bool {
        false
    }

    pub(super) fn transport(&self) -> Result<Arc<dyn Transport>, Exit> {
        Ok(Arc::new(Net::default()))
    }
}

// What is dialled with.
#[derive(Debug, Args)]
pub(crate) struct Dialling {}

impl Dialling {
    /// Real sockets.
    pub(crate) fn transport(&self) -> Result<Arc<dyn Transport>, Exit> {
        Ok(Arc::new(Net::default()))
    }
}
