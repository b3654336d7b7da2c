//! Histories on paper: recorder, JSON lines, how violations are shown.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::world::{SMALL, call, ended, right_history, seen};
use crate::sim::check::{Answer, Call, History, Op, Outcome, Recorder};
use crate::types::{ClientId, Revision, Ticket};

fn recorder() -> Recorder {
    let ticks = AtomicU64::new(0);
    Recorder::new(move || ticks.fetch_add(1, Ordering::Relaxed))
}

/// A file that outlives whoever writes it.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl io::Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_history_is_the_same_after_it_was_written_and_read() {
    for seed in 0..20 {
        let (history, _) = right_history(seed, SMALL);
        let mut file = Vec::new();
        history.write_jsonl(&mut file).unwrap();
        assert_eq!(History::read_jsonl(&file[..]).unwrap(), history);
    }
}

#[test]
fn a_line_of_a_history_is_this() {
    let mut file = Vec::new();
    let write = call(3, (1, 2), Op::set("a", "1"), Answer::Written, 7);
    let read = ended(call(4, (3, 4), Op::get("a"), Answer::Got(None), None), Outcome::Unknown);
    let read = Call { returned_ns: None, ticket: Some(Ticket { client: ClientId::new(5), seq: 6 }), ..read };
    History::new([write, read]).write_jsonl(&mut file).unwrap();
    let lines = concat!(
        r#"{"client":1,"id":3,"op":{"set":{"key":"a","value":"1"}},"invoked_ns":1000000,"returned_ns":2000000,"#,
        r#""outcome":"ok","response":"written","revision":7}"#,
        "\n",
        r#"{"client":1,"id":4,"op":{"get":{"key":"a"}},"invoked_ns":3000000,"returned_ns":null,"#,
        r#""outcome":"unknown","ticket":{"client":5,"seq":6}}"#,
        "\n",
    );
    assert_eq!(String::from_utf8(file).unwrap(), lines);
}

#[test]
fn a_call_that_does_not_end_is_unknown_whatever_became_of_its_process() {
    let file = Shared::default();
    let recorder = recorder().write_to(file.clone());
    recorder.invoke(1, Op::set("a", "1")).ok(Answer::Written, Some(Revision::new(1)));
    drop(recorder.invoke(1, Op::set("a", "2")));
    let killed = recorder.invoke(2, Op::get("a"));
    recorder.invoke(3, Op::get("a")).fail();
    let ticket = Ticket { client: ClientId::new(1), seq: 2 };
    recorder.invoke(4, Op::delete("a")).unknown(Some(ticket));

    let mut bytes = file.0.lock().unwrap().clone();
    bytes.extend_from_slice(br#"{"client":4,"id":9,"op":{"ge"#);
    let history = History::read_jsonl(&bytes[..]).unwrap();
    assert_eq!(history, recorder.history());
    let outcomes: Vec<Outcome> = history.calls().iter().map(|call| call.outcome).collect();
    assert_eq!(outcomes, [Outcome::Ok, Outcome::Unknown, Outcome::Unknown, Outcome::Fail, Outcome::Unknown]);
    let ends: Vec<bool> = history.calls().iter().map(|call| call.returned_ns.is_some()).collect();
    assert_eq!(ends, [true, false, false, true, true]);
    assert_eq!(history.calls()[4].ticket, Some(ticket));
    assert!(history.calls().iter().all(|call| call.over_ns().is_none_or(|over| over > call.invoked_ns)));
    drop(killed);
}

#[test]
fn a_damaged_line_in_the_middle_is_named() {
    let bytes = b"{\"client\":1}\n";
    let error = History::<Op, Answer>::read_jsonl(&bytes[..]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(error.to_string().starts_with("line 1: missing field"), "{error}");
}

#[test]
fn a_file_that_cannot_be_written_is_reported_and_recording_goes_on() {
    struct Full;
    impl io::Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let recorder = recorder().write_to(Full);
    recorder.invoke(1, Op::get("a")).ok(Answer::Got(None), None);
    assert_eq!(recorder.write_error().map(|error| error.kind()), Some(io::ErrorKind::StorageFull));
    assert_eq!(recorder.history().calls()[0].outcome, Outcome::Ok);
}

#[test]
fn calls_are_shown_in_one_line_with_their_times() {
    let read = call(3, (1, 2), Op::get("a"), Answer::Got(Some(seen("1", 4))), 5);
    let shown = read.to_string();
    assert!(shown.starts_with(r#"c1#3 [1.000000ms..2.000000ms] Get { key: "a""#), "{shown}");
    assert!(shown.ends_with("@5") && !shown.contains('\n'), "{shown}");
}
