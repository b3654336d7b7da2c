//! Whether members have become the same.
//!
//! The state is a function of the log, so behind one entry it is the same on all members. If it is not, one of them has gone
//! wrong: its memory, its disk, or a bug that does not show everywhere. A member that finds a majority of all voters agreed on
//! something else than its own is outvoted.
//!
//! A vote is worth something only from who has come to its state by itself: one that was sent its state may repeat what another
//! got wrong, and three would be one and its copy against the only one that is right. So it counts once the two have agreed
//! behind an entry that the voter has applied itself: since then at most one of them can have been sent anything. The price is
//! that members which begin to differ while one of them is sent its state, or is restarted, may go on differing for ever: then
//! nobody knows who is right, and all say so.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::{Account, Milestone, NodeId};

/// What another member has said.
pub(super) struct Told {
    pub(super) id: NodeId,
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
    /// The newest entry behind which each was seen to be the same.
    agreed: BTreeMap<NodeId, u64>,
}

impl Agreement {
    /// The newest difference by which this member is outvoted, or else the newest one.
    pub(super) fn compare(&mut self, mine: &[Milestone], others: &[Told], voters: usize) -> Option<Difference> {
        for other in others {
            let same = mine.iter().rev().find(|mine| other.behind(mine.index) == Some(mine.hash));
            if let Some(Milestone { index, .. }) = same {
                let agreed = self.agreed.entry(other.id).or_default();
                *agreed = (*agreed).max(*index);
            }
        }
        let mut found: Vec<_> = mine.iter().filter_map(|mine| self.difference(*mine, others, voters)).collect();
        match found.iter().rposition(|found| matches!(found, Difference::Outvoted { .. })) {
            Some(place) => Some(found.swap_remove(place)),
            None => found.pop(),
        }
    }

    fn difference(&self, mine: Milestone, others: &[Told], voters: usize) -> Option<Difference> {
        let Milestone { index, hash: mine } = mine;
        let (mut who, mut votes) = (BTreeSet::new(), BTreeMap::<u64, usize>::new());
        for other in others {
            let Some(theirs) = other.behind(index).filter(|theirs| *theirs != mine) else { continue };
            who.insert(other.name.clone());
            *votes.entry(theirs).or_default() += usize::from(self.counts(other));
        }
        let (theirs, votes) = votes.into_iter().max_by_key(|(_, votes)| *votes)?;
        Some(match votes * 2 > voters {
            true => Difference::Outvoted { index, mine, theirs, votes },
            false => Difference::Other { index, mine, who: who.into_iter().collect() },
        })
    }

    /// Whether the other one's state is no copy of a third one's, since the two agreed.
    fn counts(&self, other: &Told) -> bool {
        let agreed = self.agreed.get(&other.id).copied().unwrap_or_default();
        other.voter && other.account.since <= agreed
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

    /// Named by one letter.
    fn told(name: &str, milestones: &[(u64, u64)]) -> Told {
        let account = Account { since: 0, milestones: those(milestones) };
        Told { id: NodeId::new(name.as_bytes()[0].into()), name: name.into(), voter: true, account }
    }

    fn since(since: u64, told: Told) -> Told {
        Told { account: Account { since, ..told.account }, ..told }
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

    /// The wrong state would win: the only member that is right would be stopped by another one and its copy.
    #[test]
    fn a_copy_of_another_ones_state_has_no_vote_whenever_it_was_made_and_whatever_was_seen_of_that() {
        let mine = those(&[(1024, 6), (2048, 7), (3072, 8), (4096, 9)]);
        let wrong = || told("a", &[(1024, 6), (2048, 90), (3072, 91), (4096, 92)]);
        let copies = [
            // Long after they began to differ; within the same milestone; right behind one.
            since(3500, told("c", &[(4096, 92)])),
            since(1700, told("c", &[(2048, 90), (3072, 91), (4096, 92)])),
            since(2048, told("c", &[(3072, 91), (4096, 92)])),
        ];
        for copy in copies {
            let mut agreement = Agreement::default();
            let before = [told("a", &[(1024, 6)]), told("c", &[(1024, 6)])];
            assert_eq!(agreement.compare(&mine[..1], &before, 3), None);
            let others = [wrong(), copy];
            assert_eq!(agreement.compare(&mine, &others, 3), other(4096, 9, &["a", "c"]));
            // After a restart of this one, and when the others have forgotten how it began.
            let others = others.map(|told| since(told.account.since.max(1), told));
            assert_eq!(Agreement::default().compare(&mine[3..], &others, 3), other(4096, 9, &["a", "c"]));
        }
    }

    #[test]
    fn who_was_sent_its_state_has_a_vote_once_the_two_have_agreed() {
        let mut agreement = Agreement::default();
        let restarted = |name, milestones: &[(u64, u64)]| since(700, told(name, milestones));
        let same = [restarted("a", &[(1024, 6)]), restarted("c", &[(1024, 6)])];
        assert_eq!(agreement.compare(&those(&[(1024, 6)]), &same, 3), None);
        let others = [restarted("a", &[(2048, 7)]), restarted("c", &[(2048, 7)])];
        assert_eq!(agreement.compare(&those(&[(2048, 1)]), &others, 3), outvoted(2048, 1, 7, 2));
    }
}
