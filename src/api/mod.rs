//! The public handle and its verbs: values in, commands out, typed values back.

pub(crate) mod builder;
pub(crate) mod cluster;
pub(crate) mod fence;
pub(crate) mod history;
pub(crate) mod key;
pub(crate) mod keys;
pub(crate) mod kv;
pub(crate) mod layout;
pub(crate) mod listing;
pub(crate) mod mirror;
pub(crate) mod range;
pub(crate) mod read;
pub(crate) mod retry;
pub(crate) mod session;
pub(crate) mod snapshot;
pub(crate) mod table;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod turns;
pub(crate) mod txn;
pub(crate) mod update;
pub(crate) mod watch;
