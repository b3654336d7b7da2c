//! Transactions: several keys at one point and one revision, or nothing.
//!
//! There are two forms. In [`compare`] form all is said beforehand: if these conditions hold, do this, else that. In
//! [`closure`] form a function reads and writes as it likes, on a view of this node's; what it has read is then a condition
//! of what it has written, and it is run again if that does not hold ([`transact`]).
//!
//! Both come to one command of the log, which is decided once. What holds them to a lock or a session is [`super::fence`]'s.

pub(crate) mod closure;
pub(crate) mod compare;
mod merge;
mod range_set;
pub(crate) mod transact;
mod writes;

pub use closure::{Put, Txn, TxnTable};
pub use compare::{Condition, Operation, TableWhen, Transaction, TxnOutcome, When, list, put, read, remove, when};
pub use transact::{Committed, Transact};

#[cfg(test)]
mod tests;
