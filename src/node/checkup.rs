//! What the members ask each other now and then: whether their states are still the same, and whether their disks have room.
//!
//! The state is a function of the log, so behind one entry it is the same on all members. If it is not, one of them has gone
//! wrong: its memory, its disk, or a bug that does not show everywhere. A member that finds a majority of all voters agreed on
//! something else than its own stops for good, with its directory marked as failed: what it would answer is not what was
//! committed. Nobody tells another to stop. Without a majority nobody knows who is right, and all say so.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;

use super::Node;
use crate::error::{Error, StorageError};
use crate::format::message::{Reply, Request};
use crate::rt;
use crate::transport::Lane;
use crate::types::{Member, Milestone, ShortDisk};

/// How often.
const CHECKUP_INTERVAL: Duration = Duration::from_secs(5);
/// Who does not answer in this time is passed over.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// What is known of the other members' disks.
#[derive(Default)]
pub(super) struct Others {
    /// Those that are short of room, by name. Only of members that answered the last time.
    short: Mutex<BTreeMap<String, ShortDisk>>,
    /// Whether there is one, for those who ask with every write.
    some: AtomicBool,
}

impl Others {
    fn note(&self, short: BTreeMap<String, ShortDisk>) {
        let mut known = self.short.lock().expect("no panic while held");
        self.some.store(!short.is_empty(), Ordering::Relaxed);
        *known = short;
    }

    fn short(&self) -> Option<(String, ShortDisk)> {
        if !self.some.load(Ordering::Relaxed) {
            return None;
        }
        let known = self.short.lock().expect("no panic while held");
        known.first_key_value().map(|(member, short)| (member.clone(), *short))
    }
}

/// Where members differ.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Difference {
    /// So many of all voters agree on another state than this member's.
    Outvoted { index: u64, mine: u64, theirs: u64, votes: usize },
    /// Somebody else has gone wrong, or there is no majority to say who.
    Other { index: u64, mine: u64, who: Vec<String> },
}

/// What another member has said.
struct Told {
    member: Member,
    milestones: Vec<Milestone>,
}

impl Node {
    /// Looks after the members for as long as the node lives.
    pub(super) async fn keep_checking(self: Arc<Self>) {
        loop {
            rt::sleep(CHECKUP_INTERVAL).await;
            self.check_up().await;
        }
    }

    async fn check_up(&self) {
        let members = self.members();
        let voters = members.iter().filter(|member| member.voter).count();
        let others = members.into_iter().filter(|member| member.id != self.id());
        let answers: Vec<_> = join_all(others.map(|other| self.ask_how_it_is(other))).await;
        let (mut short, mut told) = (BTreeMap::new(), Vec::new());
        for (member, milestones, room) in answers.into_iter().flatten() {
            short.extend(room.map(|room| (member.name.clone(), room)));
            told.push(Told { member, milestones });
        }
        self.others.note(short);
        // Taken last: what the others have passed meanwhile, this one may have passed too.
        if let Some(difference) = compare(&self.state.milestones(), &told, voters) {
            self.differ(difference, voters);
        }
    }

    async fn ask_how_it_is(&self, member: Member) -> Option<(Member, Vec<Milestone>, Option<ShortDisk>)> {
        let peer = self.peer(member.id)?;
        let ask = self.link.ask(&peer, Some(member.id), Lane::Client, &Request::Checkup, ANSWER_TIMEOUT);
        match ask.await {
            Ok(Reply::Checkup { milestones, short }) => Some((member, milestones, short)),
            _ => None,
        }
    }

    pub(super) fn serve_checkup(&self) -> Reply {
        Reply::Checkup { milestones: self.state.milestones(), short: self.short_disk() }
    }

    fn differ(&self, difference: Difference, voters: usize) {
        match difference {
            Difference::Outvoted { index, mine, theirs, votes } => {
                let why = format!(
                    "behind entry {index} it is {mine:016x} here and {theirs:016x} on {votes} of {voters} voters: \
                     replace this member, starting it on an empty directory"
                );
                self.poison.fail(StorageError::new("state.redb", "state hash", why));
            }
            Difference::Other { index, mine, who } => {
                let (name, mine) = (self.name(), format_args!("{mine:016x}"));
                tracing::error!(name, index, mine, ?who, "members have another state behind the same entry");
            }
        }
    }

    fn short_disk(&self) -> Option<ShortDisk> {
        let (free, reserve) = (self.state.free_bytes()?, self.settings.disk_reserve);
        (free < reserve).then_some(ShortDisk { free, reserve })
    }

    /// An error if some member's disk should not be filled any further.
    pub(crate) fn check_room(&self) -> Result<(), Error> {
        let here = self.short_disk().map(|short| (self.name().to_owned(), short));
        match here.or_else(|| self.others.short()) {
            Some((member, ShortDisk { free, reserve })) => Err(Error::DiskFull { member, free, reserve }),
            None => Ok(()),
        }
    }
}

/// The newest difference between this member and others.
fn compare(mine: &[Milestone], others: &[Told], voters: usize) -> Option<Difference> {
    mine.iter().rev().find_map(|mine| difference(*mine, others, voters))
}

fn difference(mine: Milestone, others: &[Told], voters: usize) -> Option<Difference> {
    let Milestone { index, hash: mine } = mine;
    let (mut who, mut votes) = (Vec::new(), BTreeMap::<u64, usize>::new());
    for Told { member, milestones } in others {
        let Some(theirs) = milestones.iter().find(|theirs| theirs.index == index && theirs.hash != mine) else {
            continue;
        };
        who.push(member.name.clone());
        *votes.entry(theirs.hash).or_default() += usize::from(member.voter);
    }
    let (theirs, votes) = votes.into_iter().max_by_key(|(_, votes)| *votes)?;
    Some(match votes * 2 > voters {
        true => Difference::Outvoted { index, mine, theirs, votes },
        false => Difference::Other { index, mine, who },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeId;

    fn told(name: &str, voter: bool, milestones: &[(u64, u64)]) -> Told {
        let member = Member { id: NodeId::new(1), name: name.into(), address: String::new(), voter };
        Told { member, milestones: those(milestones) }
    }

    fn those(milestones: &[(u64, u64)]) -> Vec<Milestone> {
        milestones.iter().map(|(index, hash)| Milestone { index: *index, hash: *hash }).collect()
    }

    #[test]
    fn members_that_agree_or_have_nothing_in_common_do_not_differ() {
        let mine = those(&[(1024, 7), (2048, 8)]);
        let others = [told("b", true, &[(1024, 7)]), told("c", true, &[(3072, 9)])];
        assert_eq!(compare(&mine, &others, 3), None);
        assert_eq!(compare(&[], &others, 3), None);
        assert_eq!(compare(&mine, &[], 1), None);
    }

    #[test]
    fn who_differs_from_a_majority_of_all_voters_is_outvoted() {
        let mine = those(&[(1024, 7), (2048, 8)]);
        let others = [told("b", true, &[(1024, 7), (2048, 9)]), told("c", true, &[(2048, 9), (3072, 1)])];
        let outvoted = Difference::Outvoted { index: 2048, mine: 8, theirs: 9, votes: 2 };
        assert_eq!(compare(&mine, &others, 3), Some(outvoted));
        // Two of five are no majority, whoever is silent.
        let other = Difference::Other { index: 2048, mine: 8, who: vec!["b".into(), "c".into()] };
        assert_eq!(compare(&mine, &others, 5), Some(other));
    }

    #[test]
    fn nobody_is_outvoted_by_those_who_have_no_vote_or_differ_among_themselves() {
        let mine = those(&[(1024, 7)]);
        let other = |who: &[&str]| {
            let who = who.iter().map(|name| name.to_string()).collect();
            Some(Difference::Other { index: 1024, mine: 7, who })
        };
        let learners = [told("b", true, &[(1024, 9)]), told("c", false, &[(1024, 9)])];
        assert_eq!(compare(&mine, &learners, 2), other(&["b", "c"]));
        let three_ways = [told("b", true, &[(1024, 8)]), told("c", true, &[(1024, 9)])];
        assert_eq!(compare(&mine, &three_ways, 3), other(&["b", "c"]));
        let one_is_wrong = [told("b", true, &[(1024, 7)]), told("c", true, &[(1024, 9)])];
        assert_eq!(compare(&mine, &one_is_wrong, 3), other(&["c"]));
    }
}
