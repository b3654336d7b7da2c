//! What the members ask each other now and then: what their states are (see [`Agreement`]), and whether their disks have room.
//!
//! A member that is outvoted stops for good, with its directory marked as failed: what it would answer is not what was
//! committed. Nobody tells another to stop. Without a majority nobody knows who is right, and all say so, once a minute.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;

use super::Node;
use super::agreement::{Agreement, Difference, Told};
use crate::error::{Error, StorageError};
use crate::format::message::{Reply, Request};
use crate::rt;
use crate::state_machine::STATE_VERSION;
use crate::transport::Lane;
use crate::types::{Account, Member, Milestone, ShortDisk};

/// How often.
const CHECKUP_INTERVAL: Duration = Duration::from_secs(5);
/// Who does not answer in this time is passed over.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// A difference that lasts is told again after so many checkups: once a minute.
const TELL_AGAIN: u32 = 12;
/// What was heard of a member counts until it has been passed over this many times in a row. More than once: one that is short
/// of room may be slow for the same reason. Not for ever: one that is gone is to hold nobody up.
const SILENCES_MAX: u32 = 3;

/// What is known of the other members' disks.
#[derive(Default)]
pub(super) struct Disks {
    /// Those that are short of room, by the members' names, and how often their members have not answered since.
    short: Mutex<BTreeMap<String, (ShortDisk, u32)>>,
    /// Whether there is one, for those who ask with every write.
    some: AtomicBool,
}

impl Disks {
    fn note(&self, member: &str, told: Option<Option<ShortDisk>>) {
        let mut short = self.short.lock().expect("no panic while held");
        match (told, short.get_mut(member)) {
            (Some(Some(disk)), _) => drop(short.insert(member.to_owned(), (disk, 0))),
            (None, Some((_, silences))) if *silences + 1 < SILENCES_MAX => *silences += 1,
            (Some(None) | None, _) => drop(short.remove(member)),
        }
        self.some.store(!short.is_empty(), Ordering::Relaxed);
    }

    fn short(&self) -> Option<(String, ShortDisk)> {
        if !self.some.load(Ordering::Relaxed) {
            return None;
        }
        let short = self.short.lock().expect("no panic while held");
        short.first_key_value().map(|(member, (disk, _))| (member.clone(), *disk))
    }
}

impl Node {
    /// Asks the other members for as long as the node serves.
    pub(super) async fn run_checkups(self: Arc<Self>) {
        let (mut agreement, mut told_before) = (Agreement::default(), None);
        loop {
            rt::sleep(CHECKUP_INTERVAL).await;
            // One that has stopped asks nothing more: what is known of it may be that it is a copy.
            if self.check_open().is_err() {
                return;
            }
            let voters = self.members().iter().filter(|member| member.voter).count();
            let (mine, told) = self.ask_others().await;
            let difference = agreement.compare(&mine, &told, voters);
            self.act_on(difference, voters, &mut told_before);
        }
    }

    /// What this member's state was, and what the others say of theirs.
    async fn ask_others(&self) -> (Vec<Milestone>, Vec<Told>) {
        let before = self.state.account();
        let others: Vec<Member> = self.members().into_iter().filter(|member| member.id != self.id()).collect();
        let answers = join_all(others.iter().map(|other| self.ask(other))).await;
        let mut told = Vec::new();
        for (Member { id, name, voter, .. }, answer) in others.into_iter().zip(answers) {
            let (account, short) = answer.unzip();
            self.disks.note(&name, short);
            // Another release may make something else of the same state.
            if let Some((STATE_VERSION, account)) = account {
                told.push(Told { id, name, voter, account });
            }
        }
        // Both from before and from now: the others have answered in between, and much may have been applied. Unless that was
        // another state.
        let now = self.state.account();
        let first = now.milestones.first().map_or(u64::MAX, |first| first.index);
        let passed = before.milestones.into_iter().filter(|passed| passed.index < first && before.since == now.since);
        (passed.chain(now.milestones.iter().copied()).collect(), told)
    }

    async fn ask(&self, member: &Member) -> Option<((u64, Account), Option<ShortDisk>)> {
        let peer = self.peer(member.id)?;
        // Small, and not to wait behind bulk: that is what fills disks.
        let ask = self.link.ask(&peer, Some(member.id), Lane::Control, &Request::Checkup, ANSWER_TIMEOUT);
        match ask.await {
            Ok(Reply::Checkup { version, account, short }) => Some(((version, account), short)),
            _ => None,
        }
    }

    pub(super) fn serve_checkup(&self) -> Reply {
        Reply::Checkup { version: STATE_VERSION, account: self.state.account(), short: self.short_disk() }
    }

    /// `told_before` is who was said to differ the last time, and how many checkups ago.
    fn act_on(&self, difference: Option<Difference>, voters: usize, told_before: &mut Option<(Vec<String>, u32)>) {
        match difference {
            None => *told_before = None,
            Some(Difference::Outvoted { index, mine, theirs, votes }) => {
                let why = format!(
                    "behind entry {index} it is {mine:016x} here and {theirs:016x} on {votes} of {voters} voters"
                );
                self.poison.fail(StorageError::new("state.redb", "state hash", why));
            }
            Some(Difference::Other { index, mine, who }) => match told_before {
                Some((before, ago)) if *before == who && *ago + 1 < TELL_AGAIN => *ago += 1,
                _ => {
                    let (name, mine) = (self.name(), format_args!("{mine:016x}"));
                    tracing::error!(name, index, mine, ?who, "members have another state behind the same entry");
                    *told_before = Some((who, 0));
                }
            },
        }
    }

    fn short_disk(&self) -> Option<ShortDisk> {
        let (free, reserve) = (self.state.free_bytes()?, self.settings.disk_reserve);
        (free < reserve).then_some(ShortDisk { free, reserve })
    }

    /// An error if some member's disk should not be filled any further.
    pub(crate) fn check_disks(&self) -> Result<(), Error> {
        let here = self.short_disk().map(|short| (self.name().to_owned(), short));
        match here.or_else(|| self.disks.short()) {
            Some((member, ShortDisk { free, reserve })) => Err(Error::DiskFull { member, free, reserve }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_heard_of_a_disk_counts_until_its_member_has_been_silent_for_long() {
        let disks = Disks::default();
        let short = ShortDisk { free: 1, reserve: 2 };
        let known = || disks.short().is_some();
        disks.note("b", Some(Some(short)));
        for _ in 0..3 {
            (1..SILENCES_MAX).for_each(|_| disks.note("b", None));
            assert!(known());
            disks.note("b", Some(Some(short)));
        }
        disks.note("c", Some(None));
        assert_eq!(disks.short(), Some(("b".into(), short)));
        (0..SILENCES_MAX).for_each(|_| disks.note("b", None));
        assert!(!known());
        disks.note("b", Some(Some(short)));
        disks.note("b", Some(None));
        assert!(!known());
    }
}
