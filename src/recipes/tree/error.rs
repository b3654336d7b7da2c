//! Why a verb of the tree was not carried out.

use crate::error::Error;
use crate::types::Revision;

/// Why a verb of the tree was not carried out: what stands at the path is not what the verb is for.
///
/// The conditions and their numbers ([`TreeError::code`]) are those of the keys API of etcd's version 2. Each was true at one
/// moment during the call, whose revision it names; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// Nothing is there. The path is that of the first directory on the way that is not there, or the whole one.
    #[error("key not found: {path} (revision {revision})")]
    KeyNotFound {
        /// The first path on the way where nothing is.
        path: String,
        /// The revision as of which that is so.
        revision: Revision,
    },
    /// The file is not of the revision that was asked for: read it, and decide again.
    #[error("{path} was last written at revision {modified}, not at {wanted} (revision {revision})")]
    CompareFailed {
        /// The path.
        path: String,
        /// The revision that the caller named.
        wanted: Revision,
        /// The revision of the newest put.
        modified: Revision,
        /// The revision as of which that is so.
        revision: Revision,
    },
    /// It is a directory, and the verb is for files.
    #[error("not a file: {path} (revision {revision})")]
    NotAFile {
        /// The path.
        path: String,
        /// The revision as of which that is so.
        revision: Revision,
    },
    /// It is a file, and the verb is for directories, or the path leads through it.
    #[error("not a directory: {path} (revision {revision})")]
    NotADirectory {
        /// The path of the file.
        path: String,
        /// The revision as of which that is so.
        revision: Revision,
    },
    /// Something is there already.
    #[error("key already exists: {path} (revision {revision})")]
    AlreadyExists {
        /// The path.
        path: String,
        /// The revision as of which that is so.
        revision: Revision,
    },
    /// The root can be neither written nor removed.
    #[error("root is read only: {path} (revision {revision})")]
    RootReadOnly {
        /// The path: `/`.
        path: String,
        /// This node's revision.
        revision: Revision,
    },
    /// Something is in the directory: remove that first, or remove it recursively.
    #[error("directory not empty: {path} (revision {revision})")]
    DirectoryNotEmpty {
        /// The path.
        path: String,
        /// The revision as of which that is so.
        revision: Revision,
    },
    /// The node was to have a time to live of its own, but it is in a directory that has one, and goes with that.
    #[error("{path} goes with the directory {directory}, whose time to live is limited (revision {revision})")]
    TtlInside {
        /// The path.
        path: String,
        /// The nearest directory that is there.
        directory: String,
        /// The revision as of which that is so.
        revision: Revision,
    },
    /// That is no path; nothing was sent.
    #[error("{path:?} is no path of the tree: {why}")]
    Path {
        /// What was given.
        path: String,
        /// The rule it breaks.
        why: String,
    },
    /// Everything that can go wrong with any key.
    #[error(transparent)]
    Store(#[from] Error),
}

impl TreeError {
    /// The number of the condition in the keys API of etcd's version 2: 100 to 108. `None` for what that has no number for.
    pub fn code(&self) -> Option<u16> {
        match self {
            TreeError::KeyNotFound { .. } => Some(100),
            TreeError::CompareFailed { .. } => Some(101),
            TreeError::NotAFile { .. } => Some(102),
            TreeError::NotADirectory { .. } => Some(104),
            TreeError::AlreadyExists { .. } => Some(105),
            TreeError::RootReadOnly { .. } => Some(107),
            TreeError::DirectoryNotEmpty { .. } => Some(108),
            TreeError::TtlInside { .. } | TreeError::Path { .. } | TreeError::Store(_) => None,
        }
    }
}
