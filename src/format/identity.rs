//! Who a directory is: a row in each of its two files, an item of the log and a row of a table in the state; and the text
//! of the marker that a failed disk leaves behind.
//!
//! ```text
//! row     = crc, version: varint = 1, node: u64 LE, nonce: u64 LE, name, complete: bool, starts: varint,
//!           cluster?: u128 LE, promise?
//! promise = cluster: u128 LE, peers: u64 LE
//! ```
//!
//! The version is the directory's: a release that cannot read some other format in it raises this one, so that an older
//! release refuses the directory before it looks further.

use bytes::Bytes;

use super::wire::{DecodeError, Reader, Writer, unseal};
use crate::error::StorageError;
use crate::types::{ClusterId, NodeId};

/// The table of `state.redb` that holds the row, under [`IDENTITY_KEY`].
pub(crate) const IDENTITY_TABLE: &str = "identity";
pub(crate) const IDENTITY_KEY: u64 = u64::MAX - 3;

/// The newest directory this build reads, and the one it writes.
pub(crate) const DIRECTORY_VERSION: u64 = 1;

/// The row as it stands on disk. In `state.redb` only what ties the two files together is of interest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdentityRow {
    pub(crate) node: NodeId,
    pub(crate) nonce: u64,
    pub(crate) name: String,
    /// Whether both files have been made. See [`crate::storage::open`].
    pub(crate) complete: bool,
    /// How often the directory has been opened. In `state.redb` as it was when that was made.
    pub(crate) starts: u64,
    pub(crate) cluster: Option<ClusterId>,
    /// A cluster and the hash of the peers it was promised for.
    pub(crate) promise: Option<(ClusterId, u64)>,
}

pub(crate) fn encode_identity(row: &IdentityRow) -> Bytes {
    let mut w = Writer::sealing(0);
    w.varint(DIRECTORY_VERSION);
    w.fixed_u64(row.node.get());
    w.fixed_u64(row.nonce);
    w.str(&row.name);
    w.bool(row.complete);
    w.varint(row.starts);
    w.option(row.cluster, |w, cluster| w.fixed_u128(cluster.get()));
    w.option(row.promise, |w, (cluster, peers)| {
        w.fixed_u128(cluster.get());
        w.fixed_u64(peers);
    });
    w.seal()
}

pub(crate) fn decode_identity(row: Bytes) -> Result<IdentityRow, DecodeError> {
    const WHAT: &str = "identity";
    let cluster = |r: &mut Reader| r.fixed_u128("cluster id").map(ClusterId::new);
    let mut r = Reader::new(unseal(row, WHAT)?);
    let found = r.varint(WHAT)?;
    if found != DIRECTORY_VERSION {
        return Err(DecodeError::UnknownVersion { what: WHAT, found, known: DIRECTORY_VERSION });
    }
    let row = IdentityRow {
        node: NodeId::new(r.fixed_u64(WHAT)?),
        nonce: r.fixed_u64(WHAT)?,
        name: r.str(WHAT)?,
        complete: r.bool(WHAT)?,
        starts: r.varint(WHAT)?,
        cluster: r.option(WHAT, cluster)?,
        promise: r.option(WHAT, |r| Ok((cluster(r)?, r.fixed_u64(WHAT)?)))?,
    };
    r.end(WHAT)?;
    Ok(row)
}

/// What the marker of a failed directory says: the reason on the first line, then what to do.
pub(crate) fn failure_marker(error: &StorageError) -> String {
    let reason = error.to_string().replace(['\r', '\n'], " ");
    format!(
        "{reason}\n\nThis node has stopped for good: its disk failed, or its directory is not what it was. Do not start it again \
         on this directory, and do not delete this file: replace the member by one on an empty directory.\n"
    )
}

/// The reason in a marker; a marker without text still marks.
pub(crate) fn failure_reason(marker: &str) -> String {
    match marker.lines().next() {
        Some(reason) if !reason.is_empty() => reason.to_owned(),
        _ => "the marker is empty".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::wire::seal;

    fn row() -> IdentityRow {
        IdentityRow {
            node: NodeId::new(0x0102_0304_0506_0708),
            nonce: 9,
            name: "node-a".into(),
            complete: true,
            starts: 300,
            cluster: Some(ClusterId::new(0xc1)),
            promise: Some((ClusterId::new(0xc2), 77)),
        }
    }

    #[test]
    fn the_bytes_of_an_identity_are_what_they_have_always_been() {
        let hex: String = encode_identity(&row()).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, GOLDEN);
    }

    const GOLDEN: &str = "6a0891990108070605040302010900000000000000066e6f64652d6101ac0201c100000000000000000000000000000001c20000\
        000000000000000000000000004d00000000000000";

    #[test]
    fn an_identity_survives_the_trip_and_a_newer_directory_is_refused() {
        for row in [row(), IdentityRow { complete: false, cluster: None, promise: None, ..row() }] {
            assert_eq!(decode_identity(encode_identity(&row)), Ok(row));
        }
        let got = decode_identity(seal(&[2]));
        assert!(matches!(got, Err(DecodeError::UnknownVersion { found: 2, known: 1, .. })), "{got:?}");
    }

    #[test]
    fn a_marker_tells_its_reason_on_the_first_line_even_if_it_was_cut_off() {
        let error = StorageError::new("log.wal", "sync", "line one\nline two");
        assert_eq!(failure_reason(&failure_marker(&error)), "log.wal: sync: line one line two");
        assert_eq!(failure_reason(""), "the marker is empty");
    }
}
