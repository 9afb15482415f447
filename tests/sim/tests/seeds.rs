//! Plays many seeds; one that fails is printed, and played alone with POLLUX_SIM_SEED.

use sim::{Tally, run};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Seeds that are played unless POLLUX_SIM_SEEDS says otherwise.
const SEEDS: u64 = 2000;
const THREADS: usize = 2;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[test]
fn every_seed_has_one_owner_and_loses_nothing() {
    if let Some(seed) = variable("POLLUX_SIM_SEED") {
        println!("{:?}", run(seed).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}")));
        return;
    }
    let seeds = variable("POLLUX_SIM_SEEDS").unwrap_or(SEEDS);
    let (next, sum, failed) = (AtomicU64::new(0), Mutex::new(Tally::default()), Mutex::new(Vec::new()));
    let play = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return;
            }
            match std::panic::catch_unwind(|| run(seed)) {
                Ok(Ok(tally)) => add(&mut sum.lock().unwrap(), tally),
                Ok(Err(wrong)) => failed.lock().unwrap().push(format!("seed {seed}: {wrong}")),
                Err(_) => failed.lock().unwrap().push(format!("seed {seed}: it panicked")),
            }
        }
    };
    std::thread::scope(|scope| (0..THREADS).for_each(|_| drop(scope.spawn(play))));
    let (sum, failed) = (sum.into_inner().unwrap(), failed.into_inner().unwrap());
    println!("{seeds} seeds: {sum:?}");
    assert!(failed.is_empty(), "{} of {seeds} seeds failed:\n{}", failed.len(), failed.join("\n"));
    // What is never seen is not tested.
    if seeds >= SEEDS {
        let Tally { moved, stayed, lost, split, stood, whole, withdrawn, cuts, deaths, corruptions, .. } = sum;
        assert!(
            [moved, stayed, lost, split, stood, whole, withdrawn, cuts, deaths, corruptions]
                .iter()
                .all(|&count| count > 50),
            "{sum:?}"
        );
    }
}

fn add(sum: &mut Tally, tally: Tally) {
    sum.moved += tally.moved;
    sum.stayed += tally.stayed;
    sum.lost += tally.lost;
    sum.split += tally.split;
    sum.stood += tally.stood;
    sum.whole += tally.whole;
    sum.withdrawn += tally.withdrawn;
    sum.cuts += tally.cuts;
    sum.deaths += tally.deaths;
    sum.corruptions += tally.corruptions;
    sum.steps += tally.steps;
}
