//! Sets of keys, kept as the fewest ranges that hold them.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::command::KeyRange;

/// Ranges by their starts, with their ends. None is empty, and no two of them overlap or touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RangeSet {
    ranges: BTreeMap<Bytes, Option<Bytes>>,
}

impl RangeSet {
    /// Adds all keys of a range, and joins the ranges that it closes the gaps between.
    pub(super) fn insert(&mut self, keys: KeyRange) {
        if keys.is_empty() {
            return;
        }
        let KeyRange { mut start, mut end } = keys;
        if let Some((before, reach)) = self.ranges.range::<Bytes, _>(..=&start).next_back()
            && reach.as_ref().is_none_or(|reach| *reach >= start)
        {
            start = before.clone();
        }
        while let Some((next, reach)) = self.ranges.range::<Bytes, _>(&start..).next()
            && end.as_ref().is_none_or(|end| next <= end)
        {
            let (next, reach) = (next.clone(), reach.clone());
            self.ranges.remove(&next);
            end = later(end, reach);
        }
        self.ranges.insert(start, end);
    }

    pub(super) fn contains(&self, key: &Bytes) -> bool {
        let before = self.ranges.range::<Bytes, _>(..=key).next_back();
        before.is_some_and(|(_, end)| end.as_ref().is_none_or(|end| key < end))
    }

    /// What of `keys` is not in the set, in order.
    pub(super) fn gaps(&self, keys: &KeyRange) -> Vec<KeyRange> {
        let mut gaps = Vec::new();
        let mut rest = keys.clone();
        let before = self.ranges.range::<Bytes, _>(..&keys.start).next_back();
        for (start, end) in before.into_iter().chain(self.ranges.range::<Bytes, _>(&keys.start..)) {
            if rest.is_empty() || keys.end.as_ref().is_some_and(|last| start >= last) {
                break;
            }
            if rest.start < *start {
                gaps.push(KeyRange { start: rest.start.clone(), end: Some(start.clone()) });
            }
            let Some(end) = end else { return gaps };
            rest.start = rest.start.max(end.clone());
        }
        if !rest.is_empty() {
            gaps.push(rest);
        }
        gaps
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = KeyRange> {
        self.ranges.iter().map(|(start, end)| KeyRange { start: start.clone(), end: end.clone() })
    }

    /// How many ranges it takes.
    pub(super) fn len(&self) -> usize {
        self.ranges.len()
    }
}

/// The later of two ends; `None` is behind all keys.
fn later(a: Option<Bytes>, b: Option<Bytes>) -> Option<Bytes> {
    Some(a?.max(b?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::api::testing::Dice;

    /// Keys of one byte each, below this.
    const KEYS: u8 = 24;

    fn range(start: u8, end: Option<u8>) -> KeyRange {
        let bytes = |byte: u8| Bytes::copy_from_slice(&[byte]);
        KeyRange { start: bytes(start), end: end.map(bytes) }
    }

    fn held(set: &RangeSet) -> BTreeSet<u8> {
        (0..KEYS).filter(|key| set.contains(&Bytes::copy_from_slice(&[*key]))).collect()
    }

    #[test]
    fn a_set_of_ranges_holds_what_a_set_of_keys_would_in_the_fewest_ranges() {
        let mut dice = Dice(7);
        for _ in 0..400 {
            let (mut set, mut model) = (RangeSet::default(), BTreeSet::new());
            for _ in 0..dice.roll(8) {
                let (start, open) = (dice.roll(KEYS.into()) as u8, dice.roll(12) == 0);
                let end = (start + dice.roll(5) as u8).saturating_sub(u8::from(dice.roll(9) == 0));
                set.insert(range(start, (!open).then_some(end)));
                model.extend(start..if open { KEYS } else { end.min(KEYS) });
            }
            assert_eq!(held(&set), model);
            // Written down in the fewest ranges, no two of which touch.
            let runs = model.iter().filter(|key| !key.checked_sub(1).is_some_and(|before| model.contains(&before)));
            let beyond = |set: &RangeSet| set.iter().filter(|range| range.start.as_ref() >= [KEYS].as_slice()).count();
            assert_eq!(set.len() - beyond(&set), runs.count(), "{set:?}");

            let (start, end) = (dice.roll(KEYS.into()) as u8, dice.roll(KEYS.into()) as u8);
            let mut gaps = RangeSet::default();
            set.gaps(&range(start, Some(end))).into_iter().for_each(|gap| {
                assert!(!gap.is_empty());
                gaps.insert(gap);
            });
            let wanted: BTreeSet<u8> = (start..end).filter(|key| !model.contains(key)).collect();
            assert_eq!(held(&gaps), wanted, "{start}..{end} without {set:?}");
        }
    }
}
