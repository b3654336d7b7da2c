//! Queues: where items are kept, how often each was given out, and what became of those that nobody wanted to finish.
//!
//! An item's id is the revision that its pusher had seen plus one, so that no id is greater than the revision of its push, and
//! sixteen digits minted for this one push. In hexadecimal, it sorts by that revision and is the kind of the claims on the item
//! (see [`super::claim`]). Behind the queue's name and a zero byte stands one letter for what is kept under the id.

use bytes::Bytes;

use super::claim;
use super::command::{format_version, read_revision};
use super::keys;
use super::wire::{DecodeError, Reader, Writer};
use crate::command::KeyRange;
use crate::types::Revision;

const RECIPE: &str = "queue";
const VERSION: u8 = 1;
/// Digits of an id: those of the revision, and those of the push.
const ID_DIGITS: usize = 32;

/// What is kept under an item's id.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Item,
    /// How often it was given out.
    Tally,
    /// An item that was given out too often.
    Dead,
}

impl Part {
    fn letter(self) -> char {
        match self {
            Part::Item => 'i',
            Part::Tally => 't',
            Part::Dead => 'd',
        }
    }
}

/// The id of an item whose pusher has seen the revision before `bound`.
pub(crate) fn item_id(bound: Revision, minted: u64) -> String {
    format!("{:016x}{minted:016x}", bound.get())
}

/// The revision that the item `id` cannot have been pushed before.
pub(crate) fn bound_of(id: &str) -> Option<Revision> {
    u64::from_str_radix(id.get(..ID_DIGITS / 2)?, 16).ok().map(Revision::new)
}

pub(crate) fn part_key(queue: &str, part: Part, id: &str) -> Bytes {
    debug_assert!(!queue.contains('\0'), "names are checked where they come in");
    keys::kept(RECIPE, format!("{queue}\0{}{id}", part.letter()).as_bytes())
}

/// Every key of one part of the queue.
pub(crate) fn part_range(queue: &str, part: Part) -> KeyRange {
    KeyRange::prefix(part_key(queue, part, ""))
}

/// The id in the key of a part, or in the key of a claim on an item.
pub(crate) fn id_in(key: &Bytes) -> Option<String> {
    let rest = keys::strip(key);
    let behind = rest.iter().position(|byte| *byte == 0)? + 1;
    // A claim's key has sixteen bytes of its own behind the id, and no letter in front of it.
    let letter = usize::from(rest.len() == behind + 1 + ID_DIGITS);
    let id = rest.get(behind + letter..)?.get(..ID_DIGITS)?;
    str::from_utf8(id).ok().map(str::to_owned)
}

/// The claims on any item of the queue.
pub(crate) fn claims(queue: &str) -> KeyRange {
    claim::line(RECIPE, queue)
}

/// The claims on one item.
pub(crate) fn claims_on(queue: &str, id: &str) -> KeyRange {
    claim::line_of(RECIPE, queue, id)
}

pub(crate) fn claim_key(queue: &str, id: &str, minted: u128) -> Bytes {
    claim::claim_key(RECIPE, queue, id, minted)
}

pub(crate) fn encode_item(value: &Bytes) -> Bytes {
    let mut w = Writer::with_capacity(1 + value.len());
    w.u8(VERSION);
    w.raw(value);
    w.finish()
}

/// The item's value.
pub(crate) fn decode_item(item: Bytes) -> Result<Bytes, DecodeError> {
    let mut r = Reader::new(item);
    format_version(&mut r, "queue item", VERSION)?;
    Ok(r.rest())
}

/// An item that was given out too often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeadItem {
    pub(crate) pushed: Revision,
    pub(crate) deliveries: u64,
    pub(crate) value: Bytes,
}

pub(crate) fn encode_dead(dead: &DeadItem) -> Bytes {
    let mut w = Writer::with_capacity(20 + dead.value.len());
    w.u8(VERSION);
    w.varint(dead.pushed.get());
    w.varint(dead.deliveries);
    w.raw(&dead.value);
    w.finish()
}

pub(crate) fn decode_dead(bytes: Bytes) -> Result<DeadItem, DecodeError> {
    let mut r = Reader::new(bytes);
    format_version(&mut r, "dead letter", VERSION)?;
    Ok(DeadItem { pushed: read_revision(&mut r)?, deliveries: r.varint("deliveries")?, value: r.rest() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "000000000000012c0000000000000007";

    #[test]
    fn ids_keys_and_values_are_these_bytes() {
        assert_eq!(item_id(Revision::new(300), 7), ID);
        assert_eq!(bound_of(ID), Some(Revision::new(300)));
        let key = part_key("mail", Part::Item, ID);
        assert_eq!(key.as_ref(), b"\x04queue\0mail\0i000000000000012c0000000000000007");
        assert_eq!(part_key("mail", Part::Tally, "").as_ref(), b"\x04queue\0mail\0t");
        assert_eq!(part_key("mail", Part::Dead, "").as_ref(), b"\x04queue\0mail\0d");
        assert_eq!(encode_item(&Bytes::from_static(b"v")).as_ref(), b"\x01v");
        let dead = DeadItem { pushed: Revision::new(300), deliveries: 3, value: Bytes::from_static(b"v") };
        assert_eq!(encode_dead(&dead).as_ref(), b"\x01\xac\x02\x03v");
        assert_eq!(decode_dead(encode_dead(&dead)), Ok(dead));
        assert_eq!(decode_item(encode_item(&Bytes::from_static(b"v"))), Ok(Bytes::from_static(b"v")));
        for bytes in [&b""[..], b"\x02v"] {
            assert!(decode_item(Bytes::from_static(bytes)).is_err() && decode_dead(Bytes::from_static(bytes)).is_err());
        }
    }

    #[test]
    fn an_id_is_read_from_every_key_that_holds_one() {
        for part in [Part::Item, Part::Tally, Part::Dead] {
            assert_eq!(id_in(&part_key("mail", part, ID)).as_deref(), Some(ID));
        }
        for minted in [0, 1, u128::MAX] {
            let key = claim_key("mail", ID, minted);
            assert_eq!(id_in(&key).as_deref(), Some(ID));
            assert!(claims("mail").contains(&key) && claims_on("mail", ID).contains(&key));
        }
        assert_eq!(id_in(&part_key("mail", Part::Item, "short")), None);
    }

    #[test]
    fn no_part_of_a_queue_is_in_another_ones_range() {
        let (parts, queues) = ([Part::Item, Part::Tally, Part::Dead], ["mail", "mai", "mail2", "i"]);
        for (part, queue) in parts.iter().flat_map(|part| queues.map(|queue| (*part, queue))) {
            let range = part_range("mail", Part::Item);
            assert_eq!(range.contains(&part_key(queue, part, ID)), part == Part::Item && queue == "mail");
        }
        assert!(item_id(Revision::new(9), u64::MAX) < item_id(Revision::new(10), 0));
    }
}
