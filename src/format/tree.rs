//! Nodes of the tree: what is stored at a path.
//!
//! One byte says what the node is. Behind that of a file stands its value, with the codec's own header; behind that of a
//! directory stands nothing, since what it holds are the keys below it.

use bytes::{BufMut, Bytes, BytesMut};

use super::wire::DecodeError;

const FILE: u8 = 1;
const DIRECTORY: u8 = 2;

/// What stands at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TreeNode {
    Directory,
    /// Its value, as the codec wrote it.
    File(Bytes),
}

pub(crate) fn encode_node(node: &TreeNode) -> Bytes {
    match node {
        TreeNode::Directory => Bytes::from_static(&[DIRECTORY]),
        TreeNode::File(value) => {
            let mut bytes = BytesMut::with_capacity(1 + value.len());
            bytes.put_u8(FILE);
            bytes.put_slice(value);
            bytes.freeze()
        }
    }
}

pub(crate) fn decode_node(bytes: &Bytes) -> Result<TreeNode, DecodeError> {
    match bytes.first() {
        None => Err(DecodeError::Truncated("tree node")),
        Some(&FILE) => Ok(TreeNode::File(bytes.slice(1..))),
        Some(&DIRECTORY) if bytes.len() == 1 => Ok(TreeNode::Directory),
        Some(&DIRECTORY) => Err(DecodeError::LeftOver { what: "directory", left: bytes.len() - 1 }),
        Some(&tag) => Err(DecodeError::UnknownTag { what: "tree node", tag: tag.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_directories_are_these_bytes() {
        for (node, bytes) in [
            (TreeNode::Directory, &b"\x02"[..]),
            (TreeNode::File(Bytes::new()), b"\x01"),
            (TreeNode::File(Bytes::from_static(b"\x01\x00\x00v")), b"\x01\x01\x00\x00v"),
        ] {
            assert_eq!(encode_node(&node).as_ref(), bytes);
            assert_eq!(decode_node(&Bytes::from_static(bytes)), Ok(node));
        }
    }

    #[test]
    fn a_node_of_no_known_kind_is_refused() {
        for bytes in [&b""[..], b"\x00", b"\x03abc", b"\x02\x00"] {
            assert!(decode_node(&Bytes::copy_from_slice(bytes)).is_err(), "{bytes:?}");
        }
    }
}
