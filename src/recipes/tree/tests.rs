//! Trees of three nodes on a paused clock.

use std::collections::{BTreeMap, BTreeSet};
use std::future::IntoFuture;

use super::*;
use crate::api::cluster::Outcome;
use crate::api::testing::{Dice, Trio, eventually, ms, single};
use crate::api::watch::{BatchKind, Cause, Event};
use crate::recipes::testing::{TTL, isolations};
use crate::rt;
use crate::types::Revision;

fn refusal<T: fmt::Debug>(answer: Result<T, TreeError>) -> (u16, String) {
    let error = answer.expect_err("refused");
    let code = error.code().unwrap_or(0);
    let path = match error {
        TreeError::KeyNotFound { path, .. }
        | TreeError::CompareFailed { path, .. }
        | TreeError::NotAFile { path, .. }
        | TreeError::NotADirectory { path, .. }
        | TreeError::AlreadyExists { path, .. }
        | TreeError::RootReadOnly { path, .. }
        | TreeError::DirectoryNotEmpty { path, .. }
        | TreeError::TtlInside { path, .. }
        | TreeError::Path { path, .. } => path,
        TreeError::Store(error) => panic!("{error}"),
    };
    (code, path)
}

async fn paths(list: TreeList) -> Vec<String> {
    list.await.expect("listed").into_iter().map(|(path, _)| path).collect()
}

async fn all(tree: &Tree) -> Vec<String> {
    paths(tree.ls("/").recursive()).await
}

#[tokio::test(start_paused = true)]
async fn a_file_is_made_changed_and_removed_and_each_answer_says_what_was_there() {
    let trio = Trio::start().await;
    let trees: Vec<Tree> = trio.nodes.iter().map(Cluster::tree).collect();
    let made = trees[0].mk("/a/b/f", &1u32).await.expect("made");
    assert_eq!((made.path.as_str(), made.created, made.prev), ("/a/b/f", made.revision, None));
    let set = trees[1].set("/a/b/f", &2u32).await.expect("set");
    assert_eq!((set.created, set.revision), (made.created, made.revision.next()));
    let prev = set.prev.expect("it was there");
    assert_eq!((prev.value.value(), prev.modified, prev.version), (Ok(1u32), made.revision, 1));
    let updated = trees[2].update("/a/b/f", &3u32).if_rev(set.revision).await.expect("updated");
    assert_eq!(updated.prev.expect("it was there").value.value(), Ok(2u32));
    let read = trees[0].get::<u32>("/a/b/f").await.expect("read");
    assert_eq!((*read, read.created, read.modified, read.version), (3, made.revision, updated.revision, 3));
    let removed = trees[0].rm("/a/b/f").await.expect("removed");
    assert_eq!((removed.count, removed.prev.value.value()), (1, Ok(3u32)));
    assert_eq!(all(&trees[1]).await, ["/a", "/a/b"], "the directories stay");
    let set = trees[1].set("/a/b/f", &4u32).await.expect("set");
    assert_eq!((set.created, set.prev), (set.revision, None));
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn each_verb_refuses_what_it_is_not_for_with_the_number_and_the_path() {
    let cluster = single(|_| {}).await;
    let tree = cluster.tree();
    tree.mk("/d/f", &1u32).await.expect("made");
    let before = cluster.status().revision;
    for (number, what, (code, path)) in [
        (105, "/d/f", refusal(tree.mk("/d/f", &2u32).await)),
        (105, "/d", refusal(tree.mk("/d", &2u32).await)),
        (105, "/d", refusal(tree.mkdir("/d").await)),
        (105, "/d/f", refusal(tree.mkdir("/d/f").await)),
        (102, "/d", refusal(tree.set("/d", &2u32).await)),
        (102, "/d", refusal(tree.update("/d", &2u32).await)),
        (102, "/d", refusal(tree.get::<u32>("/d").await)),
        (102, "/", refusal(tree.get::<u32>("/").await)),
        (102, "/d", refusal(tree.rm("/d").await)),
        (104, "/d/f", refusal(tree.set("/d/f/x/y", &2u32).await)),
        (104, "/d/f", refusal(tree.update("/d/f/x/y", &2u32).await)),
        (104, "/d/f", refusal(tree.mkdir("/d/f/x").await)),
        (104, "/d/f", refusal(tree.mk_in_order("/d/f", &2u32).await)),
        (104, "/d/f", refusal(tree.get::<u32>("/d/f/x").await)),
        (104, "/d/f", refusal(tree.rm("/d/f/x").await)),
        (104, "/d/f", refusal(tree.rmdir("/d/f").await)),
        (104, "/d/f", refusal(tree.rmdir("/d/f").recursive().await)),
        (104, "/d/f", refusal(tree.ls("/d/f").await)),
        (100, "/x", refusal(tree.update("/x/y/z", &2u32).await)),
        (100, "/d/x", refusal(tree.update("/d/x/y", &2u32).await)),
        (100, "/x", refusal(tree.get::<u32>("/x/y").await)),
        (100, "/x", refusal(tree.stat("/x").await)),
        (100, "/x", refusal(tree.ls("/x").await)),
        (100, "/d/x", refusal(tree.rm("/d/x").await)),
        (100, "/x", refusal(tree.rmdir("/x").recursive().await)),
        (100, "/x", refusal(tree.set("/x", &2u32).if_rev(before).await)),
        (100, "/x", refusal(tree.refresh("/x").await)),
        (101, "/d/f", refusal(tree.set("/d/f", &2u32).if_rev(before.next()).await)),
        (101, "/d/f", refusal(tree.rm("/d/f").if_rev(before.next()).await)),
        (108, "/d", refusal(tree.rmdir("/d").await)),
        (107, "/", refusal(tree.mkdir("/").await)),
        (107, "/", refusal(tree.set("/", &1u32).await)),
        (107, "/", refusal(tree.rmdir("/").recursive().await)),
        (0, "/d/", refusal(tree.set("/d/", &1u32).await)),
        (0, "d", refusal(tree.ls("d").await)),
        (0, "/a/../b", refusal(tree.watch("/a/../b"))),
    ] {
        assert_eq!((code, path.as_str()), (number, what));
    }
    assert_eq!(cluster.status().revision, before, "a refusal changed something");
    let refused = tree.mk("/d/f", &2u32).await;
    assert_eq!(refused, Err(TreeError::AlreadyExists { path: "/d/f".into(), revision: before }));
    let root = tree.stat("/").await.expect("it is there");
    assert!(root.is_dir() && root.value::<u32>().is_err());
    let typed = tree.get::<String>("/d/f").await;
    assert!(matches!(&typed, Err(TreeError::Store(Error::Codec { key, .. })) if key == "/d/f"), "{typed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_directory_lists_what_is_in_it_or_everything_below_in_the_order_of_the_names() {
    let cluster = single(|_| {}).await;
    let tree = cluster.tree();
    assert!(tree.ls("/").await.expect("listed").is_empty());
    // More than a page below one child, and neighbours whose names sort close to the separator.
    for n in 0..300 {
        tree.set(format!("/d/b/{n:03}"), &n).await.expect("set");
    }
    for path in ["/d/b-", "/d/a/x", "/d/b\u{1}", "/d/c", "/e"] {
        tree.set(path, &0).await.expect("set");
    }
    tree.mkdir("/d/empty").await.expect("made");
    let children = ["/d/a", "/d/b", "/d/b\u{1}", "/d/b-", "/d/c", "/d/empty"];
    assert_eq!(paths(tree.ls("/d")).await, children);
    assert_eq!(paths(tree.ls("/")).await, ["/d", "/e"]);
    let kinds: Vec<bool> = tree.ls("/d").await.expect("listed").iter().map(|(_, entry)| entry.is_dir()).collect();
    assert_eq!(kinds, [true, true, false, false, false, true]);
    assert!(paths(tree.ls("/d/empty")).await.is_empty());
    let everything = all(&tree).await;
    assert_eq!(everything.len(), 309);
    assert_eq!(everything[..5], ["/d", "/d/a", "/d/a/x", "/d/b", "/d/b/000"]);
    // Page by page it is the same.
    for recursive in [false, true] {
        let list = |limit| {
            let list = tree.ls("/d").limit(limit);
            if recursive { list.recursive() } else { list }
        };
        let (whole, mut seen) = (paths(list(1000)).await, Vec::new());
        loop {
            let list = list(if recursive { 70 } else { 1 });
            let page = match seen.last() {
                Some(last) => list.after(String::clone(last)).await,
                None => list.await,
            };
            let page = page.expect("listed");
            let more = page.more;
            seen.extend(page.into_iter().map(|(path, _)| path));
            if !more {
                break;
            }
        }
        assert_eq!(seen, whole, "recursive: {recursive}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_expires_takes_everything_below_it_along_at_one_revision() {
    let trio = Trio::start().await;
    let (tree, other) = (trio.nodes[0].tree(), trio.nodes[1].tree());
    tree.set("/keep/f", &0u32).await.expect("set");
    let made = tree.mkdir("/w/7").ttl(TTL).await.expect("made");
    other.set("/w/7/f", &1u32).await.expect("set");
    other.set("/w/7/deep/er/f", &2u32).await.expect("set");
    other.mk_in_order("/w/7/jobs", &3u32).await.expect("made");
    other.update("/w/7/f", &4u32).await.expect("updated");
    let inside = other.stat("/w/7/deep/er").await.expect("it is there");
    assert_eq!((inside.ttl, inside.lease), (Some(TTL), tree.stat("/w/7").await.expect("it is there").lease));
    assert_eq!(other.stat("/w").await.expect("it is there").lease, None, "the parent is made without a time to live");
    for refused in [
        refusal(other.set("/w/7/g", &5u32).ttl(ms(100)).await),
        refusal(other.update("/w/7/f", &5u32).ttl(ms(100)).await),
        refusal(other.mkdir("/w/7/deep/x/g").ttl(TTL).await),
    ] {
        assert_eq!(refused.0, 0, "{refused:?}");
    }
    let mut watch = other.watch("/w").expect("a path").from(made.revision).await.expect("opened");
    let gone = loop {
        let batch = watch.next().await.expect("the node runs").expect("readable");
        if matches!(batch.events[0], Event::Delete { .. }) {
            break batch;
        }
    };
    let expired = |event: &Event<TreeValue, String>| matches!(event, Event::Delete { cause: Cause::Expired, .. });
    assert!(gone.events.iter().all(expired), "{gone:?}");
    let mut keys: Vec<&String> = gone.events.iter().map(Event::key).collect();
    keys.retain(|path| !path.starts_with("/w/7/jobs/"));
    assert_eq!(keys, ["/w/7", "/w/7/deep", "/w/7/deep/er", "/w/7/deep/er/f", "/w/7/f", "/w/7/jobs"]);
    assert_eq!(gone.events.len(), 7);
    assert_eq!(all(&tree).await, ["/keep", "/keep/f", "/w"]);
    // What comes to stand there later has nothing to do with it.
    tree.set("/w/7/f", &6u32).await.expect("set");
    assert_eq!(tree.stat("/w/7").await.expect("it is there").lease, None);
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_file_with_a_time_to_live_goes_alone_and_stays_once_it_is_written_without_one() {
    let cluster = single(|_| {}).await;
    let tree = cluster.tree();
    tree.set("/d/short", &1u32).ttl(ms(500)).await.expect("set");
    tree.set("/d/kept", &1u32).ttl(ms(500)).await.expect("set");
    assert!(tree.remaining("/d/short").await.expect("asked").expect("it ends") <= ms(500));
    tree.update("/d/kept", &2u32).await.expect("updated");
    assert_eq!(tree.remaining("/d/kept").await, Ok(None));
    eventually("the expiry", async || tree.get::<u32>("/d/short").await.is_err()).await;
    assert_eq!(all(&tree).await, ["/d", "/d/kept"]);
    assert!(cluster.node().state().view().leases().expect("readable").len() <= 1, "the lease of nothing is kept");
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_is_refreshed_lives_on_with_what_is_in_it() {
    let trio = Trio::start().await;
    let (leader, follower, _) = trio.roles().await;
    let tree = trio.nodes[follower].tree();
    tree.mkdir("/w").ttl(TTL).await.expect("made");
    tree.set("/w/f", &1u32).await.expect("set");
    for n in 0..10 {
        rt::sleep(TTL / 2).await;
        let path = ["/w", "/w/f"][n % 2];
        assert_eq!(tree.refresh(path).await, Ok(Some(TTL)));
    }
    assert_eq!(*tree.get::<u32>("/w/f").await.expect("still there"), 1);
    assert_eq!(trio.nodes[leader].tree().refresh("/").await, Ok(None));
    eventually("the expiry", async || tree.stat("/w").await.is_err()).await;
    assert!(all(&tree).await.is_empty());
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_put_anew_while_it_is_refreshed_is_not_said_to_be_gone() {
    let trio = Trio::start().await;
    let (leader, follower, _) = trio.roles().await;
    let (tree, other) = (trio.nodes[follower].tree(), trio.nodes[leader].tree());
    trio.network.delay(ms(5));
    other.set("/f", &0u32).ttl(TTL).await.expect("set");
    let over = std::cell::Cell::new(false);
    let puts = async {
        for n in 1..60u32 {
            other.set("/f", &n).ttl(TTL).await.expect("set");
        }
        over.set(true);
    };
    let refreshes = async {
        while !over.get() {
            assert_eq!(tree.refresh("/f").await, Ok(Some(TTL)));
        }
    };
    futures::join!(puts, refreshes);
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_put_below_a_sessions_directory_goes_with_the_session() {
    let trio = Trio::start().await;
    let (tree, other) = (trio.nodes[0].tree(), trio.nodes[1].tree());
    let session = trio.nodes[0].session().ttl(TTL).await.expect("opened");
    tree.mkdir("/hosts/a").session(&session).await.expect("made");
    other.set("/hosts/a/load", &1u32).await.expect("set");
    tree.set("/hosts/a/own", &1u32).session(&session).await.expect("the same lease is no other one");
    let second = trio.nodes[1].session().ttl(TTL).await.expect("opened");
    let refused = other.set("/hosts/a/other", &1u32).session(&second).await;
    let Err(TreeError::TtlInside { path, directory, .. }) = &refused else { panic!("{refused:?}") };
    assert_eq!((path.as_str(), directory.as_str()), ("/hosts/a/other", "/hosts/a"));
    session.close().await.expect("closed");
    assert_eq!(all(&other).await, ["/hosts"]);
    let ended = second.lease();
    second.close().await.expect("closed");
    let session = trio.nodes[0].session().ttl(TTL).await.expect("opened");
    let lease = session.lease();
    let put = tree.set("/hosts/b", &1u32).session(&session);
    session.close().await.expect("closed");
    assert_eq!(put.await, Err(TreeError::Store(Error::LeaseNotFound { lease })));
    assert_ne!(ended, lease);
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_directory_goes_only_when_it_is_empty_or_with_everything_below_it() {
    let cluster = single(|_| {}).await;
    let tree = cluster.tree();
    for path in ["/d/a/f", "/d/b/c/f", "/d-", "/da"] {
        tree.set(path, &1u32).await.expect("set");
    }
    assert_eq!(refusal(tree.rmdir("/d/b").await), (108, "/d/b".into()));
    tree.rm("/d/a/f").await.expect("removed");
    assert_eq!(tree.rmdir("/d/a").await.expect("it is empty").count, 1);
    let mut watch = tree.watch("/d").expect("a path").await.expect("opened");
    let removed = tree.rmdir("/d").recursive().await.expect("removed");
    assert_eq!((removed.count, removed.prev.is_dir()), (4, true));
    let batch = watch.next().await.expect("the node runs").expect("readable");
    assert_eq!((batch.revision, batch.events.len()), (removed.revision, 4));
    assert_eq!(all(&tree).await, ["/d-", "/da"]);
    tree.mkdir("/d").await.expect("made");
    assert_eq!(tree.rmdir("/d").recursive().await.expect("an empty one too").count, 1);
}

#[tokio::test(start_paused = true)]
async fn a_directory_is_not_removed_from_under_what_is_put_into_it_at_the_same_moment() {
    let trio = Trio::start().await;
    trio.network.delay(ms(2));
    let (here, there) = (trio.nodes[0].tree(), trio.nodes[1].tree());
    let mut removed = 0;
    for n in 0..40u32 {
        let made = here.mkdir("/d").await.expect("made").revision;
        there.stat("/d").at_least(made).await.expect("it is there");
        let removing = async {
            rt::sleep(ms(u64::from(n % 8))).await;
            here.rmdir("/d").await
        };
        let (gone, put) = futures::future::join(removing, there.set("/d/f", &n).into_future()).await;
        put.expect("set");
        match gone {
            Ok(_) => removed += 1,
            Err(error) => assert_eq!(error.code(), Some(108), "round {n}: {error}"),
        }
        assert_eq!(all(&here).await, ["/d", "/d/f"], "round {n}");
        here.rmdir("/d").recursive().await.expect("removed");
    }
    assert!((3..38).contains(&removed), "hardly ever at the same moment: {removed}");
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_behind_refuses_nothing_that_is_so_no_longer() {
    let trio = Trio::start().await;
    trio.network.delay(ms(5));
    let mut late = 0;
    for n in 0..20u32 {
        let (leader, follower, _) = trio.roles().await;
        let (ahead, behind) = (trio.nodes[leader].tree(), trio.nodes[follower].tree());
        let path = format!("/d{n}/f");
        let made = ahead.mk(&path, &n).await.expect("made");
        late += u32::from(trio.nodes[follower].status().revision < made.revision);
        behind.update(&path, &(n + 1)).await.expect("it was made before the call");
        ahead.rm(&path).await.expect("removed");
        behind.mk(&path, &n).await.expect("it was removed before the call");
        ahead.rm(&path).await.expect("removed");
        behind.rmdir(format!("/d{n}")).await.expect("it was emptied before the call");
    }
    assert!(late > 10, "the follower was hardly ever behind: {late}");
    assert!(all(&trio.nodes[0].tree()).await.is_empty());
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn in_order_names_grow_in_the_order_of_their_revisions_also_across_those_that_are_gone() {
    let trio = Trio::start().await;
    trio.network.delay(ms(1));
    let making = (0..15).map(|who| {
        let tree = trio.nodes[who % 3].tree();
        rt::spawn("making", async move {
            let mut made = Vec::new();
            for n in 0..6u32 {
                let file = tree.mk_in_order("/q", &n).timeout(ms(60_000)).await.expect("made");
                if n % 2 == 0 {
                    tree.rm(&file.path).await.expect("removed");
                }
                made.push((file.revision, file.path));
            }
            made
        })
    });
    let making: Vec<_> = making.collect();
    let mut made = Vec::new();
    for task in making {
        made.extend(task.await.expect("no panic"));
    }
    made.sort();
    assert_eq!(made.len(), 90);
    assert!(made.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1), "{made:?}");
    assert!(made.iter().all(|(_, path)| path.len() == "/q/".len() + 20), "{made:?}");
    assert_eq!(paths(trio.nodes[2].tree().ls("/q")).await.len(), 45);
    trio.stop().await;
}

/// What a watch has told, as far as it has got.
#[derive(Default)]
struct Told {
    nodes: BTreeMap<String, bool>,
    batches: usize,
}

impl Told {
    fn take(&mut self, batch: crate::Batch<TreeValue>) {
        self.batches += 1;
        assert_eq!(batch.kind, BatchKind::Live);
        for event in batch.events {
            match &event {
                Event::Put { key, entry, .. } => self.nodes.insert(key.clone(), entry.is_dir()),
                Event::Delete { key, .. } => self.nodes.remove(key),
            };
        }
        for path in self.nodes.keys() {
            let parent = &path[..path.rfind('/').expect("it begins with one")];
            let held = parent.is_empty() || self.nodes.get(parent) == Some(&true);
            assert!(held, "at revision {} {path} is in no directory: {:?}", batch.revision, self.nodes);
        }
    }
}

/// Directories come and go, by hand and by expiry, under those who put into them, on three nodes through isolations.
#[tokio::test(start_paused = true)]
async fn at_every_revision_each_node_is_in_a_directory_and_each_change_took_effect_once() {
    for seed in [1, 2] {
        let trio = Trio::start().await;
        trio.network.delay(ms(1));
        let everything = trio.nodes[0].tree().watch("/").expect("the root").from(Revision::new(1)).backpressure();
        let mut everything = everything.await.expect("opened");
        let changing: Vec<_> = (0..6u64)
            .map(|who| {
                let (cluster, mut dice) = (trio.nodes[who as usize % 3].clone(), Dice(seed * 10 + who));
                rt::spawn("changing", async move { change(&cluster, &mut dice).await })
            })
            .collect();
        isolations(&trio, Dice(seed), 3).await;
        let (mut revisions, mut refused, mut unknown) = (Vec::new(), BTreeMap::<u16, u32>::new(), Vec::new());
        for task in changing {
            for answer in task.await.expect("no panic") {
                match answer {
                    Ok(revision) => revisions.push(revision),
                    Err(TreeError::Store(Error::Indeterminate { ticket })) => unknown.push(ticket),
                    Err(TreeError::Store(Error::NotApplied { .. })) => {}
                    Err(TreeError::Store(error)) => panic!("{error}"),
                    Err(error) => *refused.entry(error.code().unwrap_or(0)).or_default() += 1,
                }
            }
        }
        for ticket in &unknown {
            if let Outcome::Applied(revision) = trio.nodes[1].resolve(ticket).await.expect("answered") {
                revisions.push(revision);
            }
        }
        let distinct: BTreeSet<Revision> = revisions.iter().copied().collect();
        assert_eq!(distinct.len(), revisions.len(), "seed {seed}: two changes were one");
        // Until nothing is left of those that expire, and all of it has been told.
        let trees = [trio.nodes[0].tree(), trio.nodes[1].tree()];
        eventually("the last expiry", async || {
            let all = trees[1].ls("/").recursive().await.expect("listed");
            all.iter().all(|(_, entry)| entry.lease.is_none())
        })
        .await;
        let last = trees[1].mkdir("/last").await.expect("made").revision;
        let mut told = Told::default();
        while everything.revision() < last {
            told.take(everything.next().await.expect("the node runs").expect("readable"));
        }
        assert_eq!(told.nodes.keys().cloned().collect::<Vec<_>>(), all(&trees[0]).await, "seed {seed}");
        // What nobody was answered for is what expired.
        assert!(told.batches > revisions.len() && revisions.len() > 50, "seed {seed}: {}", told.batches);
        assert!([100, 102, 104, 105, 108].iter().all(|code| refused.contains_key(code)), "seed {seed}: {refused:?}");
        trio.stop().await;
    }
}

/// What one of them does, and what it is told.
async fn change(cluster: &Cluster, dice: &mut Dice) -> Vec<Result<Revision, TreeError>> {
    let tree = cluster.tree();
    let mut answers = Vec::new();
    for n in 0..60u32 {
        let mut path = String::new();
        for _ in 0..=dice.roll(3) {
            path += ["/a", "/b", "/c"][dice.roll(3) as usize];
        }
        let timeout = ms(2000);
        let answer = match dice.roll(10) {
            0..3 => tree.set(&path, &n).timeout(timeout).await.map(|changed| changed.revision),
            3 => tree.mk(&path, &n).timeout(timeout).await.map(|changed| changed.revision),
            4 => tree.mkdir(&path).timeout(timeout).await.map(|changed| changed.revision),
            5 => tree.mkdir(&path).ttl(ms(50 + dice.roll(500))).timeout(timeout).await.map(|changed| changed.revision),
            6 => tree.mk_in_order(&path, &n).timeout(timeout).await.map(|changed| changed.revision),
            7 => tree.rm(&path).timeout(timeout).await.map(|removed| removed.revision),
            8 => tree.rmdir(&path).timeout(timeout).await.map(|removed| removed.revision),
            _ => tree.rmdir(&path).recursive().timeout(timeout).await.map(|removed| removed.revision),
        };
        answers.push(answer);
        rt::sleep(ms(dice.roll(30))).await;
    }
    answers
}
