//! The order in which to try instances: by priority, and by chance within one.
//!
//! The rules are those of SRV records (RFC 2782): all of a lower priority come before any of a higher one; among those of
//! one priority, the next is drawn with a chance proportional to its weight, and one of weight 0 has a very small chance as
//! long as there are others. The RFC draws from `0..=sum` over a list with the zero weights in front, which favours whoever
//! happens to stand first when weights are small. Here that one extra number belongs to the zero weights alone and is left
//! out where there are none, so weights are met exactly: of 1 and 3, the 3 comes first in three draws of four.

use std::cmp::Ordering;

/// What is to be ordered, and by what.
pub(super) trait Ranked {
    fn priority(&self) -> u16;
    fn weight(&self) -> u16;
}

/// All of them in the order in which to try them. `below(n)` draws an even number below `n`, which is not 0.
pub(super) fn order<T: Ranked>(mut items: Vec<T>, mut below: impl FnMut(u64) -> u64) -> Vec<T> {
    items.sort_by_key(Ranked::priority);
    let mut ordered = Vec::with_capacity(items.len());
    while let Some(priority) = items.first().map(Ranked::priority) {
        let rest = items.split_off(items.partition_point(|item| item.priority() == priority));
        order_equal(std::mem::replace(&mut items, rest), &mut ordered, &mut below);
    }
    ordered
}

/// Appends those of one priority, drawn one after the other.
fn order_equal<T: Ranked>(equal: Vec<T>, ordered: &mut Vec<T>, below: &mut impl FnMut(u64) -> u64) {
    let (mut unweighted, weighted): (Vec<T>, Vec<T>) = equal.into_iter().partition(|item| item.weight() == 0);
    let mut sums = Sums::new(&weighted);
    let mut weighted: Vec<Option<T>> = weighted.into_iter().map(Some).collect();
    while sums.total > 0 || !unweighted.is_empty() {
        let drawn = match number(sums.total, unweighted.len(), below) {
            0 => unweighted.swap_remove(below(unweighted.len() as u64) as usize),
            number => {
                let place = sums.find(number);
                let drawn = weighted[place].take().expect("who is drawn has no weight any more");
                sums.reduce(place, drawn.weight().into());
                drawn
            }
        };
        ordered.push(drawn);
    }
}

/// Sums of weights, to be searched and changed in logarithmic time (Fenwick, *A New Data Structure for Cumulative Frequency
/// Tables*, 1994).
struct Sums {
    /// In place `n`, counted from 1, the sum of as many weights up to that of `n` as the lowest bit of `n` says.
    tree: Vec<u64>,
    total: u64,
}

impl Sums {
    fn new<T: Ranked>(items: &[T]) -> Self {
        let mut tree: Vec<u64> = std::iter::once(0).chain(items.iter().map(|item| item.weight().into())).collect();
        let total = tree.iter().sum();
        for at in 1..tree.len() {
            let above = at + lowest_bit(at);
            if above < tree.len() {
                tree[above] += tree[at];
            }
        }
        Sums { tree, total }
    }

    /// The first place, counted from 0, up to which the weights come to `number`, from 1 to the total.
    fn find(&self, mut number: u64) -> usize {
        let (mut at, mut step) = (0, self.tree.len().next_power_of_two());
        while step > 0 {
            if let Some(sum) = self.tree.get(at + step).filter(|sum| **sum < number) {
                number -= sum;
                at += step;
            }
            step /= 2;
        }
        at
    }

    /// Takes `weight` off the one in this place.
    fn reduce(&mut self, place: usize, weight: u64) {
        let mut at = place + 1;
        while at < self.tree.len() {
            self.tree[at] -= weight;
            at += lowest_bit(at);
        }
        self.total -= weight;
    }
}

fn lowest_bit(number: usize) -> usize {
    number & number.wrapping_neg()
}

/// Those of the lowest priority, prepared for drawing the first of an [`order`] again and again.
#[derive(Debug)]
pub(super) struct Lot<T> {
    /// Those of weight 0 in front.
    items: Vec<T>,
    /// Up to which number each of them is drawn: the sums of the weights.
    reached: Vec<u64>,
    unweighted: usize,
}

impl<T: Ranked> Lot<T> {
    pub(super) fn new(items: impl Iterator<Item = T>) -> Self {
        let mut lowest: Vec<T> = Vec::new();
        for item in items {
            match lowest.first().map(|first| item.priority().cmp(&first.priority())) {
                Some(Ordering::Greater) => continue,
                Some(Ordering::Less) => lowest.clear(),
                Some(Ordering::Equal) | None => {}
            }
            lowest.push(item);
        }
        lowest.sort_by_key(|item| item.weight() != 0);
        let unweighted = lowest.iter().filter(|item| item.weight() == 0).count();
        let sums = lowest.iter().scan(0, |sum, item| {
            *sum += u64::from(item.weight());
            Some(*sum)
        });
        Lot { reached: sums.collect(), items: lowest, unweighted }
    }

    /// One of them; `None` if there is none.
    pub(super) fn draw(&self, mut below: impl FnMut(u64) -> u64) -> Option<&T> {
        let sum = *self.reached.last()?;
        let place = match number(sum, self.unweighted, &mut below) {
            0 => below(self.unweighted as u64) as usize,
            drawn => self.reached.partition_point(|reached| *reached < drawn),
        };
        self.items.get(place)
    }
}

/// A number from 1 to `sum`, or 0 for those of weight 0 if there are any.
fn number(sum: u64, unweighted: usize, below: &mut impl FnMut(u64) -> u64) -> u64 {
    match unweighted {
        0 => below(sum) + 1,
        _ => below(sum + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choices::Choices;

    impl Ranked for (u16, u16, &str) {
        fn priority(&self) -> u16 {
            self.0
        }

        fn weight(&self) -> u16 {
            self.1
        }
    }

    const DRAWS: usize = 40_000;

    /// How often each name came at place `place`, of [`DRAWS`].
    fn times_at(place: usize, items: &[(u16, u16, &'static str)], names: &[&str]) -> Vec<usize> {
        let mut chance = Choices::seeded(7);
        let mut times = vec![0; names.len()];
        for _ in 0..DRAWS {
            let ordered = order(items.to_vec(), |end| chance.below(end));
            assert_eq!(ordered.len(), items.len());
            if let Some(which) = names.iter().position(|name| *name == ordered[place].2) {
                times[which] += 1;
            }
        }
        times
    }

    /// Within five standard deviations (and a little) of the share.
    fn is_share(times: usize, share: f64) -> bool {
        let (expected, deviation) = (DRAWS as f64 * share, (DRAWS as f64 * share * (1.0 - share)).sqrt());
        (times as f64 - expected).abs() <= 5.0 * deviation + 1.0
    }

    #[test]
    fn a_lower_priority_comes_first_whatever_the_weights_are() {
        let items = [(20, 65535, "backup"), (10, 0, "zero"), (10, 1, "one"), (0, 0, "first"), (30, 9, "last")];
        let mut chance = Choices::seeded(1);
        for _ in 0..1000 {
            let names: Vec<&str> = order(items.to_vec(), |end| chance.below(end)).iter().map(|item| item.2).collect();
            assert_eq!((names[0], names[3], names[4]), ("first", "backup", "last"), "{names:?}");
            let lot = Lot::new(items.iter().copied());
            assert_eq!(lot.draw(|end| chance.below(end)).map(|item| item.2), Some("first"));
        }
    }

    #[test]
    fn within_a_priority_chances_are_proportional_to_weights_at_every_place() {
        let items = [(5, 1, "a"), (5, 2, "b"), (5, 5, "c")];
        let times = times_at(0, &items, &["a", "b", "c"]);
        assert!(
            is_share(times[0], 1.0 / 8.0) && is_share(times[1], 2.0 / 8.0) && is_share(times[2], 5.0 / 8.0),
            "{times:?}"
        );
        // Second place: whoever is drawn from the two that are left.
        let a_second = 2.0 / 8.0 * (1.0 / 6.0) + 5.0 / 8.0 * (1.0 / 3.0);
        let times = times_at(1, &items, &["a"]);
        assert!(is_share(times[0], a_second), "{times:?}, expected a share of {a_second}");
    }

    #[test]
    fn equal_weights_have_equal_chances_also_when_they_are_small_or_zero() {
        for weight in [0, 1, 10, 65535] {
            let items = [(5, weight, "a"), (5, weight, "b"), (5, weight, "c")];
            for place in 0..3 {
                let times = times_at(place, &items, &["a", "b", "c"]);
                assert!(
                    times.iter().all(|times| is_share(*times, 1.0 / 3.0)),
                    "weight {weight}, place {place}: {times:?}"
                );
            }
        }
    }

    #[test]
    fn weight_zero_has_a_very_small_chance_while_there_are_others_and_still_some() {
        let items = [(5, 0, "zero"), (5, 60, "a"), (5, 39, "b"), (5, 0, "nought")];
        let times = times_at(0, &items, &["zero", "a", "b", "nought"]);
        assert!(is_share(times[0], 0.005) && is_share(times[3], 0.005) && is_share(times[1], 0.6), "{times:?}");
        assert!(times[0] > 0 && times[3] > 0, "{times:?}");
    }

    /// Against the plain way: by adding up one after the other.
    #[test]
    fn sums_of_weights_are_found_and_reduced_as_if_they_were_added_up() {
        let mut chance = Choices::seeded(11);
        for count in [1, 2, 3, 7, 8, 9, 100] {
            let mut items: Vec<(u16, u16, &str)> = (0..count).map(|_| (1, 1 + chance.below(9) as u16, "")).collect();
            let mut sums = Sums::new(&items);
            while sums.total > 0 {
                let number = 1 + chance.below(sums.total);
                let added = items.iter().scan(0, |sum, item| {
                    *sum += u64::from(item.1);
                    Some(*sum)
                });
                let place = added.clone().position(|sum| sum >= number).expect("within the total");
                assert_eq!((sums.find(number), added.last()), (place, Some(sums.total)), "{number} of {items:?}");
                sums.reduce(place, items[place].1.into());
                items[place].1 = 0;
            }
        }
    }

    #[test]
    fn the_first_of_an_order_has_the_same_chances_when_it_is_drawn_alone() {
        let items = [(9, 100, "c"), (5, 1, "a"), (5, 3, "b"), (9, 0, "d")];
        let lot = Lot::new(items.iter().copied());
        let mut chance = Choices::seeded(3);
        let times = (0..DRAWS).filter(|_| lot.draw(|end| chance.below(end)) == Some(&items[1])).count();
        assert!(is_share(times, 0.25), "{times}");

        let items = [(5, 60, "a"), (5, 0, "zero"), (5, 39, "b"), (5, 0, "nought")];
        let lot = Lot::new(items.iter().copied());
        let mut times = [0; 4];
        for _ in 0..DRAWS {
            let drawn = lot.draw(|end| chance.below(end)).expect("there are some");
            times[items.iter().position(|item| item == drawn).expect("one of them")] += 1;
        }
        assert!(is_share(times[0], 0.6) && is_share(times[1], 0.005) && is_share(times[3], 0.005), "{times:?}");

        let zeros = Lot::new([(1, 0, "a"), (1, 0, "b")].into_iter());
        let times = (0..DRAWS).filter(|_| zeros.draw(|end| chance.below(end)).expect("two").2 == "a").count();
        assert!(is_share(times, 0.5), "{times}");
        assert_eq!(Lot::new(items[..0].iter().copied()).draw(|_| 0), None);
        assert_eq!(order(items[..0].to_vec(), |_| 0), []);
    }
}
