//! The black-box checker against brute force.

use std::collections::BTreeMap;

use super::world::Rng;
use crate::sim::check::{
    Call, History, Model, Outcome, Property, Register, RegisterAnswer, RegisterOp, Verdict, linearizable,
    linearizable_within,
};

type RegisterCall = Call<RegisterOp<u64>, RegisterAnswer<u64>>;
type RegisterHistory = History<RegisterOp<u64>, RegisterAnswer<u64>>;

const REGISTER: Register<u64> = Register { initial: None };

/// Tries every order of every choice of the unknown calls.
fn brute_force(calls: &[RegisterCall]) -> bool {
    fn goes_on(calls: &[RegisterCall], taken: u32, state: Option<u64>) -> bool {
        let left = || (0..calls.len()).filter(|place| taken & (1 << place) == 0);
        if left().all(|place| calls[place].outcome == Outcome::Unknown) {
            return true;
        }
        left().any(|place| {
            let before_all =
                left().all(|other| calls[other].over_ns().is_none_or(|over| over >= calls[place].invoked_ns));
            let answer = calls[place].response.as_ref();
            before_all
                && REGISTER
                    .step(&state, &calls[place].op, answer)
                    .is_some_and(|state| goes_on(calls, taken | 1 << place, state))
        })
    }
    goes_on(calls, 0, None)
}

/// A few calls with answers out of the blue, of which many explain each other.
fn random_calls(rng: &mut Rng, count: u64) -> Vec<RegisterCall> {
    let value = |rng: &mut Rng| Some(rng.below(3)).filter(|value| *value > 0);
    let call = |rng: &mut Rng, id: u64| {
        let (op, answer) = match rng.below(4) {
            0 => (RegisterOp::Write(value(rng)), RegisterAnswer::Written),
            1 => (RegisterOp::CompareAndSet(value(rng), value(rng)), RegisterAnswer::Set(rng.one_in(2))),
            _ => (RegisterOp::Read, RegisterAnswer::Value(value(rng))),
        };
        let invoked_ns = rng.below(20);
        let outcome = if rng.one_in(5) { Outcome::Unknown } else { Outcome::Ok };
        Call {
            client: id,
            id,
            op,
            invoked_ns,
            returned_ns: Some(invoked_ns + rng.below(12)),
            outcome,
            response: Some(answer).filter(|_| outcome == Outcome::Ok),
            revision: None,
            ticket: None,
        }
    };
    (0..count).map(|id| call(rng, id)).collect()
}

#[test]
fn it_agrees_with_brute_force_on_random_histories() {
    let (mut rng, mut verdicts) = (Rng(3), BTreeMap::new());
    for round in 0..30_000 {
        let count = 1 + rng.below(7);
        let history = RegisterHistory::new(random_calls(&mut rng, count));
        let right = brute_force(history.calls());
        let found = match linearizable(&REGISTER, &history) {
            Verdict::Linearizable => true,
            Verdict::Violated(violation) => {
                assert_eq!(violation.property, Property::Kv1);
                assert!(!violation.witnesses.is_empty());
                false
            }
            Verdict::Inconclusive { steps } => panic!("round {round}: gave up after {steps}"),
        };
        assert_eq!(found, right, "round {round}: {:#?}", history.calls());
        *verdicts.entry(right).or_insert(0) += 1;
    }
    assert!(verdicts[&true] > 2_500 && verdicts[&false] > 2_500, "{verdicts:?}");
}

/// One register, `clients` at a time, unique values; answers as an atomic register gives them.
fn right_register(seed: u64, clients: u64, calls_each: u64, unknown_one_in: u64) -> Vec<RegisterCall> {
    let mut rng = Rng(seed);
    let (mut calls, mut moments) = (Vec::new(), Vec::new());
    for client in 0..clients {
        let mut now = 0;
        for id in 0..calls_each {
            let invoked_ns = now + 1 + rng.below(50);
            let moment = invoked_ns + 1 + rng.below(50);
            now = moment + 1 + rng.below(50);
            let value = Some(client * 100_000 + id + 1);
            let op = if rng.one_in(2) { RegisterOp::Write(value) } else { RegisterOp::Read };
            let unknown = op != RegisterOp::Read && rng.one_in(unknown_one_in);
            let outcome = if unknown { Outcome::Unknown } else { Outcome::Ok };
            if !unknown || rng.one_in(2) {
                moments.push((moment, calls.len()));
            }
            let (returned_ns, response) = (Some(now), None);
            calls.push(Call {
                client,
                id,
                op,
                invoked_ns,
                returned_ns,
                outcome,
                response,
                revision: None,
                ticket: None,
            });
        }
    }
    moments.sort_unstable();
    let mut state = None;
    for (_, place) in moments {
        let answer = match &calls[place].op {
            RegisterOp::Write(value) => {
                state = *value;
                RegisterAnswer::Written
            }
            _ => RegisterAnswer::Value(state),
        };
        calls[place].response = Some(answer).filter(|_| calls[place].outcome == Outcome::Ok);
    }
    calls
}

#[test]
fn a_history_of_thousands_of_calls_is_explained_quickly() {
    let history = RegisterHistory::new(right_register(1, 8, 500, 400));
    assert_eq!(linearizable(&REGISTER, &history), Verdict::Linearizable);
}

#[test]
fn one_stale_read_among_thousands_of_calls_is_found() {
    let mut calls = right_register(2, 8, 250, 10_000);
    let end = calls.iter().filter_map(|call| call.returned_ns).max().unwrap();
    let first = calls.iter().find_map(|call| match call.op {
        RegisterOp::Write(value) => Some(value),
        _ => None,
    });
    let late = RegisterCall {
        client: 99,
        id: 0,
        op: RegisterOp::Read,
        invoked_ns: end + 1,
        returned_ns: Some(end + 2),
        outcome: Outcome::Ok,
        response: first.map(RegisterAnswer::Value),
        revision: None,
        ticket: None,
    };
    let shown = late.to_string();
    calls.push(late);
    let Verdict::Violated(violation) = linearizable(&REGISTER, &RegisterHistory::new(calls)) else { panic!() };
    assert!(violation.to_string().contains(&format!("does not fit: {shown}")), "{violation}");
}

#[test]
fn a_search_that_is_too_long_is_given_up_and_says_so() {
    let history = RegisterHistory::new(right_register(1, 8, 50, 400));
    assert_eq!(linearizable_within(&REGISTER, &history, 20), Verdict::Inconclusive { steps: 20 });
}
