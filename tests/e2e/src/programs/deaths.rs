//! A host dies while the guest changes hands: when the target is ready, when the source has said its word, when the target
//! has heard it, when each has a half of it. The guest checks its memory all the time: it goes on on one host, or nowhere
//! where that died.

use anyhow::{Context, Result, ensure};

use super::migrate::{EVERY, Pair, check, machine, modules, start, start_with};
use crate::wire::Wire;
use crate::{Artifacts, COMMAND_LIMIT, Launch};

type MakeMachine<'a> = Box<dyn Fn(usize) -> Result<Launch> + 'a>;

/// Two hosts on a wire that can be told to let a host's words vanish: its acknowledgements pass, so that the other goes on
/// to where it must have an answer.
struct Stage<'a> {
    artifacts: &'a Artifacts,
    pair: Pair,
    wire: Wire,
    machine: MakeMachine<'a>,
    /// The last round that the guest told of.
    last: u64,
}

/// Each of the two hosts dies.
pub fn before_the_commit(artifacts: &Artifacts) -> Result<()> {
    let mut stage = Stage::set(artifacts, "migrate_deaths")?;
    stage.target_dies_ready().context("the target dies when it is ready")?;
    stage.source_dies_ready().context("the source dies when the target is ready")
}

/// The word that gives the guest away is lost, and so is its answer, and then a host.
pub fn at_the_commit(artifacts: &Artifacts) -> Result<()> {
    let mut stage = Stage::set(artifacts, "migrate_commit")?;
    stage.source_dies_committed().context("the source dies when the target has heard its word")?;
    stage.target_dies_committed().context("the target dies before it hears the source's word")
}

/// A half of the guest's memory dies with its host, and the other says so.
pub fn in_two_halves(artifacts: &Artifacts) -> Result<()> {
    let mut stage = Stage::set(artifacts, "migrate_torn")?;
    stage.source_dies_copying().context("the source dies while memory is copied")?;
    stage.target_dies_serving().context("the target dies while memory follows")?;
    stage.source_dies_serving().context("the source dies while memory follows")
}

impl<'a> Stage<'a> {
    fn set(artifacts: &'a Artifacts, name: &'static str) -> Result<Self> {
        let wire = Wire::new(name, 2)?;
        let (netdevs, guest) = ([wire.netdev(0), wire.netdev(1)], modules(artifacts)?);
        let host = move |index: usize| Ok(machine(artifacts, name, index, &guest, &netdevs[index])?.memory_mib(512));
        let mut pair = Pair::boot_with(&host, artifacts)?;
        start(&mut pair.hosts[0], "")?;
        Ok(Self { artifacts, pair, wire, machine: Box::new(host), last: EVERY })
    }

    /// The source has said everything, and does not hear that the target is ready.
    fn come_to_ready(&mut self, from: usize) -> Result<()> {
        let (to, peer) = (1 - from, ["b", "a"][from]);
        self.pair.hosts[from].ask(&format!("vm migrate g to {peer} --downtime 60000 --bandwidth 1"))?;
        // The hosts have compared their clocks before the first page, and no more answers are needed before the end.
        self.pair.wait_move(from, "copying", |status| status["bytes"].as_u64() > Some(0))?;
        self.wire.mute(to, true);
        self.pair.wait_move(to, "waiting for the word", |_| true)
    }

    /// The source has heard that, and its word is lost: it runs nowhere.
    fn come_to_commit(&mut self, from: usize) -> Result<()> {
        self.come_to_ready(from)?;
        self.wire.mute(from, true);
        self.wire.mute(1 - from, false);
        self.pair.wait_move(from, "given away", |_| true)?;
        for (index, known) in [(from, "given"), (1 - from, "arriving")] {
            let state = self.pair.hosts[index].state("g")?;
            ensure!(state.as_deref() == Some(known), "nobody runs it, and it is {state:?}");
            self.stands_still_at(index)?;
        }
        let refusal = self.pair.hosts[from].refusal("vm resume g")?;
        ensure!(refusal.contains("on its way"), "{refusal}");
        Ok(())
    }

    fn source_dies_committed(&mut self) -> Result<()> {
        self.come_to_commit(0)?;
        // The word is said again, and now the answer is lost.
        self.wire.mute(1, true);
        self.wire.mute(0, false);
        self.pair.hosts[1].wait_state("g", "running", COMMAND_LIMIT)?;
        self.stands_still_at(0).context("the target runs it")?;
        drop(self.pair.hosts.remove(0));
        // The target's hosts list has only itself now.
        self.goes_on_at(0)?;
        self.wire.mute(1, false);
        self.rebirth(0)
    }

    fn target_dies_committed(&mut self) -> Result<()> {
        self.come_to_commit(1)?;
        drop(self.pair.hosts.remove(0));
        self.stands_still_at(0).context("nobody can say whether the target ran it")?;
        self.wire.mute(1, false);
        self.rebirth(0)?;
        let lost = self.pair.wait_end(1)?;
        ensure!(lost["phase"] == "lost", "the target has forgotten it: {lost}");
        ensure!(self.pair.hosts[0].state("g")?.is_none(), "it is on a host that was switched off");
        let state = self.pair.hosts[1].state("g")?;
        ensure!(state.as_deref() == Some("paused"), "a person decides, and it is {state:?}");
        self.pair.hosts[1].ask("vm resume g")?;
        self.goes_on_at(1)?;
        self.pair.migrate(1, "g").context("after all that")?;
        self.goes_on_at(0)
    }

    fn target_dies_ready(&mut self) -> Result<()> {
        self.come_to_ready(0)?;
        self.pair.hosts.pop();
        self.pair.wait_move(0, "taking back", |_| true)?;
        self.goes_on_at(0)?;
        self.takes_orders()?;
        self.wire.mute(1, false);
        // The source takes it back from whoever may still be there.
        self.rebirth(1)?;
        let stayed = self.pair.wait_end(0)?;
        ensure!(stayed["phase"] == "stayed", "the source did not keep it: {stayed}");
        Ok(())
    }

    /// What runs here for certain is its operator's, whether the other host knows that or not.
    fn takes_orders(&mut self) -> Result<()> {
        let host = &mut self.pair.hosts[0];
        host.ask("vm pause g")?;
        ensure!(host.state("g")?.as_deref() == Some("paused"), "it does not pause");
        host.ask("vm resume g")?;
        let refusal = host.refusal("vm migrate g to b")?;
        ensure!(refusal.contains("b was not reached to be told"), "{refusal}");
        let refusal = host.refusal("migrate cancel g")?;
        ensure!(refusal.contains("not on its way"), "{refusal}");
        self.goes_on_at(0)
    }

    fn source_dies_ready(&mut self) -> Result<()> {
        self.come_to_ready(0)?;
        drop(self.pair.hosts.remove(0));
        let state = self.pair.hosts[0].state("g")?;
        ensure!(state.as_deref() == Some("arriving"), "nobody gave it away, and it is {state:?}");
        self.stands_still_at(0).context("nobody gave it away")?;
        self.pair.hosts[0].ask("migrate cancel g")?;
        self.pair.hosts[0].wait_gone("g")
    }

    /// It never ran at the target, which forgets it.
    fn source_dies_copying(&mut self) -> Result<()> {
        self.pair.hosts[0].ask("vm migrate g to b --downtime 1 --timeout 100 --bandwidth 1")?;
        self.pair.wait_move(0, "copying", |status| status["bytes"].as_u64() > Some(0))?;
        drop(self.pair.hosts.remove(0));
        self.pair.hosts[0].wait_gone("g")?;
        self.rebirth(0)
    }

    /// It runs at the target, and most of its memory is at the source.
    fn come_to_serving(&mut self) -> Result<()> {
        start_with(&mut self.pair.hosts[0], 8, "")?;
        self.pair.hosts[0].ask("vm migrate g to b --downtime 1 --timeout 1 --strategy postcopy --bandwidth 1")?;
        self.pair.wait_move(0, "sending the rest", |_| true)
    }

    fn target_dies_serving(&mut self) -> Result<()> {
        self.come_to_serving()?;
        self.pair.hosts.pop();
        self.rebirth(1)?;
        let lost = self.pair.wait_end(0)?;
        ensure!(lost["phase"] == "lost", "it ran on a host that died: {lost}");
        self.pair.hosts[0].wait_state("g", "crashed", COMMAND_LIMIT)?;
        self.pair.hosts[0].ask("vm delete g").map(drop)
    }

    fn source_dies_serving(&mut self) -> Result<()> {
        self.come_to_serving()?;
        drop(self.pair.hosts.remove(0));
        self.pair.hosts[0].wait_state("g", "paused", COMMAND_LIMIT)?;
        for order in ["vm resume g", "vm save g --to nowhere", "vm migrate g to a"] {
            let refusal = self.pair.hosts[0].refusal(order)?;
            ensure!(refusal.contains("still on its way"), "`{order}`: {refusal}");
        }
        self.pair.hosts[0].ask("vm kill g")?;
        self.pair.hosts[0].wait_state("g", "stopped", COMMAND_LIMIT)
    }

    /// Switches a host on again that died.
    fn rebirth(&mut self, index: usize) -> Result<()> {
        let reborn = self.artifacts.boot(&(self.machine)(index)?)?;
        self.pair.hosts.insert(index, reborn);
        self.pair.introduce(index)
    }

    /// Sees the guest run where it is now, with all of its memory.
    fn goes_on_at(&mut self, index: usize) -> Result<()> {
        let state = self.pair.hosts[index].state("g")?;
        ensure!(state.as_deref() == Some("running"), "it is {state:?}");
        self.last = check(&mut self.pair.hosts[index], self.last)?;
        Ok(())
    }

    /// Sees the guest not run.
    fn stands_still_at(&mut self, index: usize) -> Result<()> {
        let host = &mut self.pair.hosts[index];
        let before = host.ask("vm show g")?["exits"].clone();
        std::thread::sleep(std::time::Duration::from_millis(500));
        let after = host.ask("vm show g")?["exits"].clone();
        ensure!(before == after, "it runs: {before} exits, then {after}");
        Ok(())
    }
}
