//! Bytes of values: pinned, read for ever, and refused where they do not fit.

use super::*;

#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Config {
    pool: u32,
    log: String,
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(u32),
}

fn config() -> Config {
    Config { pool: 300, log: "info".into() }
}

#[test]
fn stored_values_are_these_bytes() {
    assert_eq!(encode("k", &config()).as_deref(), Ok(&[1, 0, 0, 251, 44, 1, 4, b'i', b'n', b'f', b'o'][..]));
    assert_eq!(encode("k", &Json(7)).as_deref(), Ok(&b"\x02\x00\x007"[..]));
    assert_eq!(encode("k", &Raw::from(&b"abc"[..])).as_deref(), Ok(&b"\x03\x00\x00abc"[..]));
}

#[test]
fn values_come_back_as_they_were() {
    let stored = encode("k", &config()).expect("encodes");
    assert_eq!(decode::<Config>("k", &stored), Ok(config()));
    let stored = encode("k", &Json(config())).expect("encodes");
    assert_eq!(decode::<Json<Config>>("k", &stored), Ok(Json(config())));
}

#[test]
fn a_value_of_another_codec_type_or_version_is_an_error_that_names_it() {
    let stored = encode("cfg", &config()).expect("encodes");
    let as_json = decode::<Json<Config>>("cfg", &stored);
    assert!(matches!(&as_json, Err(Error::Codec { key, codec: 1, .. }) if key == "cfg"), "{as_json:?}");
    let shorter = decode::<u8>("cfg", &stored);
    assert!(matches!(shorter, Err(Error::Codec { .. })), "{shorter:?}");
    let newer = decode::<u8>("cfg", &Bytes::from_static(&[1, 9, 0, 5]));
    assert!(matches!(newer, Err(Error::Codec { version: 9, .. })), "{newer:?}");
    assert!(decode::<u8>("cfg", &Bytes::new()).is_err());
}

#[test]
fn a_value_that_could_not_be_read_back_is_refused_when_it_is_written() {
    let refused = encode("k", &Untagged::Number(1));
    assert!(matches!(refused, Err(Error::Codec { .. })), "{refused:?}");
    assert!(encode("k", &Json(Untagged::Number(1))).is_ok());
}

#[test]
fn an_oversized_value_is_refused_with_its_size() {
    let refused = encode("k", &Raw::from(vec![0; VALUE_BYTES_MAX]));
    assert!(matches!(&refused, Err(Error::Invalid { what: "value", why }) if why.contains("1048579")), "{refused:?}");
}

#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct ConfigV1 {
    pool: u32,
}

impl From<ConfigV1> for Config {
    fn from(old: ConfigV1) -> Self {
        Config { pool: old.pool, log: "info".into() }
    }
}

/// Version 3 of a table of configurations: it knows the way up from 1 and from what has no version.
fn third<C: Codec<Config>>() -> Format<Config> {
    Format::plain::<C>().schema(3, const { &[upgrade::<ConfigV1, Config>(1), upgrade_with(0, from_text)] })
}

fn from_text(bytes: &[u8]) -> Result<Config, String> {
    let log = str::from_utf8(bytes).map_err(|error| error.to_string())?;
    Ok(Config { pool: 1, log: log.into() })
}

fn key() -> String {
    "cfg".into()
}

/// What the error says of a value that `format` does not read.
fn refused<V: fmt::Debug>(format: Format<V>, bytes: &'static [u8]) -> String {
    let refused = format.decode(key, &Bytes::from_static(bytes)).expect_err("it is not one");
    let Error::Codec { key, codec, version, .. } = &refused else { panic!("{refused:?}") };
    let header = bytes.split_first_chunk::<3>().map_or((0, 0), |(head, _)| (head[0], u32::from(head[1])));
    assert_eq!((key.as_str(), (*codec, *version)), ("cfg", header));
    refused.to_string()
}

#[test]
fn values_with_a_schema_are_these_bytes() {
    let stored = third::<Bincode>().encode("t", key, &config());
    assert_eq!(stored.as_deref(), Ok(&[1, 3, 0, 251, 44, 1, 4, b'i', b'n', b'f', b'o'][..]));
    let stored = third::<Json>().encode("t", key, &config());
    assert_eq!(stored.as_deref(), Ok(&b"\x02\x03\x00{\"pool\":300,\"log\":\"info\"}"[..]));
    let stored = Format::plain::<Raw>().schema(0x0201, &[]).encode("t", key, &b"abc".to_vec());
    assert_eq!(stored.as_deref(), Ok(&b"\x03\x01\x02abc"[..]));
}

#[test]
fn values_of_every_codec_and_older_version_are_read_for_ever() {
    let read = |format: Format<Config>, bytes: &'static [u8]| format.decode(key, &Bytes::from_static(bytes));
    assert_eq!(read(third::<Bincode>(), &[1, 3, 0, 251, 44, 1, 4, b'i', b'n', b'f', b'o']), Ok(config()));
    assert_eq!(read(third::<Bincode>(), &[1, 1, 0, 251, 44, 1]), Ok(config()));
    assert_eq!(read(third::<Bincode>(), b"\x01\x00\x00warn"), Ok(Config { pool: 1, log: "warn".into() }));
    assert_eq!(read(third::<Json>(), b"\x02\x03\x00{\"pool\":300,\"log\":\"info\"}"), Ok(config()));
    assert_eq!(read(third::<Json>(), b"\x02\x01\x00{\"pool\":300}"), Ok(config()));
    let raw = Format::<Bytes>::plain::<Raw>().decode(key, &Bytes::from_static(b"\x03\x00\x00abc"));
    assert_eq!(raw, Ok(Bytes::from_static(b"abc")));
}

#[test]
fn a_version_without_a_way_up_is_an_error_that_says_so() {
    let newer = refused(third::<Bincode>(), &[1, 4, 0, 7, 0]);
    assert!(newer.contains("newer schema version") && newer.contains("schema version 4"), "{newer}");
    let older = refused(third::<Bincode>(), &[1, 2, 0, 7, 0]);
    assert!(older.contains("declares no upgrade to its 3") && older.contains("schema version 2"), "{older}");
    let undeclared = refused(Format::<Config>::plain::<Bincode>(), &[1, 1, 0, 7]);
    assert!(undeclared.contains("newer"), "{undeclared}");
}

#[test]
fn a_value_that_is_not_read_to_its_last_byte_is_refused_in_every_version() {
    for (format, bytes) in [
        (third::<Bincode>(), &[1, 3, 0, 7, 1, b'x', 0][..]),
        (third::<Bincode>(), &[1, 3, 0, 7, 2, b'x'][..]),
        (third::<Bincode>(), &[1, 1, 0, 7, 0][..]),
        (third::<Json>(), b"\x02\x03\x00{\"pool\":7,\"log\":\"\"}1"),
        (third::<Json>(), b"\x02\x01\x00{\"pool\":7}}"),
        (third::<Bincode>(), b"\x01\x00\x00\xff"),
    ] {
        let why = refused(format, bytes);
        assert!(why.contains("cannot be read as") && why.contains("Config"), "{why}");
    }
    assert!(refused(third::<Bincode>(), &[1, 3]).contains("only 2 bytes"));
}

#[test]
fn a_value_of_another_codec_is_refused_whatever_its_version() {
    for version in 0..5 {
        let bytes: &'static [u8] = Vec::leak(vec![2, version, 0, b'7']);
        let why = refused(third::<Bincode>(), bytes);
        assert!(why.contains("was written as JSON, and is read as bincode"), "{why}");
    }
}

#[test]
#[should_panic(expected = "two upgrades")]
fn a_schema_has_one_way_up_from_each_version() {
    let twice = const { &[upgrade::<ConfigV1, Config>(1), upgrade::<ConfigV1, Config>(1)] };
    let _ = Format::<Config>::plain::<Bincode>().schema(2, twice);
}

#[test]
#[should_panic(expected = "older version")]
fn an_upgrade_does_not_start_at_the_version_it_leads_to() {
    let _ = Format::<Config>::plain::<Bincode>().schema(1, const { &[upgrade::<ConfigV1, Config>(1)] });
}

/// Reads back what it wrote only if that is even.
#[derive(Debug, serde::Serialize)]
struct Even(u32);

impl<'de> serde::Deserialize<'de> for Even {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u32::deserialize(deserializer)? {
            odd if odd % 2 == 1 => Err(serde::de::Error::custom("it is odd")),
            even => Ok(Even(even)),
        }
    }
}

#[test]
fn the_first_value_of_a_type_in_each_table_is_read_back_also_in_a_release_build() {
    let format = Format::<Even>::plain::<Bincode>();
    let (even, odd) = (write_even(2), write_even(3));
    assert!(format.check_readable(false, "first", &odd).is_err());
    assert!(format.check_readable(false, "first", &odd).is_err(), "what failed is not taken for read");
    assert!(format.check_readable(false, "first", &even).is_ok());
    assert!(format.check_readable(false, "first", &odd).is_ok(), "only the first is read back");
    assert!(format.check_readable(true, "first", &odd).is_err(), "a debug build reads all of them");
    assert!(format.check_readable(false, "second", &odd).is_err(), "each table has its own first");
    assert!(Format::<Even>::plain::<Json>().check_readable(false, "first", b"3").is_err(), "and each codec");
}

fn write_even(number: u32) -> Vec<u8> {
    <Bincode as Codec<Even>>::write(&Even(number)).expect("writes")
}
