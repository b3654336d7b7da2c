//! Who is cut off from whom in a network that exists in memory only.

use std::collections::BTreeSet;

/// Partitions, isolated names and one-way cuts, each beside the others. By default there are none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Partitions {
    /// If set, only names that share a group are connected.
    groups: Option<Vec<BTreeSet<String>>>,
    isolated: BTreeSet<String>,
    /// From, to.
    cuts: BTreeSet<(String, String)>,
}

impl Partitions {
    /// Whether a frame passes from one name to another. Nobody is ever cut off from itself.
    pub(crate) fn connected(&self, from: &str, to: &str) -> bool {
        self.obstacle(from, to).is_none()
    }

    /// What stops a frame from one name to another. Where there are both, it is the partition.
    pub(crate) fn obstacle(&self, from: &str, to: &str) -> Option<Obstacle> {
        let share = |groups: &Vec<BTreeSet<String>>| groups.iter().any(|g| g.contains(from) && g.contains(to));
        if from == to {
            None
        } else if self.isolated.contains(from)
            || self.isolated.contains(to)
            || self.groups.as_ref().is_some_and(|groups| !share(groups))
        {
            Some(Obstacle::Partition)
        } else {
            self.cuts.contains(&(from.to_owned(), to.to_owned())).then_some(Obstacle::Cut)
        }
    }

    /// Splits the network, in place of an earlier split: only names that share a group are connected.
    pub(crate) fn split(&mut self, groups: impl IntoIterator<Item = BTreeSet<String>>) {
        self.groups = Some(groups.into_iter().collect());
    }

    pub(crate) fn isolate(&mut self, name: String) {
        self.isolated.insert(name);
    }

    pub(crate) fn cut(&mut self, from: String, to: String) {
        self.cuts.insert((from, to));
    }

    /// Connects everybody again.
    pub(crate) fn heal(&mut self) {
        *self = Self::default();
    }
}

/// Why a frame does not pass.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// The two are apart, in both directions.
    Partition,
    /// This direction is cut.
    Cut,
}
