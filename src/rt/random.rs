//! Chance: identifiers that must never repeat, and nonces.

use rand::TryRng;
use rand::rngs::SysRng;

use super::scope;

/// A number that nobody can expect and that no other process will draw.
///
/// It comes from the operating system at each call and not from a generator of this process: a service that forks its
/// workers would otherwise hand each of them the same generator, and two nodes the same identity. In a simulated process it
/// comes from the seed.
pub(crate) fn random_u64() -> u64 {
    if let Some(simulated) = scope::random_u64() {
        return simulated;
    }
    SysRng.try_next_u64().expect("the operating system supplies randomness")
}

/// As [`random_u64`], twice as wide.
pub(crate) fn random_u128() -> u128 {
    u128::from(random_u64()) << 64 | u128::from(random_u64())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_number_is_drawn_twice_and_every_bit_is_used() {
        let drawn: BTreeSet<u64> = (0..1000).map(|_| random_u64()).collect();
        assert_eq!(drawn.len(), 1000);
        let (ones, zeros) = (0..200).map(|_| random_u128()).fold((0, 0), |(ones, zeros), n| (ones | n, zeros | !n));
        assert_eq!((ones, zeros), (u128::MAX, u128::MAX), "a bit that never changes");
    }
}
