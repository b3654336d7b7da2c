use std::sync::mpsc;

use super::*;

const HOWS: [Drive; 2] = [Drive::Thread, Drive::Inline];

/// An engine that tells what each step was given, and does what the script says, then idles.
struct Scripted {
    script: VecDeque<Scripting>,
    steps: mpsc::Sender<String>,
}

impl Engine for Scripted {
    type Op = u32;

    fn step(&mut self, queue: &mut VecDeque<u32>) -> Step {
        self.steps.send(format!("{queue:?}")).expect("the test listens to the end");
        let step = self.script.pop_front().map(|mut next| next(queue));
        step.unwrap_or_else(|| {
            queue.clear();
            Step::Idle
        })
    }

    fn panicked(&mut self, message: &str) {
        self.steps.send(format!("panicked: {message}")).expect("the test listens to the end");
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        let _ = self.steps.send("dropped".to_owned());
    }
}

type Scripting = Box<dyn FnMut(&mut VecDeque<u32>) -> Step + Send>;
type Script = Vec<Scripting>;

/// Starts an engine on a mailbox that holds 1 and 2.
fn start(how: Drive, script: Script) -> (Mailbox<u32>, Driver, mpsc::Receiver<String>) {
    let (steps, seen) = mpsc::channel();
    let mailbox = Mailbox::new();
    mailbox.push(1).unwrap();
    mailbox.push(2).unwrap();
    let engine = Scripted { script: script.into(), steps };
    let driver = drive_from(&mailbox, "scripted", how, engine).unwrap();
    (mailbox, driver, seen)
}

fn clear(step: fn() -> Step) -> Scripting {
    Box::new(move |queue| {
        queue.clear();
        step()
    })
}

#[tokio::test]
async fn operations_arrive_in_order_and_what_a_step_leaves_is_offered_again() {
    for how in HOWS {
        let take_one: Script = vec![Box::new(|queue| {
            queue.pop_front();
            Step::Again
        })];
        let (mailbox, driver, seen) = start(how, take_one);
        drop(mailbox);
        driver.join().await;
        assert_eq!(seen.iter().collect::<Vec<_>>(), ["[1, 2]", "[2]", "dropped"]);
    }
}

#[tokio::test]
async fn an_engine_that_idles_over_a_full_queue_is_called_again() {
    for how in HOWS {
        let (mailbox, driver, seen) = start(how, vec![Box::new(|_| Step::Idle)]);
        drop(mailbox);
        driver.join().await;
        assert_eq!(seen.iter().collect::<Vec<_>>(), ["[1, 2]", "[1, 2]", "dropped"]);
    }
}

#[tokio::test]
async fn a_stopped_engine_takes_nothing_more_and_what_is_queued_is_dropped() {
    for how in HOWS {
        let (mailbox, driver, seen) = start(how, vec![Box::new(|_| Step::Stop)]);
        driver.join().await;
        assert_eq!(mailbox.push(3), Err(3));
        assert_eq!(seen.iter().collect::<Vec<_>>(), ["[1, 2]", "dropped"]);
    }
}

#[tokio::test]
async fn a_panic_is_told_to_the_engine_and_closes_the_mailbox() {
    for how in HOWS {
        let (mailbox, driver, seen) = start(how, vec![Box::new(|queue| panic!("at {}", queue[0]))]);
        driver.join().await;
        assert_eq!(mailbox.push(3), Err(3));
        assert_eq!(seen.iter().collect::<Vec<_>>(), ["[1, 2]", "panicked: at 1", "dropped"]);
    }
}

#[tokio::test]
async fn an_operation_that_is_never_taken_is_dropped_before_the_end_is_told() {
    struct Deaf;
    impl Engine for Deaf {
        type Op = tokio::sync::oneshot::Sender<()>;

        fn step(&mut self, _: &mut VecDeque<Self::Op>) -> Step {
            Step::Stop
        }

        fn panicked(&mut self, _: &str) {}
    }
    for how in HOWS {
        let (mailbox, driver) = drive("deaf", how, Deaf).unwrap();
        let (queued, answer) = tokio::sync::oneshot::channel();
        mailbox.push(queued).unwrap();
        driver.join().await;
        assert!(answer.await.is_err());
    }
}

#[tokio::test]
async fn a_knock_arrives_as_any_operation_but_does_not_keep_the_driver_going() {
    for how in HOWS {
        let (mailbox, driver, seen) = start(how, Vec::new());
        let knocker = mailbox.knocker();
        knocker.push(3).unwrap();
        drop(mailbox);
        driver.join().await;
        assert_eq!(knocker.push(4), Err(4));
        let steps = seen.iter().collect::<Vec<_>>().concat();
        assert!(["[1, 2, 3]dropped", "[1, 2][3]dropped"].contains(&&steps[..]), "{steps}");
    }
}

#[tokio::test]
async fn an_engine_that_waits_for_a_watermark_is_not_called_before_it_is_reached_or_closed() {
    for (how, close) in HOWS.into_iter().flat_map(|how| [(how.clone(), false), (how, true)]) {
        let mark = Watermark::new();
        let wait_for = mark.clone();
        let script: Script = vec![Box::new(move |queue| {
            queue.clear();
            Step::After(wait_for.clone(), 5)
        })];
        let (mailbox, driver, seen) = start(how, script);
        mailbox.push(3).unwrap();
        let first = loop {
            if let Ok(first) = seen.try_recv() {
                break first;
            }
            tokio::task::yield_now().await;
        };
        mark.advance(4);
        tokio::task::yield_now().await;
        assert_eq!(seen.try_recv().ok(), None);
        mailbox.push(4).unwrap();
        if close {
            mark.close()
        } else {
            mark.advance(5)
        }
        drop(mailbox);
        driver.join().await;
        let steps = [first].into_iter().chain(seen.iter()).collect::<Vec<_>>().concat();
        assert!(["[1, 2][3, 4]dropped", "[1, 2, 3][4]dropped"].contains(&&steps[..]), "{steps}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_within_runs_from_the_first_of_a_row_and_ends_in_an_empty_step() {
    const TIME: Duration = Duration::from_millis(100);
    let script: Script = (0..3).map(|_| clear(|| Step::Within(TIME))).collect();
    let (mailbox, driver, seen) = start(Drive::Inline, script);
    let start = Instant::now();
    tokio::time::sleep(TIME * 6 / 10).await;
    mailbox.push(3).unwrap();
    tokio::time::sleep(TIME * 6 / 10).await;
    assert_eq!(seen.try_iter().collect::<Vec<_>>(), ["[1, 2]", "[3]", "[]"], "at {:?}", start.elapsed());
    // The third answer was another `Within`: abandoned, it is given its empty step at once.
    drop(mailbox);
    driver.join().await;
    assert_eq!(seen.iter().collect::<Vec<_>>(), ["[]", "dropped"]);
    assert_eq!(start.elapsed(), TIME * 12 / 10);
}

#[test]
fn a_thread_gives_a_within_its_empty_step_too() {
    let script: Script = vec![clear(|| Step::Within(Duration::from_millis(1)))];
    let (mailbox, driver, seen) = start(Drive::Thread, script);
    assert_eq!([seen.recv().unwrap(), seen.recv().unwrap()], ["[1, 2]", "[]"]);
    drop(mailbox);
    driver.join_blocking();
}

/// Tells on which thread it is given what, and does not rest after an even number.
struct Where(mpsc::Sender<(thread::ThreadId, Option<u32>)>);

impl Engine for Where {
    type Op = u32;

    fn step(&mut self, queue: &mut VecDeque<u32>) -> Step {
        let op = queue.pop_front();
        self.0.send((thread::current().id(), op)).expect("the test listens to the end");
        if op.is_some_and(|op| op % 2 == 0) || !queue.is_empty() { Step::Again } else { Step::Idle }
    }

    fn panicked(&mut self, message: &str) {
        unreachable!("{message}");
    }
}

#[test]
fn while_the_thread_sleeps_a_step_is_made_where_the_operation_comes_from_and_the_next_is_not() {
    let (steps, seen) = mpsc::channel();
    let (mailbox, driver) = drive("where", Drive::Thread, Where(steps)).unwrap();
    let here = thread::current().id();
    // The thread may be on its way to sleep, and is then the one to do it.
    let helped = (1..).step_by(2).take(100_000).find(|op| {
        mailbox.push_and_step(*op).unwrap();
        let (at, given) = seen.recv().unwrap();
        assert_eq!(given, Some(*op));
        at == here
    });
    assert!(helped.is_some(), "the thread never sleeps");
    mailbox.push_and_step(2).unwrap();
    assert_eq!(seen.recv().unwrap().1, Some(2));
    let (at, given) = seen.recv().unwrap();
    assert!(at != here && given.is_none(), "what follows a step is not the caller's");
    drop(mailbox);
    driver.join_blocking();
}

#[test]
fn operations_of_many_threads_are_all_taken_and_those_of_each_in_order_whoever_makes_the_steps() {
    const EACH: u32 = 5_000;
    let (steps, seen) = mpsc::channel();
    let (mailbox, driver) = drive("where", Drive::Thread, Where(steps)).unwrap();
    let pushers: Vec<_> = (0..4)
        .map(|pusher| {
            let mailbox = mailbox.clone();
            thread::spawn(move || {
                for op in (0..EACH).map(|n| pusher * EACH + n) {
                    let pushed = if op % 3 == 0 { mailbox.push(op) } else { mailbox.push_and_step(op) };
                    pushed.unwrap();
                    // Now and then all is taken, and the thread may sleep.
                    while op % 10 == 0 && !mailbox.inbox.lock().queue.is_empty() {
                        thread::yield_now();
                    }
                }
                thread::current().id()
            })
        })
        .collect();
    drop(mailbox);
    let pushers: Vec<_> = pushers.into_iter().map(|pusher| pusher.join().unwrap()).collect();
    driver.join_blocking();
    let (mut next, mut by_pushers) = ([0, EACH, 2 * EACH, 3 * EACH], 0);
    for (at, op) in seen {
        let Some(op) = op else { continue };
        assert_eq!(std::mem::replace(&mut next[(op / EACH) as usize], op + 1), op);
        by_pushers += usize::from(pushers.contains(&at));
    }
    assert_eq!(next, [EACH, 2 * EACH, 3 * EACH, 4 * EACH]);
    assert!(by_pushers > 0, "the thread never slept");
}

#[tokio::test(start_paused = true)]
async fn a_delayed_engine_pays_its_delay_before_each_step() {
    let delay: Drive = Drive::Delayed(Arc::new(|| Box::pin(tokio::time::sleep(Duration::from_secs(3)))));
    let script: Script = vec![Box::new(|_| Step::Again), clear(|| Step::Idle)];
    let (mailbox, driver, seen) = start(delay, script);
    let start = Instant::now();
    drop(mailbox);
    driver.join().await;
    assert_eq!((seen.iter().count(), start.elapsed()), (3, Duration::from_secs(6)));
}

#[tokio::test]
async fn an_aborted_task_drops_its_engine_and_closes_its_mailbox() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (mailbox, driver, seen) = {
        let _inside = runtime.enter();
        start(Drive::Inline, vec![])
    };
    runtime.shutdown_background();
    driver.join().await;
    assert_eq!(mailbox.push(3), Err(3));
    assert_eq!(seen.iter().collect::<Vec<_>>(), ["dropped"]);
}
