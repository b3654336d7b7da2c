//! Claims: the keys under which somebody stands in a recipe's line, and what is written in them.
//!
//! A claim's key is the coordination key of the line's name, a zero byte, and sixteen bytes minted for this one claim, so
//! names hold no zero byte and no line's range touches another's. Its value is a version byte and two strings for people to
//! read, followed by what the recipe wants to say.

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
    KeyRange::prefix(keys::coordination(recipe, &prefix(name)))
}

/// The claim `id` in the line `name` of `recipe`.
pub(crate) fn claim_key(recipe: &str, name: &str, id: u128) -> Bytes {
    let mut key = prefix(name);
    key.extend_from_slice(&id.to_be_bytes());
    keys::coordination(recipe, &key)
}

fn prefix(name: &str) -> Vec<u8> {
    debug_assert!(!name.contains('\0'), "names are checked where they come in");
    let mut prefix = Vec::with_capacity(name.len() + 1 + 16);
    prefix.extend_from_slice(name.as_bytes());
    prefix.push(0);
    prefix
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
        let key = claim_key("lock", "job", 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
        assert_eq!(key.as_ref(), b"\x02lock\0job\0\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10");
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
    fn no_line_holds_the_claims_of_another() {
        for id in [0, 1, u128::MAX] {
            assert!(line("lock", "a").contains(&claim_key("lock", "a", id)));
            for (recipe, name) in [("lock", "aa"), ("lock", "a/b"), ("lock", ""), ("locks", "a"), ("rwlock", "a")] {
                assert!(!line("lock", "a").contains(&claim_key(recipe, name, id)), "{recipe} {name:?} {id}");
            }
        }
    }
}
