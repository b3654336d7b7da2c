//! Who a data directory is, as its two files say it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use redb::{CommitError, Database, DatabaseError, ReadableDatabase, TableDefinition, TableError, TransactionError};

use crate::format::identity::{IDENTITY_KEY, IDENTITY_TABLE, IdentityRow, decode_identity, encode_identity};
use crate::format::wire::DecodeError;
use crate::rt::worker::panic_message;
use crate::types::{ClusterId, NodeId};

/// What a node knows of itself before it knows anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Minted when the directory was made.
    pub(crate) node: NodeId,
    /// The name the directory was made under.
    pub(crate) name: String,
    /// Minted with the directory; ties its two files together.
    pub(crate) nonce: u64,
    /// How often the directory has been opened, this time included. On disk before anybody is told.
    pub(crate) starts: u64,
    /// The cluster this node has become part of.
    pub(crate) cluster: Option<ClusterId>,
    /// What this node has promised to the node that forms a cluster. Replaced only while log and vote are empty.
    pub(crate) promise: Option<Promise>,
}

/// A node's word that it will be part of one cluster and no other.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Promise {
    pub(crate) cluster: ClusterId,
    /// Hash of the list of peers that the promise was given for.
    pub(crate) peers: u64,
}

impl Identity {
    /// The row that says so; `complete` if both files have been made.
    pub(super) fn row(&self, complete: bool) -> IdentityRow {
        IdentityRow {
            node: self.node,
            nonce: self.nonce,
            name: self.name.clone(),
            complete,
            starts: self.starts,
            cluster: self.cluster,
            promise: self.promise.map(|promise| (promise.cluster, promise.peers)),
        }
    }
}

impl From<IdentityRow> for Identity {
    fn from(row: IdentityRow) -> Self {
        Identity {
            node: row.node,
            name: row.name,
            nonce: row.nonce,
            starts: row.starts,
            cluster: row.cluster,
            promise: row.promise.map(|(cluster, peers)| Promise { cluster, peers }),
        }
    }
}

/// Why `state.redb` does not say who it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum DbError {
    #[error(transparent)]
    Open(#[from] DatabaseError),
    #[error(transparent)]
    Begin(#[from] TransactionError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Storage(#[from] redb::StorageError),
    #[error(transparent)]
    Commit(#[from] CommitError),
    #[error("redb panicked: {0}")]
    Panic(String),
    #[error("identity: {0}")]
    Row(#[from] DecodeError),
}

/// Reads a database that may be damaged: redb refuses most damage with an error, and some with a panic.
pub(super) fn guarded<T>(read: impl FnOnce() -> Result<T, DbError>) -> Result<T, DbError> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|panic| Err(DbError::Panic(panic_message(&*panic).to_owned())))
}

const TABLE: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new(IDENTITY_TABLE);

/// The row in `state.redb`; `None` if its creation did not get so far.
pub(super) fn read_row(db: &Database) -> Result<Option<IdentityRow>, DbError> {
    let table = match db.begin_read()?.open_table(TABLE) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        table => table?,
    };
    let Some(row) = table.get(IDENTITY_KEY)? else { return Ok(None) };
    Ok(Some(decode_identity(Bytes::copy_from_slice(row.value()))?))
}

/// Writes the row, durable when this returns.
pub(super) fn write_row(db: &Database, row: &IdentityRow) -> Result<(), DbError> {
    let txn = db.begin_write()?;
    txn.open_table(TABLE)?.insert(IDENTITY_KEY, &encode_identity(row)[..])?;
    Ok(txn.commit()?)
}
