//! Whole runs in files.

use std::fs::File;
use std::io::BufReader;

use super::world::{SMALL, call, put, rev, right_history, seen};
use crate::sim::check::{
    Answer, CommitLog, Evidence, Hold, LeaseEnd, LeaseRecord, LockEvidence, LockRecord, Op, Property, Renewal,
    RenewalAnswer, Span, WatchEvent, WatchRecord, WatchStart, WatchStep,
};
use crate::types::{Fence, LeaseId};

/// The file that [`an_old_run_is_judged_again`] reads.
const FILE_VARIABLE: &str = "QUORATE_EVIDENCE";

fn run() -> Evidence {
    let (history, log) = right_history(4, SMALL);
    Evidence { history, log, ..Evidence::default() }
}

#[test]
fn a_run_is_the_same_after_it_was_written_and_read() {
    let event = WatchEvent { change: put(1, "a", "1").changes.remove(0), prev: Some(seen("0", 1)) };
    let steps = vec![
        WatchStep::Live { revision: rev(1), events: vec![event] },
        WatchStep::Whole { revision: rev(2), resync: true, entries: vec![("a".into(), seen("1", 1))] },
        WatchStep::Place(rev(3)),
        WatchStep::Compacted { requested: rev(1), oldest: rev(2) },
        WatchStep::Stopped,
    ];
    let hold = Hold { client: 1, fence: Fence::new(rev(2)).unwrap(), granted_ns: 3, ended_ns: None, lost: false };
    let evidence = Evidence {
        log: CommitLog {
            base_revision: rev(7),
            base: [("x".to_owned(), seen("1", 3))].into(),
            until: rev(12),
            ..run().log
        },
        watches: vec![WatchRecord { steps, ..WatchRecord::new("w", Span::prefix("a"), WatchStart::From(rev(1))) }],
        leases: vec![LeaseRecord {
            lease: LeaseId::new(1),
            ttl_ms: 5,
            renewals: vec![Renewal { invoked_ns: 1, returned_ns: 2, answer: RenewalAnswer::Alive }],
            beliefs: vec![],
            end: Some(LeaseEnd { applied_ns: 9, expired: true }),
            observed_ns: 10,
        }],
        locks: vec![LockEvidence {
            record: LockRecord { name: "l".into(), holds: vec![hold], ..LockRecord::default() },
            claims: Some(Span::prefix("lock/")),
        }],
        strangers: vec![Span::all()],
        ..run()
    };
    let mut file = Vec::new();
    evidence.write_jsonl(&mut file).unwrap();
    assert_eq!(Evidence::read_jsonl(&file[..]).unwrap(), evidence);
}

#[test]
fn a_right_run_is_judged_right_and_says_how_much_was_looked_at() {
    let report = run().judge();
    assert_eq!(report.violations, []);
    assert!(report.black_box.explained + report.black_box.left_out.len() > 0);
    assert!(report.to_string().starts_with("0 violations; black box: "), "{report}");
}

#[test]
fn every_oracle_is_asked() {
    let mut run = Evidence { log: CommitLog::complete(vec![put(1, "a", "1")]), ..Evidence::default() };
    run.history = super::super::History::new([
        call(1, (0, 1), Op::set("a", "1"), Answer::Written, 1),
        call(2, (2, 3), Op::get("a"), Answer::Got(None), None),
    ]);
    let place = vec![WatchStep::Place(rev(1))];
    run.watches = vec![WatchRecord { steps: place, ..WatchRecord::new("w", "a", WatchStart::From(rev(1))) }];
    run.leases = vec![LeaseRecord {
        lease: LeaseId::new(1),
        ttl_ms: 5,
        renewals: vec![Renewal { invoked_ns: 1, returned_ns: 2, answer: RenewalAnswer::Gone }],
        beliefs: vec![],
        end: None,
        observed_ns: 10,
    }];
    let hold = |client, granted_ns, ended_ns| Hold {
        client,
        fence: Fence::new(rev(client)).unwrap(),
        granted_ns,
        ended_ns: Some(ended_ns),
        lost: false,
    };
    let record = LockRecord { name: "l".into(), holds: vec![hold(1, 0, 10), hold(2, 5, 20)], ..LockRecord::default() };
    run.locks = vec![
        LockEvidence { record: record.clone(), claims: None },
        LockEvidence { record, claims: Some(Span::prefix("lock/")) },
    ];
    let found: Vec<Property> = run.judge().violations.iter().map(|violation| violation.property).collect();
    use Property::{K1, K3, Kv1, Kv8, L1, W6};
    assert_eq!(found, [Kv8, Kv1, W6, L1, K1, K1, K3, K3]);
}

/// `QUORATE_EVIDENCE=run.jsonl cargo test --lib an_old_run_is_judged_again -- --ignored --nocapture`
#[test]
#[ignore = "needs a file: set QUORATE_EVIDENCE"]
fn an_old_run_is_judged_again() {
    let path = std::env::var_os(FILE_VARIABLE).expect("QUORATE_EVIDENCE names the file");
    let file = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let report = Evidence::read_jsonl(BufReader::new(file)).expect("lines of evidence").judge();
    println!("{report}");
    assert!(report.violations.is_empty(), "{} violations", report.violations.len());
}
