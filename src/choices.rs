//! Where tests take their choices from: a seed, or bytes that a fuzzer changes.
//!
//! The same driver of a model test then runs from a seed in an ordinary test, and from bytes in a fuzzer, which finds out
//! by itself which bytes lead somewhere new.

/// A source of choices. One made of bytes runs out; from then on every choice is the first.
#[derive(Clone, Debug)]
pub(crate) enum Choices {
    /// Sebastiano Vigna's splitmix64: small, and the same for ever.
    Seed(u64),
    /// The bytes, and how many of them are used up.
    Bytes(Vec<u8>, usize),
}

impl Choices {
    pub(crate) fn seeded(seed: u64) -> Self {
        Choices::Seed(seed)
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        Choices::Bytes(bytes.to_vec(), 0)
    }

    /// Whether there are choices left: a driver of many steps ends here.
    pub(crate) fn more(&self) -> bool {
        match self {
            Choices::Seed(_) => true,
            Choices::Bytes(bytes, used) => *used < bytes.len(),
        }
    }

    /// A number below `end`, which is not 0. Takes one byte where one can tell them all apart, otherwise eight.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        assert!(end > 0, "there is nothing to choose from");
        let width = if end <= 256 { 1 } else { 8 };
        match self {
            Choices::Seed(state) => splitmix(state) % end,
            Choices::Bytes(bytes, used) => {
                let from = (*used).min(bytes.len());
                let to = (from + width).min(bytes.len());
                *used = to;
                bytes[from..to].iter().rfold(0u64, |number, byte| number << 8 | u64::from(*byte)) % end
            }
        }
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of these.
    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize].clone()
    }
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_used_up_one_by_one_and_then_every_choice_is_the_first() {
        let mut choices = Choices::from_bytes(&[7, 200, 1, 2, 0, 0, 0, 0, 0, 0, 9]);
        assert_eq!((choices.below(8), choices.below(256), choices.below(1000)), (7, 200, 513));
        assert!(choices.more());
        assert_eq!(choices.pick(&["a", "b"]), "b");
        assert!(!choices.more());
        assert_eq!((choices.below(5), choices.below(1 << 40), choices.one_in(9)), (0, 0, true));
    }

    #[test]
    fn a_seed_makes_the_same_choices_for_ever() {
        let mut choices = Choices::seeded(1);
        let drawn: Vec<u64> = (0..6).map(|_| choices.below(100)).collect();
        assert_eq!(drawn, [65, 19, 90, 35, 61, 48]);
        assert!(choices.more());
    }
}
