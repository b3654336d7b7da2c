//! Parts of keys whose bytes compare as what they stand for.
//!
//! * Integers are big-endian, signed ones with their sign bit turned over.
//! * A part that others follow has to say where it ends. One of fixed width does. Any other is *closed*: a zero byte in it
//!   becomes `0x00 0xff`, and `0x00 0x00` ends it. So no closed part is the beginning of another, and since the end is
//!   less than anything that may stand in its place, a part comes before the longer ones that begin with it.

use std::borrow::Cow;

const ZERO: u8 = 0x00;
const ESCAPED: u8 = 0xff;
const END: u8 = 0x00;

/// An integer whose bytes compare as it does.
pub(crate) trait Ordered: Sized {
    fn put(self, to: &mut Vec<u8>);

    /// `None` if `bytes` are too few, or too many.
    fn take(bytes: &[u8]) -> Option<Self>;
}

macro_rules! ordered {
    ($($integer:ty),*) => {$(
        impl Ordered for $integer {
            fn put(self, to: &mut Vec<u8>) {
                to.extend_from_slice(&(self ^ <$integer>::MIN).to_be_bytes());
            }

            fn take(bytes: &[u8]) -> Option<Self> {
                Some(<$integer>::from_be_bytes(bytes.try_into().ok()?) ^ <$integer>::MIN)
            }
        }
    )*};
}

ordered!(u8, u16, u32, u64, u128, i8, i16, i32, i64, i128);

/// Closes the part that `to` holds from `start` on.
pub(crate) fn close(to: &mut Vec<u8>, start: usize) {
    if to[start..].contains(&ZERO) {
        let part = to.split_off(start);
        for byte in part {
            to.push(byte);
            if byte == ZERO {
                to.push(ESCAPED);
            }
        }
    }
    to.extend_from_slice(&[ZERO, END]);
}

/// The closed part that `bytes` begins with, and what follows it; `None` if there is no such part.
pub(crate) fn open(bytes: &[u8]) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let first_zero = bytes.iter().position(|byte| *byte == ZERO)?;
    let (mut part, mut rest) = (Cow::Borrowed(&bytes[..first_zero]), &bytes[first_zero..]);
    loop {
        match rest {
            [ZERO, END, behind @ ..] => return Some((part, behind)),
            [ZERO, ESCAPED, behind @ ..] => {
                part.to_mut().push(ZERO);
                rest = behind;
            }
            [ZERO, ..] | [] => return None,
            [byte, behind @ ..] => {
                part.to_mut().push(*byte);
                rest = behind;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(part: &[u8]) -> Vec<u8> {
        let mut bytes = b"before".to_vec();
        bytes.extend_from_slice(part);
        close(&mut bytes, 6);
        assert!(bytes.starts_with(b"before"));
        bytes.split_off(6)
    }

    #[test]
    fn integers_are_these_bytes() {
        fn put(integer: impl Ordered) -> Vec<u8> {
            let mut to = vec![];
            integer.put(&mut to);
            to
        }
        assert_eq!(put(0x0102u16), [1, 2]);
        assert_eq!([put(-1i8), put(0i8), put(1i8)], [[0x7f], [0x80], [0x81]]);
        assert_eq!(i32::take(&put(-7i32)), Some(-7));
        assert_eq!((u32::take(&[1, 2, 3]), u8::take(&[1, 2])), (None, None));
    }

    #[test]
    fn closed_parts_are_these_bytes() {
        assert_eq!(closed(b""), b"\x00\x00");
        assert_eq!(closed(b"web"), b"web\x00\x00");
        assert_eq!(closed(b"\x00a\x00\xff"), b"\x00\xffa\x00\xff\xff\x00\x00");
    }

    #[test]
    fn a_closed_part_opens_to_what_it_was_and_what_follows() {
        for part in [&b""[..], b"web", b"\x00", b"a\x00\x00b", b"\xff\x00\xff", b"\x00\xff"] {
            for rest in [&b""[..], b"\x00", b"\xff", b"\x00\x00rest"] {
                let bytes = [closed(part), rest.to_vec()].concat();
                assert_eq!(open(&bytes), Some((Cow::Borrowed(part), rest)), "{part:?}, {rest:?}");
            }
        }
    }

    #[test]
    fn what_was_never_closed_does_not_open() {
        for bytes in [&b""[..], b"web", b"web\x00", b"web\x00\x01", b"web\x00\xff"] {
            assert_eq!(open(bytes), None, "{bytes:?}");
        }
    }
}
