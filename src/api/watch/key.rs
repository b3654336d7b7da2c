//! Waiting for one stored key to change: what locks and other recipes stand on.

use bytes::Bytes;

use crate::api::kv::read_error;
use crate::command::{KeyRange, KeyValue};
use crate::error::Error;
use crate::node::Node;
use crate::storage::state::StateStore;
use crate::types::Revision;
use crate::watch_hub::{Next, Subscription};

/// Follows the stored key `key` on this node, from what it held at `after` (the revision of the view it was read from).
pub(crate) fn watch_key(node: &Node, key: Bytes, after: Revision) -> KeyWatch {
    let changes = node.hub().subscribe(KeyRange::single(key.clone()));
    KeyWatch { state: node.state().clone(), changes, key, place: after }
}

/// What a key held at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyState {
    pub(crate) revision: Revision,
    pub(crate) entry: Option<KeyValue>,
}

/// See [`watch_key`].
pub(crate) struct KeyWatch {
    state: StateStore,
    changes: Subscription,
    key: Bytes,
    place: Revision,
}

impl KeyWatch {
    /// Waits until the key has been put or deleted since the last call (the first time: since `after`), and returns what it
    /// holds now, on this node. What it held in between is passed over.
    ///
    /// Now and then, when this node cannot tell (it was given a snapshot), it returns though nothing has happened.
    ///
    /// # Errors
    /// [`Error::Stopped`] when the node stops.
    /// # Cancel safety
    /// Nothing is lost: the next call finds it.
    pub(crate) async fn changed(&mut self) -> Result<KeyState, Error> {
        loop {
            match self.changes.next(self.place).await {
                Next::Batches(found, passed) if found.is_empty() => self.place = passed,
                Next::Batches(..) | Next::Behind(_) => return self.read(),
                Next::Closed(reason) => return Err(Error::Stopped { reason }),
            }
        }
    }

    /// The hub publishes after the view: the newest view shows whatever the look has found.
    fn read(&mut self) -> Result<KeyState, Error> {
        let view = self.state.view();
        let entry = view.get(&self.key).map_err(|error| read_error(error, view.revision))?;
        self.place = view.revision;
        Ok(KeyState { revision: view.revision, entry })
    }
}
