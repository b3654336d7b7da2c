//! What a table's keys are, as bytes that keep their order.
//!
//! A [`Key`] promises that its bytes compare as its values do (so ranges mean what they say), that they come back as what
//! they were, and that equal keys have equal bytes. How parts are put together is [`crate::format::ordered`]'s.

use crate::error::KeyError;
use crate::format::ordered;

/// A type that can be the key of a [`Table`](crate::Table).
///
/// Text (`str`), bytes (`[u8]`, `[u8; N]`), the integers whose width is the same on every machine, and tuples of two to
/// five of these, text and bytes as references: `Table<(&'static str, u64), Job>`.
///
/// An encoded key may have at most [`KEY_BYTES_MAX`](crate::KEY_BYTES_MAX) bytes together with its table's name, and must
/// have at least one.
///
/// # Implementing it
/// Key bytes are kept on disk and compared there. For all keys `a` and `b` the bytes of `a` must compare with those of `b`
/// as the keys do, and `decode` must give back what `encode` was given; neither may ever change. The easiest way is to hand
/// on to a key that does:
///
/// ```
/// use quorate::{Key, KeyError};
///
/// #[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
/// struct UserId(u64);
///
/// impl Key for UserId {
///     type Owned = UserId;
///     const WIDTH: Option<usize> = u64::WIDTH;
///     fn encode(&self, to: &mut Vec<u8>) {
///         self.0.encode(to);
///     }
///     fn decode(bytes: &[u8]) -> Result<UserId, KeyError> {
///         u64::decode(bytes).map(UserId)
///     }
/// }
///
/// let mut bytes = Vec::new();
/// UserId(258).encode(&mut bytes);
/// assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 1, 2]);
/// assert_eq!(UserId::decode(&bytes), Ok(UserId(258)));
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the key of a table",
    note = "keys are `str`, `[u8]`, `[u8; N]`, integers of fixed width, tuples of them (`&'static str` for text), or a type of your own that implements `Key`"
)]
pub trait Key {
    /// What a key is read back as: `String` for `str`.
    type Owned: Send + 'static;

    /// The number of bytes, if it is the same for every key. Keys of no fixed width take at least two bytes more where
    /// they stand in a tuple in front of another part.
    const WIDTH: Option<usize> = None;

    /// Appends the key's bytes to `to`.
    fn encode(&self, to: &mut Vec<u8>);

    /// The key whose bytes these are.
    ///
    /// # Errors
    /// [`KeyError`] if they are no such key's: the table holds keys of another type.
    fn decode(bytes: &[u8]) -> Result<Self::Owned, KeyError>;
}

/// The leading parts of a tuple, or the beginning of a text. See [`leading`](crate::leading).
///
/// Implemented for tuples of one to four parts and the longer tuples that begin with the same types, and for text and bytes.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not the beginning of a key `{K}`",
    note = "the beginning of a tuple is a shorter tuple of the same types: `(\"web\",)` for a key `(&str, u64)`"
)]
pub trait Leading<K: ?Sized> {
    #[doc(hidden)]
    fn encode_leading(&self, to: &mut Vec<u8>);
}

impl Key for str {
    type Owned = String;

    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(self.as_bytes());
    }

    fn decode(bytes: &[u8]) -> Result<String, KeyError> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(KeyError::new(format!("is not text: {error}"))),
        }
    }
}

impl Key for [u8] {
    type Owned = Vec<u8>;

    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(self);
    }

    fn decode(bytes: &[u8]) -> Result<Vec<u8>, KeyError> {
        Ok(bytes.to_vec())
    }
}

impl<const N: usize> Key for [u8; N] {
    type Owned = [u8; N];
    const WIDTH: Option<usize> = Some(N);

    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(self);
    }

    fn decode(bytes: &[u8]) -> Result<[u8; N], KeyError> {
        bytes.try_into().map_err(|_| wrong_width(N, bytes))
    }
}

/// For parts of tuples. A table keyed by one text is a `Table<str, _>`.
impl<K: Key + ?Sized> Key for &K {
    type Owned = K::Owned;
    const WIDTH: Option<usize> = K::WIDTH;

    fn encode(&self, to: &mut Vec<u8>) {
        K::encode(self, to);
    }

    fn decode(bytes: &[u8]) -> Result<K::Owned, KeyError> {
        K::decode(bytes)
    }
}

/// Declares that a type's keys are those of what it borrows as.
macro_rules! owned_key {
    ($($owned:ty => $key:ty),*) => {$(
        /// The same keys as those of what it borrows as.
        impl Key for $owned {
            type Owned = $owned;

            fn encode(&self, to: &mut Vec<u8>) {
                <$key as Key>::encode(self, to);
            }

            fn decode(bytes: &[u8]) -> Result<$owned, KeyError> {
                <$key as Key>::decode(bytes)
            }
        }
    )*};
}

owned_key!(String => str, Vec<u8> => [u8]);

/// Declares integers as keys.
macro_rules! integer_key {
    ($($integer:ty),*) => {$(
        impl Key for $integer {
            type Owned = $integer;
            const WIDTH: Option<usize> = Some(size_of::<$integer>());

            fn encode(&self, to: &mut Vec<u8>) {
                ordered::Ordered::put(*self, to);
            }

            fn decode(bytes: &[u8]) -> Result<$integer, KeyError> {
                ordered::Ordered::take(bytes).ok_or_else(|| wrong_width(size_of::<$integer>(), bytes))
            }
        }
    )*};
}

integer_key!(u8, u16, u32, u64, u128, i8, i16, i32, i64, i128);

/// Declares tuples as keys: all parts but the last one say where they end.
macro_rules! tuple_key {
    ($($part:ident $place:tt)* ; $last:ident $last_place:tt) => {
        impl<$($part: Key,)* $last: Key> Key for ($($part,)* $last,) {
            type Owned = ($($part::Owned,)* $last::Owned,);
            const WIDTH: Option<usize> = total(&[$($part::WIDTH,)* $last::WIDTH]);

            fn encode(&self, to: &mut Vec<u8>) {
                $(encode_part(&self.$place, to);)*
                self.$last_place.encode(to);
            }

            fn decode(bytes: &[u8]) -> Result<Self::Owned, KeyError> {
                let mut rest = bytes;
                Ok(($(decode_part::<$part>(&mut rest)?,)* $last::decode(rest)?,))
            }
        }
    };
}

tuple_key!(A 0; B 1);
tuple_key!(A 0 B 1; C 2);
tuple_key!(A 0 B 1 C 2; D 3);
tuple_key!(A 0 B 1 C 2 D 3; E 4);

/// Declares a tuple of the first parts as the beginning of the whole.
macro_rules! leading_parts {
    ($($part:ident $place:tt)+ ; $($rest:ident)+) => {
        impl<$($part: Key,)+ $($rest: Key),+> Leading<($($part,)+ $($rest,)+)> for ($($part,)+) {
            fn encode_leading(&self, to: &mut Vec<u8>) {
                $(encode_part(&self.$place, to);)+
            }
        }
    };
}

leading_parts!(A 0; B);
leading_parts!(A 0; B C);
leading_parts!(A 0; B C D);
leading_parts!(A 0; B C D E);
leading_parts!(A 0 B 1; C);
leading_parts!(A 0 B 1; C D);
leading_parts!(A 0 B 1; C D E);
leading_parts!(A 0 B 1 C 2; D);
leading_parts!(A 0 B 1 C 2; D E);
leading_parts!(A 0 B 1 C 2 D 3; E);

impl Leading<str> for &str {
    fn encode_leading(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(self.as_bytes());
    }
}

impl Leading<[u8]> for &[u8] {
    fn encode_leading(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(self);
    }
}

/// # Panics
/// If a key is not as wide as its type says: what follows it could not be found again.
fn encode_part<K: Key>(part: &K, to: &mut Vec<u8>) {
    let start = to.len();
    part.encode(to);
    match K::WIDTH {
        None => ordered::close(to, start),
        Some(width) => assert_eq!(to.len() - start, width, "{} breaks its WIDTH", std::any::type_name::<K>()),
    }
}

fn decode_part<K: Key>(rest: &mut &[u8]) -> Result<K::Owned, KeyError> {
    match K::WIDTH {
        None => {
            let (part, behind) = ordered::open(rest).ok_or_else(|| KeyError::new("ends within a part"))?;
            *rest = behind;
            K::decode(&part)
        }
        Some(width) => {
            let (part, behind) = rest.split_at_checked(width).ok_or_else(|| wrong_width(width, rest))?;
            *rest = behind;
            K::decode(part)
        }
    }
}

fn wrong_width(width: usize, bytes: &[u8]) -> KeyError {
    KeyError::new(format!("has {} bytes where {width} are needed", bytes.len()))
}

/// The width of a tuple of parts of these widths.
const fn total(widths: &[Option<usize>]) -> Option<usize> {
    let (mut total, mut place) = (0, 0);
    while place < widths.len() {
        match widths[place] {
            Some(width) => total += width,
            None => return None,
        }
        place += 1;
    }
    Some(total)
}

#[cfg(test)]
mod tests;
