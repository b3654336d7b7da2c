//! Ranges that are read on the spot, of a snapshot or within a transaction: without waiting, from this node's own state.

use std::collections::VecDeque;

use super::layout::Layout;
use super::range::{Entries, RANGE_ENTRIES_MAX};
use super::snapshot::Snapshot;
use super::txn::Txn;
use crate::command::{KeyRange, KeyValue};
use crate::error::Error;
use crate::state_machine::read::ReadError;
use crate::storage::view::View;
use crate::types::Revision;

/// Keys that a [`Cursor`] reads at once, at the most.
const PAGE_ENTRIES: usize = 1_000;

/// Some keys that are to be read on the spot. Made by [`Snapshot::range`], [`Txn::range`](crate::Txn::range) and their like.
#[must_use = "nothing is read until it is asked for"]
#[derive(Debug)]
pub struct Listing<'a, V: 'static, K = String> {
    source: Source<'a>,
    keys: Result<KeyRange, Error>,
    limit: Option<u32>,
    reverse: bool,
    layout: Layout<V, K>,
}

/// Where it is read.
#[derive(Debug)]
pub(crate) enum Source<'a> {
    Snapshot(&'a Snapshot),
    Txn(&'a mut Txn),
}

impl<'a, V, K> Listing<'a, V, K> {
    pub(crate) fn new(source: Source<'a>, keys: Result<KeyRange, Error>, layout: Layout<V, K>) -> Self {
        Listing { source, keys, limit: None, reverse: false, layout }
    }

    /// Returns at most `limit` entries; never more than [`RANGE_ENTRIES_MAX`](crate::RANGE_ENTRIES_MAX) or about 4 MiB.
    pub fn limit(mut self, limit: u32) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Starts at the last key and goes down.
    pub fn reverse(mut self) -> Self {
        self.reverse = true;
        self
    }

    /// Reads the entries, in order. In a transaction: with its own writes, and whether there are
    /// [`more`](Entries::more) counts as read.
    ///
    /// # Errors
    /// As [`Snapshot::get`], or [`Txn::get`](crate::Txn::get). [`Error::Key`] for a key of another type.
    pub fn entries(self) -> Result<Entries<V, K>, Error> {
        let limit = self.limit.unwrap_or(RANGE_ENTRIES_MAX).min(RANGE_ENTRIES_MAX) as usize;
        let ((found, more), revision) = match self.source {
            Source::Snapshot(snapshot) => (snapshot.list(&self.keys?, limit, self.reverse)?, snapshot.revision()),
            Source::Txn(txn) => (txn.list(self.keys?, limit, self.reverse)?, txn.revision()),
        };
        let entries = found.iter().map(|stored| self.layout.key_entry(stored)).collect::<Result<_, Error>>()?;
        Ok(Entries { entries, more, revision })
    }

    /// Counts the keys instead of reading them, whatever the limit.
    ///
    /// # Errors
    /// As [`Snapshot::get`], or [`Txn::get`](crate::Txn::get).
    pub fn count(self) -> Result<u64, Error> {
        match self.source {
            Source::Snapshot(snapshot) => snapshot.count(&self.keys?),
            Source::Txn(txn) => txn.count(self.keys?),
        }
    }
}

/// Walks the live keys of a range of a view, in either direction, a page at a time.
pub(crate) struct Cursor<'a> {
    view: &'a View,
    at: Revision,
    rest: Option<KeyRange>,
    reverse: bool,
    page: VecDeque<KeyValue>,
    page_entries: usize,
}

impl<'a> Cursor<'a> {
    /// `wanted`: how many keys it will probably give.
    pub(crate) fn new(view: &'a View, keys: KeyRange, wanted: usize, reverse: bool) -> Self {
        let page_entries = wanted.clamp(1, PAGE_ENTRIES);
        Cursor { view, at: view.revision, rest: Some(keys), reverse, page: VecDeque::new(), page_entries }
    }

    pub(crate) fn peek(&mut self) -> Result<Option<&KeyValue>, ReadError> {
        if self.page.is_empty()
            && let Some(rest) = self.rest.take()
        {
            let (page, more) = self.view.range_at(self.at, &rest, self.page_entries, self.reverse)?;
            self.rest = page.last().filter(|_| more).map(|last| rest.behind(&last.key, self.reverse));
            self.page = page.into();
        }
        Ok(self.page.front())
    }

    pub(crate) fn next(&mut self) -> Result<Option<KeyValue>, ReadError> {
        self.peek()?;
        Ok(self.page.pop_front())
    }
}
