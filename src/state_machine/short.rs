//! Byte strings that are kept in line while they are short.
//!
//! The index compares dozens of keys for each write. Behind a pointer each of them is a cache line of its own, and most
//! of what the state thread does is wait for them; in line, the keys of one node of the tree lie side by side.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// Strings up to this long cost no allocation. Chosen so that the whole takes 32 bytes.
pub(crate) const INLINE_BYTES_MAX: usize = 30;

/// A byte string that orders, and is looked up, as a slice.
#[derive(Clone)]
pub(crate) enum ShortBytes {
    Inline {
        len: u8,
        bytes: [u8; INLINE_BYTES_MAX],
    },
    /// Shared, since the index has each key twice.
    Long(Arc<[u8]>),
}

impl ShortBytes {
    pub(crate) fn len(&self) -> usize {
        match self {
            ShortBytes::Inline { len, .. } => usize::from(*len),
            ShortBytes::Long(bytes) => bytes.len(),
        }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            ShortBytes::Inline { len, bytes } => &bytes[..usize::from(*len)],
            ShortBytes::Long(bytes) => bytes,
        }
    }
}

impl From<&[u8]> for ShortBytes {
    fn from(from: &[u8]) -> Self {
        if from.len() > INLINE_BYTES_MAX {
            return ShortBytes::Long(from.into());
        }
        let mut bytes = [0; INLINE_BYTES_MAX];
        bytes[..from.len()].copy_from_slice(from);
        ShortBytes::Inline { len: from.len() as u8, bytes }
    }
}

impl Borrow<[u8]> for ShortBytes {
    fn borrow(&self) -> &[u8] {
        self.as_slice()
    }
}

// By content, whichever way it is kept: `Borrow` asks that the order be that of slices.
impl Ord for ShortBytes {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            // The zeros behind a shorter one sort as its end does; where they do not tell, the lengths do.
            (ShortBytes::Inline { len, bytes }, ShortBytes::Inline { len: other_len, bytes: other_bytes }) => {
                numbers(bytes).cmp(&numbers(other_bytes)).then(len.cmp(other_len))
            }
            _ => self.as_slice().cmp(other.as_slice()),
        }
    }
}

/// Two numbers that order as the bytes do: to compare them takes a few instructions, where slices need a call and a loop.
fn numbers(bytes: &[u8; INLINE_BYTES_MAX]) -> (u128, u128) {
    let (first, last) = (bytes.first_chunk().expect("16 of 30"), bytes.last_chunk().expect("16 of 30"));
    (u128::from_be_bytes(*first), u128::from_be_bytes(*last))
}

impl PartialOrd for ShortBytes {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ShortBytes {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for ShortBytes {}

impl fmt::Debug for ShortBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_slice(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_of_every_length_are_kept_whole_and_order_as_slices() {
        assert_eq!(size_of::<ShortBytes>(), 32);
        let mut strings: Vec<Vec<u8>> = (0..=INLINE_BYTES_MAX + 2).map(|len| vec![7; len]).collect();
        strings.extend([vec![6; 40], vec![8; 1], vec![7, 0], vec![0; 30], vec![0; 31], vec![0xff; 30]]);
        for a in &strings {
            let short = ShortBytes::from(&a[..]);
            assert_eq!(short.as_slice(), &a[..]);
            assert_eq!(matches!(short, ShortBytes::Inline { .. }), a.len() <= INLINE_BYTES_MAX);
            for b in &strings {
                assert_eq!(short.cmp(&ShortBytes::from(&b[..])), a.cmp(b), "{a:?} {b:?}");
                assert_eq!(short == ShortBytes::from(&b[..]), a == b, "{a:?} {b:?}");
            }
        }
    }
}
