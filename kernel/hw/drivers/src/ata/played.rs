//! What the tests of ATA disks share: disks on controllers that they play, and time that passes as they say.

use addr::Hpa;
use block::{Disk, HostRun, IoError, Op, SubmitError, Transfer};
use core::cell::Cell;
use proptest::prelude::*;

/// A clock that runs 100 ms a look.
pub(crate) fn clock() -> impl Fn() -> u64 {
    let now_ns = Cell::new(0);
    move || now_ns.replace(now_ns.get() + 100_000_000)
}

/// What a broken device shows, now and then.
pub(crate) struct Noise {
    /// One read in so many gives nonsense; 0 for none.
    pub(crate) rate: u64,
    state: Cell<u64>,
}

impl Noise {
    pub(crate) fn new(rate: u64, seed: u64) -> Self {
        Self { rate, state: Cell::new(seed) }
    }

    pub(crate) fn nonsense(&self) -> Option<u32> {
        // Knuth's multiplier (MMIX).
        let state = self.state.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.state.set(state);
        let value = state >> 16;
        (self.rate != 0 && value.is_multiple_of(self.rate)).then_some((value >> 16) as u32)
    }
}

/// A transfer of a sector at 100000h times its id.
pub(crate) fn submit(disk: &mut dyn Disk, id: u64, op: Op) -> Result<(), SubmitError> {
    let runs = [HostRun { start: Hpa::new(id << 20), bytes: 512 }];
    match op {
        Op::Flush => disk.submit(&Transfer { id, op, sector: 0, sectors: 0, runs: &[] }),
        _ => disk.submit(&Transfer { id, op, sector: id, sectors: 1, runs: &runs }),
    }
}

/// The transfers that ended.
pub(crate) fn ended(disk: &mut dyn Disk) -> Vec<(u64, Result<(), IoError>)> {
    let mut all: Vec<_> = core::iter::from_fn(|| disk.completed()).collect();
    // The first `None` stands for "wait for the interrupt".
    all.extend(core::iter::from_fn(|| disk.completed()));
    all
}

/// Lets seconds pass in small steps.
pub(crate) fn pass(disk: &mut dyn Disk, from_ns: u64, seconds: u64) -> u64 {
    let end_ns = from_ns + seconds * 1_000_000_000;
    (from_ns..end_ns).step_by(10_000_000).for_each(|now_ns| {
        disk.tick(now_ns);
    });
    end_ns
}

/// What is done with a disk: transfers, time, and what the device does ([`each_ends_once`]'s `act`), each with a value.
pub(crate) fn steps() -> impl Strategy<Value = Vec<(u8, u8)>> {
    prop::collection::vec((0_u8..6, any::<u8>()), 1..60)
}

/// Takes the steps, then lets seconds pass in which the device is silent: each transfer ends, once.
pub(crate) fn each_ends_once(
    disk: &mut dyn Disk,
    steps: Vec<(u8, u8)>,
    act: impl Fn(Act, u8),
    seconds: u64,
) -> Result<(), TestCaseError> {
    let (mut under_way, mut now_ns) = (Vec::new(), 0);
    for (id, (step, value)) in (1..).zip(steps) {
        match step {
            0 | 1 => {
                let op = [Op::Read, Op::Write, Op::Flush][usize::from(value) % 3];
                under_way.extend(submit(disk, id, op).is_ok().then_some(id));
                disk.kick();
            }
            2 => act(Act::Done, value),
            3 => act(Act::Fail, value),
            _ => {
                now_ns += u64::from(value) << 26;
                disk.tick(now_ns);
            }
        }
        for (id, _) in ended(disk) {
            let place = under_way.iter().position(|other| *other == id);
            prop_assert!(place.is_some(), "transfer {} ended twice", id);
            under_way.remove(place.unwrap());
        }
    }
    act(Act::Leave, 0);
    for _ in 0..seconds {
        now_ns = pass(disk, now_ns, 1);
        let now_ended: Vec<_> = ended(disk).into_iter().map(|(id, _)| id).collect();
        under_way.retain(|id| !now_ended.contains(id));
    }
    prop_assert!(under_way.is_empty(), "{:?} never ended", under_way);
    Ok(())
}

/// What a device does.
#[derive(Clone, Copy)]
pub(crate) enum Act {
    /// Ends a command well.
    Done,
    /// Fails a command.
    Fail,
    /// Is silent from now on.
    Leave,
}
