//! An ordered map whose copies share what they have in common.
//!
//! A sorted list in chunks of up to [`CHUNK_ITEMS_MAX`] items, with a list of the chunks above. To change a copy is to copy
//! that list (a pointer for each chunk) and the one chunk concerned: some hundred pointers at ten thousand items, where a
//! plain map would be copied whole. Two levels are enough for the sizes that a process wants to hold in memory, and a lookup
//! is two binary searches over slices.

use std::cmp::Ordering;
use std::sync::Arc;

/// Most items of one chunk. A full one is split in two.
const CHUNK_ITEMS_MAX: usize = 128;
/// A chunk with fewer items is joined with a neighbour, if room for so many more is left then.
const CHUNK_ITEMS_FEW: usize = CHUNK_ITEMS_MAX / 4;

/// What has a place in the order.
pub(super) trait Keyed {
    fn key(&self) -> &[u8];
}

/// * Items are in ascending order of their keys, no two with the same one, also across chunks.
/// * No chunk is empty, none has more than [`CHUNK_ITEMS_MAX`] items.
pub(super) struct Chunks<T> {
    chunks: Vec<Chunk<T>>,
    len: usize,
}

type Chunk<T> = Arc<Vec<Arc<T>>>;

impl<T: Keyed> Chunks<T> {
    pub(super) fn new() -> Self {
        Chunks { chunks: Vec::new(), len: 0 }
    }

    /// Adds an item behind all others.
    pub(super) fn push(&mut self, item: Arc<T>) {
        debug_assert!(self.last().is_none_or(|last| last.key() < item.key()), "items are pushed in order");
        match self.chunks.last_mut() {
            // Not filled up, so that the next insertion need not split.
            Some(last) if last.len() < CHUNK_ITEMS_MAX - CHUNK_ITEMS_FEW => Arc::make_mut(last).push(item),
            _ => self.chunks.push(Arc::new(vec![item])),
        }
        self.len += 1;
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&Arc<T>> {
        let chunk = self.chunks.get(self.chunk_of(key))?;
        chunk.binary_search_by(|item| item.key().cmp(key)).ok().map(|at| &chunk[at])
    }

    /// Puts `item` in the place of the one with its key, which is returned.
    pub(super) fn insert(&mut self, item: Arc<T>) -> Option<Arc<T>> {
        let at = self.chunk_of(item.key());
        let Some(chunk) = self.chunks.get_mut(at) else {
            self.push(item);
            return None;
        };
        let chunk = Arc::make_mut(chunk);
        match chunk.binary_search_by(|other| other.key().cmp(item.key())) {
            Ok(place) => Some(std::mem::replace(&mut chunk[place], item)),
            Err(place) => {
                chunk.insert(place, item);
                if chunk.len() > CHUNK_ITEMS_MAX {
                    let upper = chunk.split_off(CHUNK_ITEMS_MAX / 2);
                    self.chunks.insert(at + 1, Arc::new(upper));
                }
                self.len += 1;
                None
            }
        }
    }

    /// Takes out the item with this key.
    pub(super) fn remove(&mut self, key: &[u8]) -> Option<Arc<T>> {
        let at = self.chunk_of(key);
        let chunk = self.chunks.get_mut(at)?;
        let place = chunk.binary_search_by(|item| item.key().cmp(key)).ok()?;
        let removed = Arc::make_mut(chunk).remove(place);
        self.len -= 1;
        match chunk.len() {
            0 => drop(self.chunks.remove(at)),
            len if len < CHUNK_ITEMS_FEW => self.join(at),
            _ => {}
        }
        Some(removed)
    }

    /// Joins the chunk with a neighbour that has room for it.
    fn join(&mut self, at: usize) {
        let fits = |left: usize| {
            let right = self.chunks.get(left + 1)?;
            (self.chunks[left].len() + right.len() <= CHUNK_ITEMS_MAX - CHUNK_ITEMS_FEW).then_some(left)
        };
        let left = fits(at).or_else(|| fits(at.checked_sub(1)?));
        if let Some(left) = left {
            let right = self.chunks.remove(left + 1);
            Arc::make_mut(&mut self.chunks[left]).extend(right.iter().cloned());
        }
    }

    /// All items, in order.
    pub(super) fn iter(&self) -> Items<'_, T> {
        Items { chunks: &self.chunks, front: (0, 0), back: (self.chunks.len(), 0) }
    }

    /// The items from `start` up to, and without, `end`.
    pub(super) fn range(&self, start: &[u8], end: Option<&[u8]>) -> Items<'_, T> {
        let back = end.map_or((self.chunks.len(), 0), |end| self.place_of(end));
        Items { chunks: &self.chunks, front: self.place_of(start), back }
    }

    /// Calls `each` with every item that is not the same in both: as it is in `self`, as it is in `newer`, in order.
    ///
    /// What the two share is passed over chunk by chunk.
    pub(super) fn diff<'a>(&'a self, newer: &'a Self, mut each: impl FnMut(Option<&'a Arc<T>>, Option<&'a Arc<T>>)) {
        let (mut old, mut new) = (self.iter(), newer.iter());
        loop {
            while let (Some(one), Some(other)) = (old.chunk_ahead(), new.chunk_ahead())
                && Arc::ptr_eq(one, other)
            {
                (old.front, new.front) = ((old.front.0 + 1, 0), (new.front.0 + 1, 0));
            }
            let order = match (old.peek(), new.peek()) {
                (None, None) => return,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(one), Some(other)) => one.key().cmp(other.key()),
            };
            let one = if order.is_le() { old.next() } else { None };
            let other = if order.is_ge() { new.next() } else { None };
            if !matches!((one, other), (Some(one), Some(other)) if Arc::ptr_eq(one, other)) {
                each(one, other);
            }
        }
    }

    fn last(&self) -> Option<&Arc<T>> {
        self.chunks.last()?.last()
    }

    /// The chunk that has the key if any has; the first one for a key before all others.
    fn chunk_of(&self, key: &[u8]) -> usize {
        self.chunks.partition_point(|chunk| chunk[0].key() <= key).saturating_sub(1)
    }

    /// Where the first item stands whose key is not below `key`.
    fn place_of(&self, key: &[u8]) -> (usize, usize) {
        let at = self.chunk_of(key);
        let Some(chunk) = self.chunks.get(at) else { return (at, 0) };
        match chunk.partition_point(|item| item.key() < key) {
            place if place == chunk.len() => (at + 1, 0),
            place => (at, place),
        }
    }
}

impl<T> Clone for Chunks<T> {
    fn clone(&self) -> Self {
        Chunks { chunks: self.chunks.clone(), len: self.len }
    }
}

/// Some items, in order, from both ends. A place is a chunk and an item of it that exists, or the end: a chunk that does not.
pub(super) struct Items<'a, T> {
    chunks: &'a [Chunk<T>],
    front: (usize, usize),
    back: (usize, usize),
}

impl<'a, T> Items<'a, T> {
    fn peek(&self) -> Option<&'a Arc<T>> {
        (self.front < self.back).then(|| &self.chunks[self.front.0][self.front.1])
    }

    /// The next chunk, if none of it has been handed out. Only for all items.
    fn chunk_ahead(&self) -> Option<&'a Chunk<T>> {
        if self.front.1 == 0 { self.chunks.get(self.front.0) } else { None }
    }
}

impl<'a, T> Iterator for Items<'a, T> {
    type Item = &'a Arc<T>;

    fn next(&mut self) -> Option<&'a Arc<T>> {
        let item = self.peek()?;
        self.front.1 += 1;
        if self.front.1 == self.chunks[self.front.0].len() {
            self.front = (self.front.0 + 1, 0);
        }
        Some(item)
    }
}

impl<'a, T> DoubleEndedIterator for Items<'a, T> {
    fn next_back(&mut self) -> Option<&'a Arc<T>> {
        if self.front >= self.back {
            return None;
        }
        if self.back.1 == 0 {
            self.back = (self.back.0 - 1, self.chunks[self.back.0 - 1].len());
        }
        self.back.1 -= 1;
        Some(&self.chunks[self.back.0][self.back.1])
    }
}

impl<T> Clone for Items<'_, T> {
    fn clone(&self) -> Self {
        Items { chunks: self.chunks, front: self.front, back: self.back }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::api::testing::Dice;

    #[derive(Debug, PartialEq, Eq)]
    struct Pair(Vec<u8>, u64);

    impl Keyed for Pair {
        fn key(&self) -> &[u8] {
            &self.0
        }
    }

    fn key(n: u64) -> Vec<u8> {
        format!("{n:05}").into_bytes()
    }

    fn pair(n: u64, value: u64) -> Arc<Pair> {
        Arc::new(Pair(key(n), value))
    }

    type Model = BTreeMap<Vec<u8>, u64>;

    fn told<'a>(items: impl Iterator<Item = &'a Arc<Pair>>) -> Vec<(Vec<u8>, u64)> {
        items.map(|pair| (pair.0.clone(), pair.1)).collect()
    }

    fn assert_is(chunks: &Chunks<Pair>, model: &Model) {
        let expected: Vec<(Vec<u8>, u64)> = model.iter().map(|(key, value)| (key.clone(), *value)).collect();
        assert_eq!(told(chunks.iter()), expected);
        assert_eq!(chunks.len(), model.len());
        assert!(chunks.chunks.iter().all(|chunk| (1..=CHUNK_ITEMS_MAX).contains(&chunk.len())));
    }

    /// A thousand changes to keys below `keys`: mostly puts, or mostly removals.
    fn change(chunks: &mut Chunks<Pair>, model: &mut Model, dice: &mut Dice, keys: u64, removals: u64) {
        for _ in 0..1000 {
            let (n, value) = (dice.roll(keys), dice.roll(1000));
            if dice.roll(100) < removals {
                assert_eq!(chunks.remove(&key(n)).map(|pair| pair.1), model.remove(&key(n)));
            } else {
                let before = chunks.insert(pair(n, value)).map(|pair| pair.1);
                assert_eq!(before, model.insert(key(n), value));
            }
        }
    }

    #[test]
    fn it_holds_what_a_map_would_hold_while_copies_keep_what_they_held() {
        let mut dice = Dice(1);
        let (mut chunks, mut model) = (Chunks::new(), Model::new());
        let mut copies = Vec::new();
        for round in 0..24 {
            let removals = if round / 6 % 2 == 0 { 10 } else { 95 };
            change(&mut chunks, &mut model, &mut dice, 4000, removals);
            assert_is(&chunks, &model);
            copies.push((chunks.clone(), model.clone()));
        }
        assert!(copies.iter().map(|(_, model)| model.len()).max() > Some(2000));
        for (chunks, model) in &copies {
            assert_is(chunks, model);
        }
    }

    #[test]
    fn a_lookup_and_a_range_from_either_end_find_what_a_map_would_find() {
        let mut dice = Dice(2);
        let (mut chunks, mut model) = (Chunks::new(), Model::new());
        assert!(chunks.get(&key(1)).is_none() && chunks.range(b"", None).next().is_none());
        for _ in 0..3 {
            change(&mut chunks, &mut model, &mut dice, 1500, 40);
            for _ in 0..500 {
                let (start, end) = (key(dice.roll(1600)), key(dice.roll(1600)));
                assert_eq!(chunks.get(&start).map(|pair| pair.1), model.get(&start).copied());
                let mut expected: Vec<(Vec<u8>, u64)> = Vec::new();
                if start < end {
                    expected.extend(model.range(start.clone()..end.clone()).map(|(key, n)| (key.clone(), *n)));
                }
                assert_eq!(told(chunks.range(&start, Some(&end))), expected);
                expected.reverse();
                assert_eq!(told(chunks.range(&start, Some(&end)).rev()), expected);
                let rest = told(chunks.range(&start, None));
                assert_eq!(rest.len(), model.range(start..).count());
            }
        }
    }

    #[test]
    fn the_difference_of_two_copies_leads_from_one_to_the_other() {
        let mut dice = Dice(3);
        for keys in [20, 3000] {
            let (mut chunks, mut model) = (Chunks::new(), Model::new());
            for round in 0..30 {
                let (before, mut walked) = (chunks.clone(), model.clone());
                for _ in 0..dice.roll(4) {
                    change(&mut chunks, &mut model, &mut dice, keys, 10 + 80 * (round / 8 % 2));
                }
                let mut last = None;
                before.diff(&chunks, |old, new| {
                    let at = old.or(new).expect("one of them is there");
                    assert!(last.replace(at.key()) < Some(at.key()), "out of order at {at:?}");
                    assert_eq!(walked.get(at.key()).copied(), old.map(|pair| pair.1));
                    match new {
                        Some(new) => walked.insert(new.0.clone(), new.1),
                        None => walked.remove(at.key()),
                    };
                });
                assert_eq!(walked, model);
            }
        }
    }

    #[test]
    fn one_change_among_ten_thousand_items_copies_one_chunk_and_is_found_without_a_walk() {
        let mut chunks = Chunks::new();
        (0..10_000).for_each(|n| chunks.push(pair(n, 0)));
        let before = chunks.clone();
        chunks.insert(pair(5000, 1));
        let shared = chunks.chunks.iter().filter(|chunk| before.chunks.iter().any(|old| Arc::ptr_eq(old, chunk)));
        assert_eq!(shared.count(), chunks.chunks.len() - 1);
        let mut different = Vec::new();
        before.diff(&chunks, |old, new| different.push((old.map(|pair| pair.1), new.map(|pair| pair.1))));
        assert_eq!(different, [(Some(0), Some(1))]);
    }

    #[test]
    fn what_is_emptied_is_given_back() {
        let mut chunks = Chunks::new();
        (0..10_000).for_each(|n| chunks.push(pair(n, 0)));
        let full = chunks.chunks.len();
        // Every hundredth is left: in chunks of their own they would keep as many as before.
        (0..10_000).filter(|n| n % 100 != 0).for_each(|n| drop(chunks.remove(&key(n))));
        assert_eq!(chunks.len(), 100);
        assert!(chunks.chunks.len() * 20 < full, "{} chunks of {full}", chunks.chunks.len());
    }
}
