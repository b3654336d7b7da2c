//! Bytes of keys: pinned, and by property over random keys.

use std::fmt::Debug;

use super::*;
use crate::api::testing::Dice;

fn encoded<K: Key + ?Sized>(key: &K) -> Vec<u8> {
    let mut bytes = Vec::new();
    key.encode(&mut bytes);
    bytes
}

/// Keys compare as their bytes do, come back, and stay apart when something follows them.
fn check<K>(keys: &[K])
where
    K: Key<Owned = K> + Ord + Debug,
{
    for a in keys {
        assert_eq!(K::decode(&encoded(a)).as_ref(), Ok(a), "it does not come back");
        if let Some(width) = K::WIDTH {
            assert_eq!(encoded(a).len(), width, "{a:?}");
        }
        for b in keys {
            assert_eq!(encoded(a).cmp(&encoded(b)), a.cmp(b), "{a:?} and {b:?} are out of order");
        }
    }
}

/// A random one, rather small or at an edge.
macro_rules! integers {
    ($dice:expr, $integer:ty) => {{
        let mut keys = vec![<$integer>::MIN, <$integer>::MAX, 0, 1, <$integer>::MAX / 2, <$integer>::MIN + 1];
        for _ in 0..40 {
            let high = ($dice.roll(u64::MAX) as u128) << 64;
            let random = (high | $dice.roll(u64::MAX) as u128) as $integer;
            // As often in one of the lower bytes as in all of them.
            keys.push(random >> ($dice.roll(<$integer>::BITS as u64)));
        }
        keys
    }};
}

/// Short, over the bytes that encodings stumble over.
fn bytes(dice: &mut Dice) -> Vec<u8> {
    let len = dice.roll(5);
    (0..len).map(|_| [0, 0, 1, b'a', 0xfe, 0xff][dice.roll(6) as usize]).collect()
}

fn text(dice: &mut Dice) -> String {
    let len = dice.roll(5);
    (0..len).map(|_| ['\0', '\0', '\u{1}', 'a', 'é', '\u{10ffff}'][dice.roll(6) as usize]).collect()
}

#[test]
fn keys_are_these_bytes() {
    assert_eq!(encoded("web"), b"web");
    assert_eq!(encoded(&b"\x00\xff"[..]), b"\x00\xff");
    assert_eq!(encoded(&0x0102_u16), [1, 2]);
    assert_eq!(encoded(&-1_i32), [0x7f, 0xff, 0xff, 0xff]);
    assert_eq!(encoded(&1_i8), [0x81]);
    assert_eq!(encoded(&(1u8, 2u16)), [1, 0, 2]);
    assert_eq!(encoded(&("web", 7u16)), b"web\x00\x00\x00\x07");
    assert_eq!(encoded(&("web", "b")), b"web\x00\x00b");
    assert_eq!(encoded(&("a\0", "b\0", "c\0")), b"a\x00\xff\x00\x00b\x00\xff\x00\x00c\x00");
    assert_eq!(encoded(&(("a", "b"), 1u8)), b"a\x00\xff\x00\xffb\x00\x00\x01", "a tuple in a tuple is one part");
}

#[test]
fn integers_of_every_width_keep_their_order_and_come_back() {
    let mut dice = Dice(1);
    check(&integers!(dice, u8));
    check(&integers!(dice, u16));
    check(&integers!(dice, u32));
    check(&integers!(dice, u64));
    check(&integers!(dice, u128));
    check(&integers!(dice, i8));
    check(&integers!(dice, i16));
    check(&integers!(dice, i32));
    check(&integers!(dice, i64));
    check(&integers!(dice, i128));
}

#[test]
fn text_and_bytes_keep_their_order_and_come_back() {
    let mut dice = Dice(2);
    check(&(0..200).map(|_| text(&mut dice)).collect::<Vec<_>>());
    check(&(0..200).map(|_| bytes(&mut dice)).collect::<Vec<_>>());
    check(&(0..50).map(|_| [dice.roll(3) as u8, dice.roll(256) as u8]).collect::<Vec<_>>());
}

#[test]
fn tuples_keep_the_order_of_their_parts_and_come_back() {
    let mut dice = Dice(3);
    let dice = &mut dice;
    check(&(0..200).map(|_| (text(dice), bytes(dice))).collect::<Vec<_>>());
    check(&(0..200).map(|_| (bytes(dice), dice.roll(3) as i64 - 1)).collect::<Vec<_>>());
    check(&(0..100).map(|_| (dice.roll(3) as i16 - 1, text(dice), dice.roll(256) as u8)).collect::<Vec<_>>());
    check(&(0..200).map(|_| (text(dice), bytes(dice), text(dice), dice.roll(2) as u8)).collect::<Vec<_>>());
    check(&(0..100).map(|_| (1u8, bytes(dice), 2u8, text(dice), bytes(dice))).collect::<Vec<_>>());
    check(&(0..200).map(|_| ((bytes(dice), bytes(dice)), bytes(dice))).collect::<Vec<_>>());
}

#[test]
fn the_leading_parts_are_the_beginning_of_those_keys_and_of_no_others() {
    let mut dice = Dice(4);
    let keys: Vec<_> = (0..200).map(|_| (bytes(&mut dice), text(&mut dice), dice.roll(3) as u8)).collect();
    let begins = |key: &(Vec<u8>, String, u8), with: &dyn Leading<(Vec<u8>, String, u8)>| {
        let mut prefix = Vec::new();
        with.encode_leading(&mut prefix);
        encoded(key).starts_with(&prefix)
    };
    for a in &keys {
        for b in &keys {
            assert_eq!(begins(b, &(a.0.clone(),)), a.0 == b.0, "{a:?}, {b:?}");
            assert_eq!(begins(b, &(a.0.clone(), a.1.clone())), (&a.0, &a.1) == (&b.0, &b.1), "{a:?}, {b:?}");
        }
    }
}

#[test]
fn bytes_that_are_no_such_key_are_refused() {
    assert!(u32::decode(&[0; 3]).is_err() && u32::decode(&[0; 5]).is_err());
    assert!(<[u8; 2]>::decode(&[0; 3]).is_err());
    assert!(str::decode(&[0xff]).is_err());
    assert!(<(&str, u8)>::decode(b"web\x07").is_err(), "its first part has no end");
    assert!(<(&str, u8)>::decode(b"web\x00\x00").is_err(), "its last part is missing");
    assert!(<(&str, u8)>::decode(b"web\x00\x00\x07\x07").is_err(), "there is too much of it");
    assert!(<(u16, &str)>::decode(b"w").is_err());
}

struct Liar;

impl Key for Liar {
    type Owned = ();
    const WIDTH: Option<usize> = Some(4);

    fn encode(&self, to: &mut Vec<u8>) {
        to.push(1);
    }

    fn decode(_: &[u8]) -> Result<(), KeyError> {
        Ok(())
    }
}

#[test]
#[should_panic(expected = "breaks its WIDTH")]
fn a_key_that_is_not_as_wide_as_it_says_is_not_written_in_a_tuple() {
    encoded(&(Liar, 1u8));
}
