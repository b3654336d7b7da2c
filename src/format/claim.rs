//! Claims: the keys under which somebody stands in a recipe's line, and what is written in them.
//!
//! A claim's key is the coordination key of the line's name, a zero byte, the kind of claim (empty where a recipe has one
//! kind only), and sixteen bytes minted for this one claim, so names hold no zero byte and no line's range touches another's.
//! Its value is a version byte and two strings for people to read, followed by what the recipe wants to say.
//!
//! What there is one of for a name is kept at the name's own key, without the zero byte: what all who stand in a line must
//! agree on, or what a recipe without claims consists of. It is a version byte and numbers.

use bytes::Bytes;

use super::command::format_version;
use super::keys;
use super::wire::{DecodeError, Reader, Writer};
use crate::command::KeyRange;

const VERSION: u8 = 1;

/// Who stands there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClaimNote {
    /// The name of the node that placed it.
    pub(crate) member: String,
    pub(crate) session: String,
    /// The recipe's own; empty for locks.
    pub(crate) payload: Bytes,
}

/// All claims of the line `name` of `recipe`.
pub(crate) fn line(recipe: &str, name: &str) -> KeyRange {
    line_of(recipe, name, "")
}

/// The claims of one kind in the line `name` of `recipe`. No kind of a recipe is the beginning of another.
pub(crate) fn line_of(recipe: &str, name: &str, kind: &str) -> KeyRange {
    KeyRange::prefix(keys::coordination(recipe, &prefix(name, kind)))
}

/// The claim `id` of a kind in the line `name` of `recipe`.
pub(crate) fn claim_key(recipe: &str, name: &str, kind: &str, id: u128) -> Bytes {
    let mut key = prefix(name, kind);
    key.extend_from_slice(&id.to_be_bytes());
    keys::coordination(recipe, &key)
}

/// The key of what there is one of for the name `name` of `recipe`.
pub(crate) fn object_key(recipe: &str, name: &str) -> Bytes {
    debug_assert!(!name.contains('\0'), "names are checked where they come in");
    keys::coordination(recipe, name.as_bytes())
}

fn prefix(name: &str, kind: &str) -> Vec<u8> {
    debug_assert!(!name.contains('\0'), "names are checked where they come in");
    let mut prefix = Vec::with_capacity(name.len() + 1 + kind.len() + 16);
    prefix.extend_from_slice(name.as_bytes());
    prefix.push(0);
    prefix.extend_from_slice(kind.as_bytes());
    prefix
}

pub(crate) fn encode_numbers<const N: usize>(numbers: [u64; N]) -> Bytes {
    let mut w = Writer::with_capacity(1 + 10 * N);
    w.u8(VERSION);
    numbers.into_iter().for_each(|number| w.varint(number));
    w.finish()
}

pub(crate) fn decode_numbers<const N: usize>(value: Bytes) -> Result<[u64; N], DecodeError> {
    let mut r = Reader::new(value);
    format_version(&mut r, "numbers", VERSION)?;
    let mut numbers = [0; N];
    for number in &mut numbers {
        *number = r.varint("number")?;
    }
    r.end("numbers")?;
    Ok(numbers)
}

pub(crate) fn encode_claim(note: &ClaimNote) -> Bytes {
    let mut w = Writer::with_capacity(8 + note.member.len() + note.session.len() + note.payload.len());
    w.u8(VERSION);
    w.str(&note.member);
    w.str(&note.session);
    w.raw(&note.payload);
    w.finish()
}

pub(crate) fn decode_claim(value: Bytes) -> Result<ClaimNote, DecodeError> {
    let mut r = Reader::new(value);
    format_version(&mut r, "claim", VERSION)?;
    Ok(ClaimNote { member: r.str("member")?, session: r.str("session")?, payload: r.rest() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claims_key_and_value_are_these_bytes() {
        let id = 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10;
        let key = claim_key("lock", "job", "", id);
        assert_eq!(key.as_ref(), b"\x02lock\0job\0\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10");
        let key = claim_key("rwlock", "job", "w", id);
        assert_eq!(key.as_ref(), b"\x02rwlock\0job\0w\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10");
        let note = ClaimNote { member: "n1".into(), session: "web".into(), payload: Bytes::from_static(b"x") };
        let value = encode_claim(&note);
        assert_eq!(value.as_ref(), b"\x01\x02n1\x03webx");
        assert_eq!(decode_claim(value), Ok(note));
    }

    #[test]
    fn a_claim_that_is_cut_short_or_of_another_version_is_refused() {
        for (bytes, what) in [(&b""[..], "empty"), (b"\x01\x02n", "cut"), (b"\x02\x00\x00", "newer")] {
            let read = decode_claim(Bytes::copy_from_slice(bytes));
            assert!(read.is_err(), "{what}: {read:?}");
        }
    }

    #[test]
    fn numbers_and_their_key_are_these_bytes() {
        assert_eq!(object_key("semaphore", "job").as_ref(), b"\x02semaphore\0job");
        assert_eq!(encode_numbers([300]).as_ref(), b"\x01\xac\x02");
        assert_eq!(encode_numbers([1, 0]).as_ref(), b"\x01\x01\x00");
        for numbers in [[0, 1], [u64::MAX, 300]] {
            assert_eq!(decode_numbers(encode_numbers(numbers)), Ok(numbers));
        }
        for bytes in [&b""[..], b"\x01", b"\x02\x01\x01", b"\x01\x01", b"\x01\x01\x00\x00"] {
            assert!(decode_numbers::<2>(Bytes::copy_from_slice(bytes)).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn no_line_holds_the_claims_of_another_or_what_there_is_one_of() {
        for id in [0, 1, u128::MAX] {
            assert!(line("lock", "a").contains(&claim_key("lock", "a", "", id)));
            assert!(line("lock", "a").contains(&claim_key("lock", "a", "w", id)));
            assert!(line_of("lock", "a", "w").contains(&claim_key("lock", "a", "w", id)));
            assert!(!line_of("lock", "a", "w").contains(&claim_key("lock", "a", "r", id)));
            for (recipe, name) in [("lock", "aa"), ("lock", "a/b"), ("lock", ""), ("locks", "a"), ("rwlock", "a")] {
                assert!(!line("lock", "a").contains(&claim_key(recipe, name, "", id)), "{recipe} {name:?} {id}");
            }
        }
        assert!(!line("lock", "a").contains(&object_key("lock", "a")));
    }
}
