//! Who a data directory is, as its two files say it.

use bytes::Bytes;
use redb::{Database, ReadableDatabase, TableDefinition, TableError};

use crate::error::StartError;
use crate::format::identity::{IDENTITY_TABLE, IdentityRow, decode_identity, encode_identity};
use crate::format::log::{IDENTITY_KEY, LOG_TABLE};
use crate::types::{ClusterId, NodeId};

use super::Directory;
use super::disk::File;
use super::log_rows::RowsError;

/// What a node knows of itself before it knows anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Minted when the directory was made.
    pub(crate) node: NodeId,
    /// The name the directory was made under.
    pub(crate) name: String,
    /// Minted with the directory; ties its two files together.
    pub(crate) nonce: u64,
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
            cluster: row.cluster,
            promise: row.promise.map(|(cluster, peers)| Promise { cluster, peers }),
        }
    }
}

impl Directory {
    /// The row in `file`; `None` if its creation did not get so far.
    pub(super) fn read_identity(&self, file: File, db: &Database) -> Result<Option<IdentityRow>, StartError> {
        self.read(file, || read_row(db, table(file)))
    }

    /// Writes the row of `identity`, durable when this returns.
    pub(super) fn write_identity(
        &self,
        file: File,
        db: &Database,
        identity: &Identity,
        complete: bool,
    ) -> Result<(), StartError> {
        let row = encode_identity(&identity.row(complete));
        write_row(db, table(file), &row).map_err(|error| self.refused(file, error))
    }
}

type IdentityTable = TableDefinition<'static, u64, &'static [u8]>;

fn table(file: File) -> IdentityTable {
    TableDefinition::new(match file {
        File::Log => LOG_TABLE,
        File::State => IDENTITY_TABLE,
    })
}

fn read_row(db: &Database, table: IdentityTable) -> Result<Option<IdentityRow>, RowsError> {
    let table = match db.begin_read()?.open_table(table) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        table => table?,
    };
    let Some(row) = table.get(IDENTITY_KEY)? else { return Ok(None) };
    let row = decode_identity(Bytes::copy_from_slice(row.value()));
    row.map(Some).map_err(|error| RowsError::Row { key: IDENTITY_KEY, error })
}

fn write_row(db: &Database, table: IdentityTable, row: &[u8]) -> Result<(), RowsError> {
    let txn = db.begin_write()?;
    txn.open_table(table)?.insert(IDENTITY_KEY, row)?;
    Ok(txn.commit()?)
}
