//! Values and keys that are not what the mirror reads them as.

use serde::{Deserialize, Serialize};

use super::*;
use crate::{Table, upgrade};

#[tokio::test(start_paused = true)]
async fn a_value_of_another_type_is_reported_for_its_key_and_hides_nothing_else() {
    let cluster = single(|_| {}).await;
    cluster.set("k/a", &1u32).await.unwrap();
    cluster.set("k/b", &"text".to_string()).await.unwrap();
    let mut mirror = cluster.mirror::<u32>(prefix("k/")).await.unwrap();
    let state = mirror.load();
    assert_eq!((contents(&state), state.len()), (vec![("k/a", 1)], 1));
    let error = state.get("k/b").unwrap_err();
    assert!(matches!(&error, Error::Codec { key, .. } if key == "k/b"), "{error:?}");
    assert_eq!(state.errors().collect::<Vec<_>>(), [&error]);

    // It is mended, and another one breaks.
    cluster.set("k/b", &2u32).await.unwrap();
    let mended = changed(&mut mirror).await;
    assert_eq!(told(&mended), [("k/b", None, Some(2), None)]);
    assert_eq!((mended.snapshot().len(), mended.snapshot().errors().count()), (2, 0));
    cluster.set("k/a", &"text".to_string()).await.unwrap();
    let broken = changed(&mut mirror).await;
    assert_eq!(told(&broken), [("k/a", Some(1), None, None)]);
    let change = broken.iter().next().unwrap();
    assert!(matches!(change.error(), Some(Error::Codec { .. })) && !change.is_delete());
    assert_eq!(contents(&mirror.load()), [("k/b", 2)]);
    cluster.delete("k/a").await.unwrap();
    let gone = changed(&mut mirror).await;
    assert_eq!(told(&gone), [("k/a", None, None, Some(Cause::Deleted))]);
    assert!(gone.iter().next().unwrap().is_delete());
    assert_eq!((mirror.load().len(), mirror.load().errors().count()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_key_of_another_type_is_among_the_errors_and_hides_nothing_else() {
    const TEXTS: Table<str, u32> = Table::new("t");
    const NUMBERS: Table<u32, u32> = Table::new("t");
    let cluster = single(|_| {}).await;
    cluster.table(NUMBERS).set(7, &1).await.unwrap();
    let mut mirror = cluster.table(NUMBERS).mirror(..).await.unwrap();
    cluster.table(TEXTS).set("no number", &2).await.unwrap();
    let last = cluster.table(NUMBERS).set(8, &3).await.unwrap().revision;
    let state = rt::timeout(HUNG, mirror.at_least(last)).await.unwrap().unwrap();
    assert_eq!(state.iter().map(|(key, entry)| (*key, entry.value)).collect::<Vec<_>>(), [(7, 1), (8, 3)]);
    assert!(matches!(state.errors().collect::<Vec<_>>()[..], [Error::Key { .. }]));
    let delta = mirror.changed().await.unwrap();
    assert_eq!(delta.iter().map(|change| *change.key()).collect::<Vec<_>>(), [8]);
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Limits {
    requests: u64,
    burst: u64,
}

impl From<u32> for Limits {
    fn from(requests: u32) -> Self {
        Limits { requests: requests.into(), burst: 0 }
    }
}

#[tokio::test(start_paused = true)]
async fn values_of_older_versions_are_mirrored_as_what_they_have_become() {
    const OLD: Table<str, u32> = Table::new("limits");
    const NEW: Table<str, Limits> = Table::new("limits").schema(1, &[upgrade::<u32, Limits>(0)]);
    let cluster = single(|_| {}).await;
    cluster.table(OLD).set("api", &300).await.unwrap();
    let old = cluster.table(OLD).mirror("api").await.unwrap();
    let new = cluster.table(NEW).mirror("api").await.unwrap();
    assert_eq!(new.load().get("api").unwrap().unwrap().value, Limits { requests: 300, burst: 0 });
    let limits = Limits { requests: 400, burst: 10 };
    let written = cluster.table(NEW).set("api", &limits).await.unwrap().revision;
    let state = rt::timeout(HUNG, new.at_least(written)).await.unwrap().unwrap();
    assert_eq!(state.get("api").unwrap().unwrap().value, limits);
    // The older release cannot read what the newer one writes, and says so.
    let state = rt::timeout(HUNG, old.at_least(written)).await.unwrap().unwrap();
    assert!(matches!(state.get("api"), Err(Error::Codec { version: 1, .. })), "{:?}", state.get("api"));
}

#[derive(Debug, Serialize)]
struct Bomb(u32);

impl<'de> Deserialize<'de> for Bomb {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let number = u32::deserialize(from)?;
        assert_ne!(number, 13, "provoked by a test");
        Ok(Bomb(number))
    }
}

#[tokio::test(start_paused = true)]
async fn a_mirror_whose_values_panic_when_read_ends_and_says_so() {
    let cluster = single(|_| {}).await;
    let mut mirror = cluster.mirror::<Bomb>("k").await.unwrap();
    cluster.set("k", &1u32).await.unwrap();
    changed(&mut mirror).await;
    let last = cluster.set("k", &13u32).await.unwrap().revision;
    let ended = rt::timeout(HUNG, mirror.changed()).await.expect("the mirror is silent");
    assert!(matches!(&ended, Err(Error::Stopped { reason }) if reason.contains("panicked")), "{ended:?}");
    assert!(matches!(mirror.at_least(last).await, Err(Error::Stopped { .. })));
    assert_eq!(mirror.load().get("k").unwrap().unwrap().value.0, 1);
    assert_eq!(cluster.get::<u32>("k").await.unwrap().unwrap().value, 13, "the node goes on");
}
