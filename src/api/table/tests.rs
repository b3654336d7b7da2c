//! Tables on one node and on three, through the public verbs.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::StreamExt;
use serde::{Deserialize, Serialize};

use super::*;
use crate::api::keys::{leading, stored_key};
use crate::api::kv::{Cas, Entry};
use crate::api::testing::{Dice, Trio, single};
use crate::api::txn::{put, read, when};
use crate::api::watch::{BatchKind, Cause, Event, Watch};
use crate::codec::{Json, Raw, upgrade, upgrade_with};
use crate::command::{Attach, Op, Txn};
use crate::format::keys;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct ConfigV1 {
    pool: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Config {
    pool: u32,
    log: String,
}

impl From<ConfigV1> for Config {
    fn from(old: ConfigV1) -> Self {
        config(old.pool, "info")
    }
}

fn config(pool: u32, log: &str) -> Config {
    Config { pool, log: log.into() }
}

const PORTS: Table<str, u16> = Table::new("ports");
const DEPTHS: Table<i32, u64> = Table::new("depths");
const JOBS: Table<(&'static str, i16), u64> = Table::new("jobs");
/// The same table in three releases of a program.
const CONFIG_V1: Table<str, ConfigV1> = Table::new("config").schema(1, &[]);
const CONFIG: Table<str, Config> = Table::new("config").schema(2, &[upgrade::<ConfigV1, Config>(1)]);
const CONFIG_V3: Table<str, String> = Table::new("config").schema(3, &[]);

async fn value<V: Clone + Send>(get: Get<V>) -> Option<V> {
    get.await.expect("read").map(|entry| entry.value)
}

async fn next<V, K>(watch: &mut Watch<V, K>) -> crate::Batch<V, K> {
    watch.next().await.expect("the watch has ended").expect("readable")
}

/// Puts these very bytes where no verb would.
async fn put_bytes(cluster: &Cluster, key: Bytes, value: &'static [u8]) {
    let op = Op::Put { key, value: Bytes::from_static(value), lease: Attach::Forever, prev: false };
    let txn = Txn { then: [op].into(), ..Txn::default() };
    cluster.write(txn, Duration::from_secs(10)).await.expect("written");
}

fn stored(cluster: &Cluster, key: &[u8]) -> Option<Bytes> {
    cluster.node().state().view().get(key).expect("readable").map(|stored| stored.value)
}

#[tokio::test(start_paused = true)]
async fn what_one_node_writes_in_a_table_every_node_reads_lists_and_watches() {
    let trio = Trio::start().await;
    trio.network.delay(Duration::from_millis(5));
    let mut watches = Vec::new();
    for node in &trio.nodes {
        watches.push(node.table(JOBS).watch(leading(("web",))).await.expect("opened"));
    }
    for (place, node) in trio.nodes.iter().enumerate() {
        let (other, number) = (&trio.nodes[(place + 1) % 3], place as i16 - 1);
        node.table(JOBS).set(("mail", number), &0).await.expect("written");
        let written = node.table(JOBS).set(("web", number), &(place as u64)).await.expect("written");
        assert_eq!(value(other.table(JOBS).get(("web", number))).await, Some(place as u64));
        let listed = other.table(JOBS).range(leading(("web",))).await.expect("listed");
        let expected: Vec<_> = (-1..=number).map(|n| (("web".to_owned(), n), (n + 1) as u64)).collect();
        assert_eq!(listed.into_iter().map(|(key, entry)| (key, entry.value)).collect::<Vec<_>>(), expected);
        for watch in &mut watches {
            let batch = next(watch).await;
            assert_eq!((batch.revision, batch.kind), (written.revision, BatchKind::Live));
            assert_eq!(*batch.events[0].key(), ("web".to_owned(), number));
        }
    }
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn tables_of_different_names_have_nothing_to_do_with_each_other() {
    const NAMES: [Table<str, u32>; 4] = [Table::new(""), Table::new("a"), Table::new("ab"), Table::new("b")];
    let cluster = single(|_| {}).await;
    for (n, table) in NAMES.into_iter().enumerate() {
        for key in ["a", "b", "ab"] {
            cluster.table(table).set(key, &(n as u32)).await.expect("written");
        }
    }
    for (n, table) in NAMES.into_iter().enumerate() {
        let all = cluster.table(table).range(..).await.expect("listed");
        let all: Vec<_> = all.into_iter().map(|(key, entry)| (key, entry.value)).collect();
        assert_eq!(all, ["a", "ab", "b"].map(|key| (key.to_owned(), n as u32)), "table {:?}", table.name());
    }
    assert_eq!(cluster.table(NAMES[1]).delete(..).await.expect("deleted").count, 3);
    for (table, left) in NAMES.into_iter().zip([3, 0, 3, 3]) {
        assert_eq!(cluster.table(table).range(..).count().await, Ok(left), "table {:?}", table.name());
    }
}

#[tokio::test(start_paused = true)]
async fn the_flat_verbs_are_the_table_without_a_name() {
    const FLAT: Table<str, u32> = Table::new("");
    const FLAT_JSON: Table<str, u32, Json> = Table::new("");
    const FLAT_BYTES: Table<str, Vec<u8>, Raw> = Table::new("");
    let cluster = single(|_| {}).await;
    cluster.set("a", &1u32).await.expect("written");
    assert_eq!(value(cluster.table(FLAT).get("a")).await, Some(1));
    cluster.table(FLAT).set("b", &2).await.expect("written");
    assert_eq!(value(cluster.get::<u32>("b")).await, Some(2));
    cluster.table(FLAT_JSON).set("c", &3).await.expect("written");
    assert_eq!(value(cluster.get::<Json<u32>>("c")).await, Some(Json(3)));
    cluster.set("d", &Raw::from(vec![4])).await.expect("written");
    assert_eq!(value(cluster.table(FLAT_BYTES).get("d")).await, Some(vec![4]));
}

#[tokio::test(start_paused = true)]
async fn keys_and_values_of_tables_are_stored_as_these_bytes() {
    let cluster = single(|_| {}).await;
    cluster.table(DEPTHS).set(-2, &300).await.expect("written");
    cluster.table(JOBS).set(("web", 1), &7).await.expect("written");
    cluster.table(CONFIG).set("web", &config(1, "x")).await.expect("written");
    assert_eq!(stored(&cluster, b"\x01depths\x00\x7f\xff\xff\xfe").as_deref(), Some(&[1, 0, 0, 251, 44, 1][..]));
    assert_eq!(stored(&cluster, b"\x01jobs\x00web\x00\x00\x80\x01").as_deref(), Some(&[1, 0, 0, 7][..]));
    assert_eq!(stored(&cluster, b"\x01config\x00web").as_deref(), Some(&[1, 2, 0, 1, 1, b'x'][..]));
}

#[tokio::test(start_paused = true)]
async fn the_options_of_the_flat_verbs_do_the_same_in_a_table() {
    let cluster = single(|_| {}).await;
    let ports = cluster.table(PORTS);
    let first = ports.set("web", &80).if_absent().await.expect("decided");
    let Cas::Applied(first) = first else { panic!("{first:?}") };
    let conflict = ports.set("web", &81).if_absent().await.expect("decided");
    assert!(matches!(&conflict, Cas::Conflict(Some(now)) if **now == 80), "{conflict:?}");
    assert!(!ports.set("mail", &25).if_present().await.expect("decided").is_applied());
    assert!(ports.set("web", &82).if_rev(first.revision).await.expect("decided").is_applied());
    let replaced = ports.set("web", &83).prev().await.expect("written");
    assert_eq!(replaced.prev.map(|prev| (prev.value, prev.version)), Some((82, 2)));
    assert_eq!(ports.delete("web").if_rev(first.revision).await.expect("decided").count, 0);

    let mut watch = ports.watch("web").prev().await.expect("opened");
    let ttl = Duration::from_millis(1500);
    ports.set("web", &84).ttl(ttl).await.expect("written");
    assert!(ports.remaining("web").await.expect("asked").is_some_and(|left| left <= ttl && !left.is_zero()));
    assert!(matches!(&next(&mut watch).await.events[..], [Event::Put { prev: Some(prev), .. }] if **prev == 83));
    let gone = next(&mut watch).await;
    let Event::Delete { key, cause: Cause::Expired, prev: Some(prev), .. } = &gone.events[0] else {
        panic!("{gone:?}")
    };
    assert_eq!((key.as_str(), prev.value), ("web", 84));
    assert_eq!(ports.remaining("web").await, Ok(None));
}

#[tokio::test(start_paused = true)]
async fn ranges_of_typed_keys_are_those_of_a_sorted_map() {
    let cluster = single(|_| {}).await;
    let (depths, jobs) = (cluster.table(DEPTHS), cluster.table(JOBS));
    let mut dice = Dice(6);
    let names = ["", "\0", "a", "a\0", "a\0b", "ab", "b"];
    let (mut by_depth, mut by_job) = (BTreeMap::new(), BTreeMap::new());
    for n in 0..120u64 {
        let depth = (dice.roll(600) as i32 - 300) << (dice.roll(3) * 8);
        let job = (names[dice.roll(7) as usize], dice.roll(9) as i16 - 4);
        cluster.transaction().then(DEPTHS.put(depth, &n)).then(JOBS.put(job, &n)).await.expect("written");
        by_depth.insert(depth, n);
        by_job.insert((job.0.to_owned(), job.1), n);
    }
    for round in 0..60 {
        let mut ends = [dice.roll(700) as i32 - 350, (dice.roll(700) as i32 - 350) << 8];
        ends.sort();
        let [from, to] = ends;
        let listed = depths.range(from..=to).await.expect("listed");
        let listed: Vec<_> = listed.into_iter().map(|(key, entry)| (key, entry.value)).collect();
        assert_eq!(listed, by_depth.range(from..=to).map(|(k, v)| (*k, *v)).collect::<Vec<_>>(), "{round}");
        assert_eq!(depths.range(..from).count().await, Ok(by_depth.range(..from).count() as u64), "{round}");

        let name = names[dice.roll(7) as usize];
        let of_name: Vec<_> = by_job.iter().filter(|((job, _), _)| job == name).map(|(k, v)| (k.clone(), *v)).collect();
        let streamed: Vec<_> = jobs.range(leading((name,))).reverse().stream().collect().await;
        let streamed = streamed.into_iter().rev().map(|next| next.expect("readable"));
        assert_eq!(streamed.map(|(key, entry)| (key, entry.value)).collect::<Vec<_>>(), of_name, "{name:?}");
        let (from, to) = ((name, -2), ("a\0", 3));
        let counted = if from <= to { jobs.range(from..to).count().await } else { Ok(0) };
        let inside = |((job, n), _): &(&(String, i16), &u64)| (from..to).contains(&(job.as_str(), *n));
        assert_eq!(counted, Ok(by_job.iter().filter(inside).count() as u64), "{name:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_transaction_reads_and_writes_several_tables() {
    let trio = Trio::start().await;
    let cluster = &trio.nodes[1];
    let seen = cluster.table(PORTS).set("web", &80).await.expect("written").revision;
    cluster.set("plain", &1u8).await.expect("written");
    let move_it = |expected: u16| {
        cluster
            .transaction()
            .when(PORTS.when("web").value_is(&expected))
            .when(PORTS.when("web").modified_at(seen))
            .when(when("plain").value_is(&1u8))
            .when(JOBS.when(leading(("web",))).absent())
            .then(PORTS.remove(..))
            .then(JOBS.put(("web", 1), &80).ttl(Duration::from_secs(60)))
            .then(put("plain", &2u8))
            .then(PORTS.read("web"))
            .then(DEPTHS.put(-1, &1))
            .otherwise(PORTS.list(..))
            .otherwise(read("plain"))
            .otherwise(JOBS.read(("web", 1)))
    };
    let failed = move_it(81).await.expect("decided");
    assert_eq!((failed.failed_condition(), failed.changed()), (Some(0), false));
    let listed = failed.entries_in(PORTS, 0).expect("typed");
    assert_eq!(listed.iter().map(|(key, entry)| (key.as_str(), **entry)).collect::<Vec<_>>(), [("web", 80)]);
    assert_eq!(failed.entry::<u8>(1).expect("typed").map(|entry| *entry), Some(1));
    assert_eq!(failed.entry_in(JOBS, 2), Ok(None));

    let done = move_it(80).await.expect("decided");
    assert!(done.succeeded());
    assert_eq!(done.deleted(0), 1);
    assert_eq!(done.entry_in(PORTS, 3).expect("typed").map(|entry| *entry), Some(80), "as it was before");
    for node in &trio.nodes {
        let job = node.table(JOBS).get(("web", 1)).await.expect("read").expect("there");
        assert_eq!((job.value, job.created, job.ttl), (80, done.revision(), Some(Duration::from_secs(60))));
        assert_eq!(value(node.table(PORTS).get("web")).await, None);
        assert_eq!(value(node.get::<u8>("plain")).await, Some(2));
        assert_eq!(value(node.table(DEPTHS).get(-1)).await, Some(1));
    }
    let again = move_it(80).await.expect("decided");
    assert_eq!((again.failed_condition(), again.entry_in(JOBS, 2).expect("typed").map(|e| *e)), (Some(0), Some(80)));
    let absent = cluster.transaction().when(JOBS.when(leading(("web",))).absent()).await.expect("decided");
    assert_eq!(absent.failed_condition(), Some(0), "the job is there");
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_transaction_read_of_one_table_is_not_taken_for_another_ones() {
    let cluster = single(|_| {}).await;
    cluster.table(PORTS).set("web", &80).await.expect("written");
    const OTHER: Table<str, u16> = Table::new("port");
    let read = cluster.transaction().then(PORTS.read("web")).then(PORTS.list(..)).await.expect("decided");
    let refused = read.entry_in(OTHER, 0);
    assert!(matches!(&refused, Err(Error::Invalid { what: "place", why }) if why.contains("\"ports\"")), "{refused:?}");
    assert!(matches!(read.entries_in(OTHER, 1), Err(Error::Invalid { what: "place", .. })));
    assert_eq!(read.entry_in(PORTS, 0).expect("typed").map(|entry| *entry), Some(80));
}

/// Reads the configuration of `web` in every way there is, and gives back what each of them found.
async fn read_everywhere(cluster: &Cluster) -> Vec<Result<Config, Error>> {
    let table = cluster.table(CONFIG);
    let plain = |entry: Entry<Config>| entry.value;
    let mut found = vec![table.get("web").await.map(|entry| entry.expect("there").value)];
    found.push(table.range(..).await.map(|list| list.into_iter().map(|(_, entry)| entry.value).next().expect("there")));
    found.push(table.range(..).stream().next().await.expect("there").map(|(_, entry)| entry.value));
    let mut watch = table.watch(..).with_initial().await.expect("opened");
    let initial = watch.next().await.expect("the node runs");
    found.push(initial.map(|mut batch| plain(batch.events.remove(0).entry().expect("a put").clone())));
    let read = cluster.transaction().then(CONFIG.read("web")).then(CONFIG.list(..)).await.expect("decided");
    found.push(read.entry_in(CONFIG, 0).map(|entry| entry.expect("there").value));
    found.push(read.entries_in(CONFIG, 1).map(|mut list| list.remove(0).1.value));
    let conflict = table.set("web", &config(0, "")).if_absent().await;
    found.push(conflict.map(|cas| match cas {
        Cas::Conflict(Some(now)) => now.value,
        other => panic!("{other:?}"),
    }));
    found
}

#[tokio::test(start_paused = true)]
async fn a_value_of_an_older_version_is_upgraded_wherever_it_is_read() {
    let trio = Trio::start().await;
    trio.nodes[0].table(CONFIG_V1).set("web", &ConfigV1 { pool: 7 }).await.expect("written");
    for node in &trio.nodes {
        let found = read_everywhere(node).await;
        assert_eq!(found, vec![Ok(config(7, "info")); found.len()]);
        assert_eq!(stored(node, b"\x01config\x00web").as_deref(), Some(&[1, 1, 0, 7][..]), "reading writes nothing");
    }
    let mut watch = trio.nodes[2].table(CONFIG).watch("web").prev().await.expect("opened");
    let replaced = trio.nodes[1].table(CONFIG).set("web", &config(8, "warn")).prev().await.expect("written");
    assert_eq!(replaced.prev.map(|prev| prev.value), Some(config(7, "info")));
    let batch = next(&mut watch).await;
    let Event::Put { entry, prev: Some(prev), .. } = &batch.events[0] else { panic!("{batch:?}") };
    assert_eq!((&entry.value, &prev.value), (&config(8, "warn"), &config(7, "info")));
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_value_of_a_newer_version_or_another_codec_is_refused_wherever_it_is_read() {
    let cluster = single(|_| {}).await;
    let web = keys::host("config", b"web");
    for (bytes, codec, version) in
        [(&b"\x01\x03\x00\x01x"[..], 1, 3), (&b"\x02\x02\x00{}"[..], 2, 2), (&b"\x01\x02\x00\x07"[..], 1, 2)]
    {
        cluster.table(CONFIG).delete(..).await.expect("deleted");
        put_bytes(&cluster, web.clone(), bytes).await;
        for found in read_everywhere(&cluster).await {
            let Err(Error::Codec { key, codec: found_codec, version: found_version, .. }) = &found else {
                panic!("{found:?}")
            };
            assert_eq!((key.as_str(), *found_codec, *found_version), ("config:web", codec, version));
        }
    }
    cluster.table(CONFIG_V3).set("web", &"x".to_string()).await.expect("written");
    let old = cluster.table(CONFIG).get("web").await.expect_err("it is newer").to_string();
    assert!(old.contains("\"config:web\"") && old.contains("newer") && old.contains("schema version 3"), "{old}");
}

#[tokio::test(start_paused = true)]
async fn a_condition_on_a_value_does_not_hold_for_an_older_version_of_it() {
    let cluster = single(|_| {}).await;
    cluster.table(CONFIG_V1).set("web", &ConfigV1 { pool: 7 }).await.expect("written");
    let same = async || {
        let is = cluster.transaction().when(CONFIG.when("web").value_is(&config(7, "info"))).await.expect("decided");
        let is_not = cluster.transaction().when(CONFIG.when("web").value_is_not(&config(7, "info"))).await;
        (is.succeeded(), is_not.expect("decided").succeeded())
    };
    assert_eq!(same().await, (false, true));
    cluster.table(CONFIG).set("web", &config(7, "info")).await.expect("written");
    assert_eq!(same().await, (true, false));
}

#[tokio::test(start_paused = true)]
async fn raw_bytes_have_versions_too() {
    const OLD: Table<str, Vec<u8>, Raw> = Table::new("raw");
    const NEW: Table<str, Vec<u8>, Raw> = Table::new("raw").schema(
        1,
        &[upgrade_with(0, |bytes| match bytes {
            [] => Err("is empty".to_owned()),
            bytes => Ok([b"new:", bytes].concat()),
        })],
    );
    let cluster = single(|_| {}).await;
    cluster.table(OLD).set("a", &b"x".to_vec()).await.expect("written");
    cluster.table(OLD).set("b", &Vec::new()).await.expect("written");
    cluster.table(NEW).set("c", &b"x".to_vec()).await.expect("written");
    assert_eq!(value(cluster.table(NEW).get("a")).await, Some(b"new:x".to_vec()));
    assert_eq!(value(cluster.table(NEW).get("c")).await, Some(b"x".to_vec()));
    let refused = cluster.table(NEW).get("b").await.expect_err("the function refuses it").to_string();
    assert!(refused.contains("is empty") && refused.contains("raw:b"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_key_of_another_type_is_an_error_in_its_place_and_hides_nothing_else() {
    const BY_NAME: Table<str, u64> = Table::new("depths");
    let cluster = single(|_| {}).await;
    let depths = cluster.table(DEPTHS);
    let mut watch = depths.watch(..).await.expect("opened");
    depths.set(-1, &1).await.expect("written");
    cluster.table(BY_NAME).set("é", &2).await.expect("written");
    depths.set(i32::MAX, &3).await.expect("written");

    let streamed: Vec<_> = depths.range(..).stream().collect().await;
    let [Ok((-1, _)), Err(error), Ok((i32::MAX, _))] = &streamed[..] else { panic!("{streamed:?}") };
    assert!(matches!(error, Error::Key { table, key, .. } if table == "depths" && key == "é"), "{error:?}");
    assert_eq!(
        error.to_string(),
        "the key \"é\" of table \"depths\" cannot be read: it has 2 bytes where 4 are needed"
    );
    assert_eq!(depths.range(..).await.as_ref(), Err(error));
    let read = cluster.transaction().then(DEPTHS.list(..)).await.expect("decided");
    assert_eq!(read.entries_in(DEPTHS, 0).as_ref(), Err(error));
    assert_eq!(depths.range(..).count().await, Ok(3));

    assert_eq!(*next(&mut watch).await.events[0].key(), -1);
    assert_eq!(watch.next().await, Some(Err(error.clone())));
    assert_eq!(*next(&mut watch).await.events[0].key(), i32::MAX);
}

#[tokio::test(start_paused = true)]
async fn a_value_that_could_not_be_read_back_is_refused_before_it_is_sent() {
    #[derive(Debug, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Untagged {
        Number(u32),
    }
    const BINCODE: Table<str, Untagged> = Table::new("untagged");
    const JSON: Table<str, Untagged, Json> = Table::new("untagged-json");
    let cluster = single(|_| {}).await;
    let before = cluster.status().revision;
    let refused = cluster.table(BINCODE).set("a", &Untagged::Number(1)).await;
    assert!(matches!(&refused, Err(Error::Codec { key, .. }) if key == "untagged:a"), "{refused:?}");
    let refused = cluster.transaction().then(BINCODE.put("a", &Untagged::Number(1))).await;
    assert!(matches!(refused, Err(Error::Codec { .. })), "{refused:?}");
    assert_eq!(cluster.status().revision, before);
    cluster.table(JSON).set("a", &Untagged::Number(1)).await.expect("JSON can");
}

#[tokio::test(start_paused = true)]
async fn a_key_may_live_no_longer_than_the_call() {
    async fn look(jobs: &Map<(&'static str, i16), u64>, name: &str) -> Option<u64> {
        value(jobs.get((name, 1))).await
    }
    let cluster = single(|_| {}).await;
    let jobs = cluster.table(JOBS);
    for n in 0..3u64 {
        let name = format!("job-{n}");
        jobs.set((name.as_str(), 1), &n).await.expect("written");
        assert_eq!(look(&jobs, &name).await, Some(n));
        assert_eq!(jobs.range((name.as_str(), 0)..).count().await, Ok(1));
        let there = cluster.transaction().when(JOBS.when((name.as_str(), 1)).present()).await.expect("decided");
        assert!(there.succeeded());
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_cannot_exist_is_refused_by_every_verb() {
    let cluster = single(|_| {}).await;
    let ports = cluster.table(PORTS);
    let long = "x".repeat(crate::KEY_BYTES_MAX);
    for key in ["", long.as_str()] {
        let refusals = [
            ports.get(key).await.map(drop),
            ports.set(key, &1).await.map(drop),
            ports.delete(key).await.map(drop),
            ports.range(key).await.map(drop),
            ports.watch(key).await.map(drop),
            ports.remaining(key).await.map(drop),
            cluster.transaction().then(PORTS.put(key, &1)).await.map(drop),
            cluster.transaction().when(PORTS.when(key).absent()).await.map(drop),
        ];
        for (place, refused) in refusals.into_iter().enumerate() {
            assert!(matches!(refused, Err(Error::Invalid { what: "key", .. })), "{place}: {refused:?}");
        }
    }
}

#[test]
#[should_panic(expected = "zero byte")]
fn a_table_whose_name_has_a_zero_byte_is_none() {
    let _: Table<str, u8> = Table::new("a\0b");
}

#[test]
#[should_panic(expected = "TABLE_NAME_BYTES_MAX")]
fn a_table_whose_name_is_too_long_is_none() {
    let _: Table<str, u8> = Table::new(String::leak("x".repeat(TABLE_NAME_BYTES_MAX + 1)));
}

#[test]
fn a_table_with_the_longest_name_is_one() {
    let table: Table<str, u8> = Table::new(String::leak("x".repeat(TABLE_NAME_BYTES_MAX)));
    assert_eq!(table.name().len(), TABLE_NAME_BYTES_MAX);
    assert!(stored_key_in(table.name(), "k").is_ok_and(|key| key != stored_key("k").expect("valid")));
}
