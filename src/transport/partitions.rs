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
        from == to
            || !self.isolated.contains(from)
                && !self.isolated.contains(to)
                && !self.cuts.contains(&(from.to_owned(), to.to_owned()))
                && self.groups.as_ref().is_none_or(|groups| groups.iter().any(|g| g.contains(from) && g.contains(to)))
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
