//! Elections of three nodes on a paused clock. E1 to E4 are the properties of elections.

use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::*;
use crate::api::testing::{Dice, Trio, ms, until};
use crate::api::txn::put;
use crate::api::watch::BatchKind;
use crate::error::Obstacle;
use crate::recipes::testing::{SetOnDrop, TTL, claims, isolations, standing, traces, wipe};

fn election(cluster: &Cluster) -> Election<String> {
    cluster.election("e").ttl(TTL)
}

async fn lead(cluster: &Cluster, value: &str) -> Leadership<String> {
    election(cluster).campaign(&value.to_string()).await.expect("elected")
}

/// Campaigns in a task of its own.
fn campaigning(cluster: &Cluster, value: &str) -> rt::Task<Result<Leadership<String>, Error>> {
    rt::spawn("campaigning", election(cluster).campaign(&value.to_string()).into_future())
}

/// Everything an observer is told until `count` items are there: value and fence, or nothing.
async fn told(observer: &mut Observe<String>, count: usize) -> Vec<Option<(String, Fence)>> {
    let mut told = Vec::new();
    while told.len() < count {
        let next = rt::timeout(ms(60_000), observer.next()).await.expect("nothing comes");
        told.push(next.expect("the node runs").expect("readable").map(|leader| (leader.value, leader.fence)));
    }
    assert!(futures::poll!(Box::pin(observer.next())).is_pending(), "more than {told:?}");
    told
}

/// E1, E2, E3.
#[tokio::test(start_paused = true)]
async fn candidates_lead_in_the_order_in_which_they_came_and_every_observer_sees_that() {
    let trio = Trio::start().await;
    let mut observers = Vec::new();
    for node in &trio.nodes {
        observers.push(election(node).observe().await.expect("opens"));
    }
    let mut leader = lead(&trio.nodes[0], "0").await;
    let mut waiting = Vec::new();
    for (nth, place) in [1, 2, 0, 1].into_iter().enumerate() {
        waiting.push(campaigning(&trio.nodes[place], &(nth + 1).to_string()));
        until("one more", || claims(&trio.nodes[place]).len() == waiting.len() + 1).await;
    }
    let state = election(&trio.nodes[2]).inspect().await.expect("read");
    assert_eq!(state.leader.as_ref().map(|leader| (leader.value.as_str(), leader.member.as_str())), Some(("0", "a")));
    let members: Vec<_> = state.candidates.iter().map(|candidate| candidate.member.as_str()).collect();
    assert_eq!(members, ["b", "c", "a", "b"]);
    // Candidates are not leaders.
    for observer in &mut observers {
        assert_eq!(told(observer, 2).await, [None, Some(("0".to_string(), leader.fence()))]);
    }
    let mut expected = Vec::new();
    for (nth, next) in waiting.into_iter().enumerate() {
        assert!(!next.is_finished());
        let before = leader.fence();
        leader.resign().await.expect("resigned");
        leader = next.await.expect("no panic").expect("elected");
        assert!(leader.fence() > before);
        expected.push(Some(((nth + 1).to_string(), leader.fence())));
    }
    leader.resign().await.expect("resigned");
    expected.push(None);
    for observer in &mut observers {
        assert_eq!(told(observer, expected.len()).await, expected);
    }
    trio.stop().await;
}

/// Who leads as its candidates see it, and everything that was wrong with that.
#[derive(Default)]
struct Seen {
    leader: Option<(usize, Fence)>,
    newest: Option<Fence>,
    terms: [usize; 3],
    wrong: Vec<String>,
}

/// In office until it is dropped.
struct Reign(Arc<Mutex<Seen>>, Fence);

impl Reign {
    fn begin(seen: &Arc<Mutex<Seen>>, who: usize, fence: Fence) -> Self {
        let mut now = seen.lock().unwrap();
        if let Some(other) = now.leader {
            now.wrong.push(format!("{who} leads with {fence} while {other:?} does"));
        }
        if now.newest.is_some_and(|newest| newest >= fence) {
            let newest = now.newest;
            now.wrong.push(format!("{who} leads with {fence} after {newest:?}"));
        }
        (now.leader, now.newest) = (Some((who, fence)), Some(fence));
        now.terms[who] += 1;
        Reign(seen.clone(), fence)
    }
}

impl Drop for Reign {
    fn drop(&mut self) {
        self.0.lock().unwrap().leader.take_if(|leader| leader.1 == self.1);
    }
}

/// E1, E2: through isolations of leaders, no two do a leader's work at once, and no observer is told of an older leader after
/// a newer one.
#[tokio::test(start_paused = true)]
async fn the_work_of_two_leaders_never_overlaps_and_observers_see_rising_fences() {
    for seed in [1, 2, 3] {
        let trio = Trio::start().await;
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let mut tasks = Vec::new();
        let observed: Arc<Mutex<Vec<Vec<Option<Fence>>>>> = Arc::new(Mutex::new(vec![vec![]; 3]));
        for who in 0..3 {
            let (node, seen, mut dice) = (trio.nodes[who].clone(), seen.clone(), Dice(seed * 100 + who as u64));
            let running = async move {
                loop {
                    let term = dice.roll(1500);
                    let work = |lead: Arc<Leadership<String>>| {
                        let reign = Reign::begin(&seen, who, lead.fence());
                        async move {
                            let _reign = reign;
                            rt::sleep(ms(term)).await;
                        }
                    };
                    election(&node).run(&who.to_string(), work).await.expect("goes on for ever");
                }
            };
            tasks.push(rt::spawn("running", running).abort_on_drop());
            let mut observer = election(&trio.nodes[who]).observe().await.expect("opens");
            let observed = observed.clone();
            let observing = async move {
                while let Some(next) = observer.next().await {
                    let leader = next.expect("readable").map(|leader| leader.fence);
                    observed.lock().unwrap()[who].push(leader);
                }
            };
            tasks.push(rt::spawn("observing", observing).abort_on_drop());
        }
        isolations(&trio, Dice(seed), 6).await;
        rt::sleep(ms(8000)).await;
        drop(tasks);
        {
            let seen = seen.lock().unwrap();
            assert!(seen.wrong.is_empty(), "seed {seed}: {:?}", seen.wrong);
            assert!(seen.terms.iter().all(|terms| *terms > 1), "seed {seed}: somebody starved: {:?}", seen.terms);
        }
        for leaders in observed.lock().unwrap().iter() {
            let fences: Vec<Fence> = leaders.iter().flatten().copied().collect();
            assert!(fences.is_sorted_by(|a, b| a < b), "seed {seed}: {leaders:?}");
            assert!(fences.len() > 3, "seed {seed}: {leaders:?}");
        }
        trio.stop().await;
    }
}

/// The leader of the cluster is cut off together with the work that it does as the elected one.
#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_drops_its_work_before_the_successor_leads_and_campaigns_again() {
    let trio = Trio::start().await;
    let (cut, other, _) = trio.roles().await;
    let (dropped, terms) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let (flag, kept) = (dropped.clone(), terms.clone());
    let node = trio.nodes[cut].clone();
    let running = rt::spawn("running", async move {
        let work = |lead: Arc<Leadership<String>>| {
            let first = kept.lock().unwrap().is_empty();
            kept.lock().unwrap().push(lead.fence());
            let flag = SetOnDrop(flag.clone());
            async move {
                let _flag = flag;
                if first {
                    pending::<()>().await;
                }
                "done"
            }
        };
        election(&node).run(&"cut".to_string(), work).await
    });
    until("elected", || terms.lock().unwrap().len() == 1).await;
    let next = campaigning(&trio.nodes[other], "next");
    standing(&trio.nodes[cut], 2).await;
    trio.isolate(cut);
    until("dropped", || dropped.load(Ordering::Relaxed)).await;
    assert!(!next.is_finished(), "another led before the work was dropped");
    let next = next.await.expect("no panic").expect("elected");
    assert!(next.fence() > terms.lock().unwrap()[0]);
    trio.network.heal();
    until("back in the line", || claims(&trio.nodes[other]).len() == 2).await;
    assert_eq!(terms.lock().unwrap().len(), 1, "it led while another did");
    let fence = next.fence();
    next.resign().await.expect("resigned");
    assert_eq!(running.await.expect("no panic"), Ok("done"));
    assert!(terms.lock().unwrap()[1] > fence);
    standing(&trio.nodes[other], 0).await;
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_proclamation_changes_what_observers_see_and_keeps_fence_and_lease() {
    let trio = Trio::start().await;
    let (_, follower, other) = trio.roles().await;
    let leader = lead(&trio.nodes[follower], "old").await;
    let mut observer = election(&trio.nodes[other]).observe().await.expect("opens");
    let first = told(&mut observer, 1).await;
    let revision = leader.proclaim(&"new".to_string()).await.expect("it leads");
    let second = told(&mut observer, 1).await;
    assert_eq!(
        (first, second),
        (vec![Some(("old".into(), leader.fence()))], vec![Some(("new".into(), leader.fence()))])
    );
    let state = election(&trio.nodes[other]).inspect().await.expect("read");
    assert_eq!(state.leader.map(|leader| (leader.value, leader.proclaimed)), Some(("new".into(), revision)));
    rt::sleep(TTL * 3).await;
    assert!(leader.valid_for() > Duration::ZERO, "its lease was lost with the old value");
    let before = traces(&trio.nodes[follower]);
    leader.resign().await.expect("resigned");
    standing(&trio.nodes[follower], 0).await;
    assert_eq!(traces(&trio.nodes[follower]), (before.0 - 1, before.1 - 1), "its lease stayed");
    trio.stop().await;
}

/// E4: whatever it believes, the token decides.
#[tokio::test(start_paused = true)]
async fn what_a_superseded_leader_proclaims_and_writes_is_refused() {
    let trio = Trio::start().await;
    let (cut, other, _) = trio.roles().await;
    let old = lead(&trio.nodes[cut], "old").await;
    trio.isolate(cut);
    let new = lead(&trio.nodes[other], "new").await;
    assert_eq!((old.valid_for(), old.lost().await), (Duration::ZERO, LostReason::Unsure));
    trio.network.heal();
    trio.leader().await;
    let proclaimed = old.proclaim(&"late".to_string()).await;
    assert!(matches!(&proclaimed, Err(Error::Fenced { held, .. }) if *held == old.fence().get()), "{proclaimed:?}");
    let written = old.txn().then(put("plan", &1)).await;
    assert!(matches!(&written, Err(Error::Fenced { .. })), "{written:?}");
    new.txn().then(put("plan", &2)).await.expect("it leads");
    let state = election(&trio.nodes[cut]).inspect().await.expect("read");
    assert_eq!((state.leader.map(|leader| leader.value), state.candidates), (Some("new".into()), vec![]));
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_candidate_whose_claim_is_gone_does_not_lead_when_the_one_before_it_goes() {
    let trio = Trio::start().await;
    let (_, follower, other) = trio.roles().await;
    let leader = lead(&trio.nodes[follower], "a").await;
    let next = campaigning(&trio.nodes[other], "b");
    standing(&trio.nodes[other], 2).await;
    let mut observer = election(&trio.nodes[other]).observe().await.expect("opens");
    wipe(&trio.nodes[follower]).await;
    let superseded = next.await.expect("no panic");
    assert!(matches!(superseded, Err(Error::Fenced { .. })), "{superseded:?}");
    assert_eq!(told(&mut observer, 2).await, [Some(("a".into(), leader.fence())), None]);
    assert_eq!(rt::timeout(ms(200), leader.lost()).await, Ok(LostReason::Deleted));
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_office_is_vacant_once_the_lease_of_a_dead_leader_has_expired() {
    let trio = Trio::start().await;
    let (leads, dead, other) = trio.roles().await;
    let leader = lead(&trio.nodes[dead], "dead").await;
    let fence = leader.fence();
    let mut observer = election(&trio.nodes[other]).observe().await.expect("opens");
    assert_eq!(told(&mut observer, 1).await, [Some(("dead".into(), fence))]);
    trio.isolate(dead);
    let (cut, mut vacant) = (rt::Instant::now(), Box::pin(observer.next()));
    rt::sleep(leader.valid_for()).await;
    assert!(futures::poll!(&mut vacant).is_pending(), "vacant before the leader had to know");
    assert_eq!(vacant.await, Some(Ok(None)));
    assert!(cut.elapsed() < TTL + ms(200), "told after {:?}", cut.elapsed());
    let next = election(&trio.nodes[leads]).campaign(&"next".to_string()).try_now().await.expect("answered");
    assert!(next.expect("vacant").fence() > fence);
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn giving_up_a_campaign_or_a_run_at_any_moment_leaves_nothing_behind() {
    let trio = Trio::start().await;
    let (leader, follower, _) = trio.roles().await;
    for place in [leader, follower] {
        lead(&trio.nodes[place], "").await.resign().await.expect("resigned");
    }
    let cluster = &trio.nodes[follower];
    rt::sleep(ms(500)).await;
    let before = traces(cluster);
    trio.network.delay(ms(5));
    for contended in [false, true] {
        for after in 0..30 {
            let holder = if contended { Some(lead(&trio.nodes[leader], "first").await) } else { None };
            drop(rt::timeout(ms(after), election(cluster).campaign(&String::new()).into_future()).await);
            let work = |_| pending::<()>();
            let run = rt::timeout(ms(after), election(cluster).run(&String::new(), work)).await;
            assert!(run.is_err(), "{run:?}");
            drop(holder);
            rt::sleep(ms(300)).await;
            assert_eq!(traces(cluster), before, "contended: {contended}, given up after {after} ms");
        }
    }
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_ends_with_what_another_campaign_would_not_mend() {
    let trio = Trio::start().await;
    let node = &trio.nodes[0];
    let never = |_| pending::<()>();
    let session = node.session().ttl(TTL).await.expect("opens");
    let by_session = node.election::<String>("e").session(&session).run(&String::new(), never);
    let running = rt::spawn("running", by_session);
    standing(node, 1).await;
    let lease = session.lease();
    session.close().await.expect("closed");
    assert_eq!(running.await.expect("no panic"), Err(Error::LeaseNotFound { lease }));
    // What the work has kept of its leadership does not keep the office.
    let kept = election(node).run(&String::new(), |lead| async move { lead }).await.expect("done");
    assert_eq!((kept.valid_for(), kept.lost().await), (Duration::ZERO, LostReason::Released));
    let lent = Arc::new(Mutex::new(None));
    let lend = |lead: Arc<Leadership<String>>| {
        *lent.lock().unwrap() = Some(lead);
        pending::<()>()
    };
    assert!(rt::timeout(ms(500), election(node).run(&String::new(), lend)).await.is_err(), "the work never ends");
    let kept = lent.lock().unwrap().take().expect("it led");
    assert_eq!((kept.valid_for(), kept.lost().await), (Duration::ZERO, LostReason::Released));
    let holder = lead(&trio.nodes[1], "holder").await;
    let timed = election(node).timeout(ms(300)).run(&String::new(), never).await;
    assert!(matches!(timed, Err(Error::NotApplied { why: Obstacle::Held, .. })), "{timed:?}");
    let nameless = node.election::<String>("").run(&String::new(), never).await;
    assert!(matches!(nameless, Err(Error::Invalid { what: "election name", .. })), "{nameless:?}");
    let running = rt::spawn("running", election(node).run(&String::new(), never));
    standing(node, 2).await;
    node.shutdown().await.expect("stops");
    let stopped = rt::timeout(TTL, running).await.expect("goes on").expect("no panic");
    assert!(matches!(stopped, Err(Error::Stopped { .. })), "{stopped:?}");
    drop(holder);
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_office_that_is_held_is_not_taken_now_and_a_value_out_of_range_is_refused() {
    let trio = Trio::start().await;
    let node = &trio.nodes[0];
    let holder = lead(node, "x").await;
    let tried = election(&trio.nodes[1]).campaign(&String::new()).try_now().await.expect("answered");
    assert!(tried.is_none() && claims(node).len() == 1, "{tried:?}");
    let large = "x".repeat(ELECTION_VALUE_BYTES_MAX);
    for refused in [election(node).campaign(&large).await.map(|_| ()), holder.proclaim(&large).await.map(|_| ())] {
        assert!(matches!(&refused, Err(Error::Invalid { what: "value", .. })), "{refused:?}");
    }
    trio.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_value_cannot_be_read_is_an_error_and_its_successor_is_told() {
    let trio = Trio::start().await;
    let node = &trio.nodes[0];
    let odd = node.election::<Vec<u8>>("e").ttl(TTL).campaign(&vec![0xff, 0xfe]).await.expect("elected");
    let mut observer = election(node).observe().await.expect("opens");
    let unreadable = observer.next().await.expect("the node runs");
    assert!(matches!(unreadable, Err(Error::Codec { .. })), "{unreadable:?}");
    odd.resign().await.expect("resigned");
    assert_eq!(told(&mut observer, 1).await, [None]);
    let next = lead(node, "next").await;
    assert_eq!(told(&mut observer, 1).await, [Some(("next".into(), next.fence()))]);
    node.shutdown().await.expect("stops");
    assert!(matches!(observer.next().await, Some(Err(Error::Stopped { .. }))));
    assert_eq!(observer.next().await, None);
    trio.stop().await;
}

/// What is not listed in a resync is gone, and what is told is only what is new.
#[tokio::test(start_paused = true)]
async fn an_observer_that_fell_behind_takes_the_line_as_it_is_now() {
    let trio = Trio::start().await;
    let mut observer = election(&trio.nodes[0]).observe().await.expect("opens");
    let mut batch = |kind, created: u64, leaders: &[u64]| {
        let put = |fence: &u64| {
            let payload = codec::encode("", &fence.to_string()).expect("short");
            let note = ClaimNote { member: String::new(), session: String::new(), payload };
            let entry = KeyValue {
                key: Bytes::copy_from_slice(&fence.to_be_bytes()),
                value: encode_claim(&note),
                created: Revision::new(*fence),
                modified: Revision::new(*fence),
                version: 1,
                lease: Some(crate::types::LeaseId::new(1)),
                ttl_ms: None,
            };
            crate::api::watch::feed::StoredEvent::Put { entry, prev: None }
        };
        let revision = Revision::new(created);
        let events = leaders.iter().map(put).collect();
        let batch = crate::api::watch::feed::Stored { after: Revision::ZERO, revision, kind, events };
        observer.tell(batch).map(|told| told.expect("readable").map(|leader| leader.fence.get()))
    };
    assert_eq!(batch(BatchKind::Initial, 5, &[]), Some(None));
    assert_eq!(batch(BatchKind::Live, 6, &[6]), Some(Some(6)));
    assert_eq!(batch(BatchKind::Live, 7, &[7]), None);
    assert_eq!(batch(BatchKind::Resync, 20, &[6, 7, 8]), None);
    assert_eq!(batch(BatchKind::Resync, 30, &[8, 9]), Some(Some(8)));
    assert_eq!(batch(BatchKind::Resync, 40, &[]), Some(None));
    trio.stop().await;
}
