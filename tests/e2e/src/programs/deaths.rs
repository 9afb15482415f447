//! A host dies when the target of a move is ready and has not heard the source's word. The guest checks its memory all the
//! time: it goes on at the source, or nowhere where that died.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::migrate::{EVERY, Pair, check, machine, modules, start};
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
    let mut stage = Stage::set(artifacts)?;
    stage.target_dies_ready().context("the target dies when it is ready")?;
    stage.source_dies_ready().context("the source dies when the target is ready")
}

impl<'a> Stage<'a> {
    fn set(artifacts: &'a Artifacts) -> Result<Self> {
        let wire = Wire::new("deaths", 2)?;
        let (netdevs, guest) = ([wire.netdev(0), wire.netdev(1)], modules(artifacts)?);
        let host = move |index: usize| {
            Ok(machine(artifacts, "migrate_deaths", index, &guest, &netdevs[index])?.memory_mib(512))
        };
        let mut pair = Pair::boot_with(&host, artifacts)?;
        start(&mut pair.hosts[0], "")?;
        Ok(Self { artifacts, pair, wire, machine: Box::new(host), last: EVERY })
    }

    /// The source has said everything, and does not hear that the target is ready.
    fn come_to_ready(&mut self) -> Result<()> {
        self.pair.hosts[0].ask("vm migrate g to b --downtime 60000 --bandwidth 1")?;
        // The hosts have compared their clocks before the first page, and no more answers are needed before the end.
        self.wait_move(0, "copying", |status| status["bytes"].as_u64() > Some(0))?;
        self.wire.mute(1, true);
        self.wait_move(1, "waiting for the word", |_| true)
    }

    fn target_dies_ready(&mut self) -> Result<()> {
        self.come_to_ready()?;
        self.pair.hosts.pop();
        self.wait_move(0, "taking back", |_| true)?;
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
        self.come_to_ready()?;
        drop(self.pair.hosts.remove(0));
        let state = self.pair.hosts[0].state("g")?;
        ensure!(state.as_deref() == Some("arriving"), "nobody gave it away, and it is {state:?}");
        self.stands_still_at(0).context("nobody gave it away")?;
        self.pair.hosts[0].ask("migrate cancel g")?;
        self.pair.hosts[0].wait_gone("g")
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

    /// Waits until a move is in this phase, and this is so.
    fn wait_move(&mut self, index: usize, phase: &str, is_so: fn(&Value) -> bool) -> Result<()> {
        let host = &mut self.pair.hosts[index];
        let until = host.emulator().elapsed() + COMMAND_LIMIT;
        loop {
            let status = host.ask("migrate status")?;
            let open = status.as_array().into_iter().flatten().any(|one| one["phase"] == phase && is_so(one));
            if open {
                return Ok(());
            }
            ensure!(host.emulator().elapsed() < until, host.emulator().failure(&format!("not {phase:?}: {status}")));
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }
}
