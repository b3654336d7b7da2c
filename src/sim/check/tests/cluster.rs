//! The oracles over a cluster: what is recorded of a right one is judged right.

use std::time::Instant;

use futures::executor::block_on;
use futures::future::join_all;

use super::world::Rng;
use crate::api::cluster::Cluster;
use crate::api::txn::{put, read, remove, when};
use crate::error::{Error, Obstacle};
use crate::sim::check::{
    Answer, CommitLog, Condition, Evidence, Moment, Only, Op, Outcome, Property, Recorder, Seen, Span, Step, Test,
    WatchRecord, WatchStart, text,
};
use crate::types::{ClientId, Revision, Ticket};

const KEYS: [&str; 3] = ["a", "b", "c"];
const CALLS: u64 = 40;

/// One client: operations of all kinds, each recorded with its answer.
async fn client(name: u64, cluster: Cluster, recorder: Recorder) -> Result<(), Error> {
    let mut rng = Rng(name);
    for number in 0..CALLS {
        let (key, value) = (*rng.pick(&KEYS), format!("{name}-{number}"));
        let written = text(&value);
        match rng.below(8) {
            0 => {
                let call = recorder.invoke(name, Op::set(key, written));
                let replaced = cluster.set(key, &value).prev().await?;
                call.ok(Answer::replaced(&replaced), Some(replaced.revision));
            }
            1 => {
                let call = recorder.invoke(name, Op::set_only(key, written, Only::Absent));
                let (answer, revision) = Answer::cas(&cluster.set(key, &value).if_absent().await?);
                call.ok(answer, revision);
            }
            2 => {
                let call = recorder.invoke(name, Op::delete(key));
                let deleted = cluster.delete(key).await?;
                call.ok(Answer::Deleted(deleted.count), Some(deleted.revision));
            }
            3 => {
                let call = recorder.invoke(name, Op::range(Span::all()));
                call.ok(Answer::listed(&cluster.range::<String>(..).await?), None);
            }
            4 => {
                let call = recorder.invoke(name, Op::Get { key: key.into(), moment: Moment::Stale });
                call.ok(Answer::got(cluster.get::<String>(key).stale().await?.as_ref()), None);
            }
            5 => transfer(name, &cluster, &recorder, value).await?,
            _ => {
                let call = recorder.invoke(name, Op::get(key));
                call.ok(Answer::got(cluster.get::<String>(key).await?.as_ref()), None);
            }
        }
    }
    Ok(())
}

/// If `b` is there, it goes and `c` comes; otherwise both are looked at.
async fn transfer(name: u64, cluster: &Cluster, recorder: &Recorder, value: String) -> Result<(), Error> {
    let present = Condition { keys: Span::key("b"), test: Test::Present };
    let then = vec![Step::Remove(Span::key("b")), Step::put("c", text(&value)), Step::Read("a".into())];
    let otherwise = vec![Step::Read("b".into()), Step::List(Span::all())];
    let call = recorder.invoke(name, Op::Txn { when: vec![present], then: then.clone(), otherwise: otherwise.clone() });
    let outcome = cluster
        .transaction()
        .when(when("b").present())
        .then(remove("b"))
        .then(put("c", &value))
        .then(read("a"))
        .otherwise(read("b"))
        .otherwise(crate::api::txn::list(..))
        .await?;
    call.ok(Answer::txn::<String>(&outcome, &then, &otherwise)?, Some(outcome.revision()));
    Ok(())
}

/// Runs three clients on three nodes and records everything.
async fn run() -> Result<Evidence, Error> {
    let nodes = Cluster::local(3).await.expect("starts");
    let start = Instant::now();
    let recorder: Recorder = Recorder::new(move || start.elapsed().as_nanos() as u64);
    let first = Revision::new(1);
    let mut watch = nodes[2].watch::<String>(..).from(first).backpressure().prev().await?;
    let clients = (1..).zip(&nodes).map(|(name, node)| client(name, node.clone(), recorder.clone()));
    join_all(clients).await.into_iter().collect::<Result<Vec<()>, Error>>()?;

    let call = recorder.invoke(9, Op::set("end", text(&"end")));
    let end = nodes[0].set("end", &"end".to_owned()).await?.revision;
    call.ok(Answer::Written, Some(end));
    let mut log = CommitLog::complete(Vec::new());
    let mut record =
        WatchRecord { prev: true, backpressure: true, ..WatchRecord::new("all", Span::all(), WatchStart::From(first)) };
    while log.last() < end {
        let batch = watch.next().await.expect("a watch ends with an error");
        record.push(&batch);
        log.push(&batch?);
    }
    record.drained = true;
    for node in &nodes {
        node.shutdown().await?;
    }
    Ok(Evidence { history: recorder.history(), log, watches: vec![record], ..Evidence::default() })
}

#[test]
fn a_cluster_keeps_its_word_and_a_forged_answer_is_seen() {
    let mut evidence = block_on(run()).expect("no faults, no errors");
    assert_eq!(evidence.history.calls().len() as u64, 3 * CALLS + 1);
    let report = evidence.judge();
    assert!(report.violations.is_empty(), "{report}");

    let mut calls = evidence.history.calls().to_vec();
    let got = calls.iter_mut().find_map(|call| match &mut call.response {
        Some(Answer::Got(Some(seen))) => Some(seen),
        _ => None,
    });
    got.expect("somebody read something").value = text(&"forged");
    evidence.history = crate::sim::check::History::new(calls);
    let found: Vec<Property> = evidence.judge().violations.iter().map(|violation| violation.property).collect();
    assert!(found.contains(&Property::Kv4), "{found:?}");
}

#[test]
fn an_error_says_what_is_certain() {
    let ticket = Ticket { client: ClientId::new(1), seq: 2 };
    let waited = std::time::Duration::ZERO;
    for (error, outcome) in [
        (Error::NotApplied { why: Obstacle::Timeout, waited }, (Outcome::Fail, None)),
        (Error::NoSpace { used: 2, limit: 1 }, (Outcome::Fail, None)),
        (Error::Fenced { held: 1, current: Revision::new(2) }, (Outcome::Fail, None)),
        (Error::Indeterminate { ticket }, (Outcome::Unknown, Some(ticket))),
        (Error::Stopped { reason: "gone".into() }, (Outcome::Unknown, None)),
    ] {
        assert_eq!(Outcome::of(&error), outcome, "{error}");
        let recorder: Recorder = Recorder::new(|| 0);
        recorder.invoke(1, Op::get("a")).error(&error);
        let history = recorder.history();
        let call = &history.calls()[0];
        assert_eq!((call.outcome, call.ticket, call.returned_ns), (outcome.0, outcome.1, Some(0)));
    }
}

#[test]
fn what_the_state_machine_changed_is_a_commit() {
    use crate::command::{Change, ChangeKind, RecordId};
    use crate::format::keys;
    let change = |ordinal, kind, key: bytes::Bytes| Change {
        id: RecordId { revision: Revision::new(7), ordinal },
        prev: None,
        kind,
        key,
        value: bytes::Bytes::from_static(b"x"),
        created: Revision::new(5),
        version: 2,
        lease: None,
    };
    let changes = [
        change(0, ChangeKind::Put, keys::host("", b"a")),
        change(1, ChangeKind::Expired, keys::coordination("lock", b"a")),
    ];
    let shown = |change: &Change| String::from_utf8_lossy(&change.value).into_owned();
    let commit = crate::sim::check::Commit::of_changes(&changes, shown).unwrap();
    assert_eq!(commit.revision, Revision::new(7));
    let now =
        Seen { value: "x".into(), created: Revision::new(5), modified: Revision::new(7), version: 2, lease: None };
    let [first, second] = &commit.changes[..] else { panic!("{commit}") };
    assert_eq!((first.key.as_str(), &first.now), ("a", &Some(now)));
    assert_eq!((second.key.as_str(), &second.now), ("\u{2}lock\0a", &None));
    let others = Span::not_flat();
    assert!(others.contains(&second.key) && !others.contains(&first.key));
    // The bytes behind a lock's name need not be text.
    let claim = |last: u8| [&crate::format::claim::line("lock", "jobs").start[..], &[last]].concat();
    let put = |last: u8| change(0, ChangeKind::Put, claim(last).into());
    let commit = crate::sim::check::Commit::of_changes(&[put(0xf0), put(0xf1)], shown).unwrap();
    assert!(commit.changes.iter().all(|change| Span::claims("jobs").contains(&change.key)), "{commit}");
    assert!(commit.changes.iter().all(|change| !Span::claims("job").contains(&change.key)), "{commit}");
    assert_ne!(commit.changes[0].key, commit.changes[1].key);
}
