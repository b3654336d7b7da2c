//! What happens between machines: wires, partitions, and frames that are held.

use super::error::SimError;
use super::wire::Wire;
use super::world::{Sim, known};

impl Sim {
    /// Lets frames between all hosts travel by `wire`, in both directions, wherever [`Sim::wire`] says nothing else.
    pub fn wires(&self, wire: Wire) {
        *self.inner.usual.lock().expect("no holder of the lock panics") = wire.clone();
        self.note(|| format!("all wires: {wire:?}"));
        self.inner.net.usual(wire);
    }

    /// Lets frames from one host to another travel by `wire` until [`Sim::heal`]; the way back is another wire.
    ///
    /// # Errors
    /// [`SimError::UnknownHost`].
    pub fn wire(&self, from: &str, to: &str, wire: Wire) -> Result<(), SimError> {
        self.both(from, to)?;
        self.note(|| format!("the wire from {from} to {to}: {wire:?}"));
        self.inner.net.wire(from, to, wire);
        Ok(())
    }

    /// Splits the network: only hosts that share a group are connected, in place of an earlier split. A host in no group is
    /// alone, and one in several is a bridge that does not forward.
    ///
    /// ```
    /// # quorate::sim::run(0..1, |sim| async move {
    /// # sim.nodes(3)?;
    /// sim.partition(&[&["node-1"], &["node-2", "node-3"]])?;
    /// # Ok::<(), quorate::sim::SimError>(()) });
    /// ```
    ///
    /// # Errors
    /// [`SimError::UnknownHost`]: nothing has changed.
    pub fn partition(&self, groups: &[&[&str]]) -> Result<(), SimError> {
        for name in groups.iter().copied().flatten() {
            known(&mut self.machines(), name)?;
        }
        self.note(|| format!("partition {groups:?}"));
        let groups = groups.iter().map(|group| group.iter().map(|name| (*name).to_owned()).collect());
        self.inner.net.partition(|partitions| partitions.split(groups));
        Ok(())
    }

    /// Cuts the host off from everybody, beside any partition.
    ///
    /// # Errors
    /// [`SimError::UnknownHost`].
    pub fn isolate(&self, name: &str) -> Result<(), SimError> {
        known(&mut self.machines(), name)?;
        self.note(|| format!("{name} is isolated"));
        self.inner.net.isolate(name);
        Ok(())
    }

    /// Loses every frame from one host to the other, requests and answers alike, beside any partition. The other way stays
    /// open: what is asked there arrives, and its answer does not.
    ///
    /// # Errors
    /// [`SimError::UnknownHost`].
    pub fn cut(&self, from: &str, to: &str) -> Result<(), SimError> {
        self.both(from, to)?;
        self.note(|| format!("cut from {from} to {to}"));
        self.inner.net.cut(from, to);
        Ok(())
    }

    /// Keeps every frame from one host to the other under way until [`Sim::release`] or [`Sim::heal`]; then they arrive, at
    /// whatever process runs there.
    ///
    /// # Errors
    /// [`SimError::UnknownHost`].
    pub fn hold(&self, from: &str, to: &str) -> Result<(), SimError> {
        self.both(from, to)?;
        self.note(|| format!("hold from {from} to {to}"));
        self.inner.net.hold(from, to);
        Ok(())
    }

    /// Lets everything arrive that is held, and holds nothing any more.
    pub fn release(&self) {
        self.note(|| "release".into());
        self.inner.net.release();
    }

    /// Ends every partition, isolation and cut, releases what is held, and takes back what [`Sim::wire`] has said of single
    /// wires. What was lost stays lost.
    pub fn heal(&self) {
        self.note(|| "the network is healed".into());
        self.inner.net.unwire();
        self.inner.net.usual(self.inner.usual.lock().expect("no holder of the lock panics").clone());
        self.inner.net.heal();
    }

    fn both(&self, from: &str, to: &str) -> Result<(), SimError> {
        let mut machines = self.machines();
        known(&mut machines, from)?;
        known(&mut machines, to).map(|_| ())
    }
}
