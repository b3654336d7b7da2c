//! A range as a closure sees it: what the view holds, with the closure's own writes over it.

use std::cmp::Ordering;
use std::vec;

use super::range_set::RangeSet;
use super::writes::Writes;
use crate::api::listing::Cursor;
use crate::command::{KeyRange, KeyValue};
use crate::state_machine::read::{RANGE_BYTES_MAX, ReadError};
use crate::storage::view::View;

/// What a read of a range has found.
pub(super) struct Found {
    pub(super) entries: Vec<KeyValue>,
    pub(super) more: bool,
    /// The part of the range that the answer depends on: all of it, or up to the key that proves that there are more.
    pub(super) seen: KeyRange,
}

/// Reads the first entries of a range that is not empty (the last ones, descending, if `reverse`).
pub(super) fn range(
    view: &View,
    writes: &Writes,
    keys: KeyRange,
    limit: usize,
    reverse: bool,
) -> Result<Found, ReadError> {
    let mut merged = Merged::new(view, writes, &keys, limit, reverse);
    let (mut entries, mut bytes) = (Vec::new(), 0);
    while let Some(next) = merged.next()? {
        if entries.len() >= limit || (bytes >= RANGE_BYTES_MAX && !entries.is_empty()) {
            let seen = match reverse {
                false => KeyRange { end: KeyRange::single(next.key).end, ..keys },
                true => KeyRange { start: next.key, ..keys },
            };
            return Ok(Found { entries, more: true, seen });
        }
        bytes += next.key.len() + next.value.len();
        entries.push(next);
    }
    Ok(Found { entries, more: false, seen: keys })
}

/// How many keys a range that is not empty holds.
pub(super) fn count(view: &View, writes: &Writes, keys: &KeyRange) -> Result<u64, ReadError> {
    let mut live = writes.puts_in(keys).count() as u64;
    for gap in writes.removed().gaps(keys) {
        live += view.count(&gap)?;
        for (key, _) in writes.puts_in(&gap) {
            live -= u64::from(view.get(key)?.is_some());
        }
    }
    Ok(live)
}

/// The entries of both, each key once.
struct Merged<'a> {
    base: Cursor<'a>,
    own: std::iter::Peekable<vec::IntoIter<KeyValue>>,
    removed: &'a RangeSet,
    reverse: bool,
}

impl<'a> Merged<'a> {
    fn new(view: &'a View, writes: &'a Writes, keys: &KeyRange, limit: usize, reverse: bool) -> Self {
        let mut own: Vec<KeyValue> = writes.puts_in(keys).map(|(key, put)| put.shown(key)).collect();
        if reverse {
            own.reverse();
        }
        let base = Cursor::new(view, keys.clone(), limit.saturating_add(1), reverse);
        Merged { base, own: own.into_iter().peekable(), removed: writes.removed(), reverse }
    }

    fn next(&mut self) -> Result<Option<KeyValue>, ReadError> {
        loop {
            let Some(base) = self.base.peek()? else { return Ok(self.own.next()) };
            let order = self.own.peek().map(|own| match self.reverse {
                false => own.key.cmp(&base.key),
                true => base.key.cmp(&own.key),
            });
            match order {
                Some(Ordering::Less) => return Ok(self.own.next()),
                Some(Ordering::Equal) => {
                    self.base.next()?;
                    return Ok(self.own.next());
                }
                Some(Ordering::Greater) | None if self.removed.contains(&base.key) => drop(self.base.next()?),
                Some(Ordering::Greater) | None => return self.base.next(),
            }
        }
    }
}
