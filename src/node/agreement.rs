//! Whether members have become the same.
//!
//! The state is a function of the log, so behind one entry it is the same on all members. If it is not, one of them has gone
//! wrong: its memory, its disk, or a bug that does not show everywhere. A member that finds a majority of all voters agreed on
//! something else than its own is outvoted. A vote is worth something only from who has come to its state by itself: one that
//! was sent its state, or has loaded it, after the members began to differ may repeat what another got wrong.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::{Account, Milestone};

/// What another member has said.
pub(super) struct Told {
    pub(super) name: String,
    pub(super) voter: bool,
    pub(super) account: Account,
}

/// Where members differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Difference {
    /// So many of all voters agree on another state than this member's.
    Outvoted { index: u64, mine: u64, theirs: u64, votes: usize },
    /// Somebody else has gone wrong, or there is no majority to say who.
    Other { index: u64, mine: u64, who: Vec<String> },
}

/// One member's memory of how the others compare.
#[derive(Debug, Default)]
pub(super) struct Agreement {
    /// The first entry behind which some member was seen to differ, since all voters agreed.
    disputed: Option<u64>,
}

impl Agreement {
    /// The newest difference by which this member is outvoted, or else the newest one.
    pub(super) fn compare(&mut self, mine: &[Milestone], others: &[Told], voters: usize) -> Option<Difference> {
        let differing: Vec<Milestone> = mine.iter().copied().filter(|mine| differ(*mine, others)).collect();
        match differing.iter().map(|milestone| milestone.index).min() {
            Some(first) => self.disputed = Some(self.disputed.map_or(first, |before| before.min(first))),
            None if agree(mine, others, voters) => self.disputed = None,
            None => {}
        }
        let disputed = self.disputed?;
        let mut found: Vec<_> = differing.into_iter().map(|mine| difference(mine, others, voters, disputed)).collect();
        let outvoted = found.iter().rposition(|found| matches!(found, Difference::Outvoted { .. }));
        match outvoted {
            Some(place) => Some(found.swap_remove(place)),
            None => found.pop(),
        }
    }
}

fn differ(mine: Milestone, others: &[Told]) -> bool {
    others.iter().any(|other| other.behind(mine.index).is_some_and(|theirs| theirs != mine.hash))
}

/// Whether every other voter has been heard, and was the same when it was compared last.
fn agree(mine: &[Milestone], others: &[Told], voters: usize) -> bool {
    let same = |other: &&Told| {
        let last = mine.iter().rev().find_map(|mine| Some((mine.hash, other.behind(mine.index)?)));
        other.voter && last.is_some_and(|(mine, theirs)| mine == theirs)
    };
    others.iter().filter(same).count() + 1 >= voters
}

fn difference(mine: Milestone, others: &[Told], voters: usize, disputed: u64) -> Difference {
    let Milestone { index, hash: mine } = mine;
    let (mut who, mut votes) = (BTreeSet::new(), BTreeMap::<u64, usize>::new());
    for other in others {
        let Some(theirs) = other.behind(index).filter(|theirs| *theirs != mine) else { continue };
        who.insert(other.name.clone());
        *votes.entry(theirs).or_default() += usize::from(other.voter && other.account.since <= disputed);
    }
    match votes.into_iter().max_by_key(|(_, votes)| *votes).filter(|(_, votes)| votes * 2 > voters) {
        Some((theirs, votes)) => Difference::Outvoted { index, mine, theirs, votes },
        None => Difference::Other { index, mine, who: who.into_iter().collect() },
    }
}

impl Told {
    /// What its state was behind that entry, if it has said so.
    fn behind(&self, index: u64) -> Option<u64> {
        self.account.milestones.iter().find(|milestone| milestone.index == index).map(|milestone| milestone.hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(name: &str, milestones: &[(u64, u64)]) -> Told {
        let account = Account { since: 0, milestones: those(milestones) };
        Told { name: name.into(), voter: true, account }
    }

    fn those(milestones: &[(u64, u64)]) -> Vec<Milestone> {
        milestones.iter().map(|(index, hash)| Milestone { index: *index, hash: *hash }).collect()
    }

    fn compare(mine: &[(u64, u64)], others: &[Told], voters: usize) -> Option<Difference> {
        Agreement::default().compare(&those(mine), others, voters)
    }

    fn other(index: u64, mine: u64, who: &[&str]) -> Option<Difference> {
        Some(Difference::Other { index, mine, who: who.iter().map(|name| name.to_string()).collect() })
    }

    fn outvoted(index: u64, mine: u64, theirs: u64, votes: usize) -> Option<Difference> {
        Some(Difference::Outvoted { index, mine, theirs, votes })
    }

    #[test]
    fn members_that_agree_or_have_nothing_in_common_do_not_differ() {
        let others = [told("b", &[(1024, 7)]), told("c", &[(3072, 9)])];
        assert_eq!(compare(&[(1024, 7), (2048, 8)], &others, 3), None);
        assert_eq!(compare(&[], &others, 3), None);
        assert_eq!(compare(&[(1024, 7)], &[], 1), None);
    }

    #[test]
    fn who_differs_from_a_majority_of_all_voters_is_outvoted() {
        let mine = [(1024, 7), (2048, 8)];
        let others = [told("b", &[(1024, 7), (2048, 9)]), told("c", &[(2048, 9), (3072, 1)])];
        assert_eq!(compare(&mine, &others, 3), outvoted(2048, 8, 9, 2));
        // Two of five are no majority, whoever is silent.
        assert_eq!(compare(&mine, &others, 5), other(2048, 8, &["b", "c"]));
        // One of them is ahead of the other: that they agree shows further back.
        let others = [told("b", &[(1024, 6), (2048, 9)]), told("c", &[(1024, 6)])];
        assert_eq!(compare(&mine, &others, 3), outvoted(1024, 7, 6, 2));
    }

    #[test]
    fn nobody_is_outvoted_by_those_who_have_no_vote_or_differ_among_themselves() {
        let learner = [told("b", &[(1024, 9)]), Told { voter: false, ..told("c", &[(1024, 9)]) }];
        assert_eq!(compare(&[(1024, 7)], &learner, 2), other(1024, 7, &["b", "c"]));
        let three_ways = [told("b", &[(1024, 8)]), told("c", &[(1024, 9)])];
        assert_eq!(compare(&[(1024, 7)], &three_ways, 3), other(1024, 7, &["b", "c"]));
        let one_is_wrong = [told("b", &[(1024, 7)]), told("c", &[(1024, 9)])];
        assert_eq!(compare(&[(1024, 7)], &one_is_wrong, 3), other(1024, 7, &["c"]));
    }

    /// The wrong state would win: the only member that is right would be stopped by another one's copy.
    #[test]
    fn who_was_sent_its_state_after_the_members_began_to_differ_has_no_vote() {
        let wrong = || told("a", &[(2048, 9), (3072, 10), (4096, 11)]);
        let copy = |since| Told { account: Account { since, milestones: those(&[(4096, 11)]) }, ..told("c", &[]) };
        let mine = [(1024, 6), (2048, 7), (3072, 8), (4096, 9)];
        assert_eq!(compare(&mine, &[wrong(), copy(3500)], 3), other(4096, 9, &["a", "c"]));
        assert_eq!(compare(&mine, &[wrong(), copy(2000)], 3), outvoted(4096, 9, 11, 2));
        // Also when the beginning is not told any more.
        let mut agreement = Agreement::default();
        let mine = those(&mine);
        assert_eq!(agreement.compare(&mine[..2], &[wrong()], 3), other(2048, 7, &["a"]));
        assert_eq!(agreement.compare(&mine[3..], &[told("c", &[])], 3), None, "one of them is silent");
        assert_eq!(agreement.compare(&mine[3..], &[wrong(), copy(3500)], 3), other(4096, 9, &["a", "c"]));
        // It ends when all have agreed again: another member may go wrong then.
        let same = || [told("a", &[(4096, 9)]), told("c", &[(4096, 9)])];
        assert_eq!(agreement.compare(&mine[3..], &same(), 3), None);
        let wrong = those(&[(4096, 9), (5120, 1)]);
        let right =
            |name| Told { account: Account { since: 4000, ..told(name, &[(5120, 2)]).account }, ..told(name, &[]) };
        assert_eq!(agreement.compare(&wrong, &[right("a"), right("c")], 3), outvoted(5120, 1, 2, 2));
    }
}
