//! Pollux: the parts put together. Start-up, one line a step, then every CPU into its loop.
#![no_std]
#![no_main]

extern crate alloc;

mod alarm;
mod backend;
mod commands;
mod confinement;
mod cpu_loop;
mod crew;
mod devices;
mod epitaph;
mod host;
mod host_console;
mod isa;
mod lines;
mod log_ring;
mod management;
mod measure;
mod migration;
mod network;
mod probe;
mod processor;
mod profiles;
mod saved;
mod screen;
mod serial;
mod services;
mod slot;
mod storage;
mod time;
mod turns;
mod vm;

use alloc::vec::Vec;
use boot::BootInfo;
use cpu::percpu::CPUS_MAX;
use cpu::tables::SPECIAL_STACKS;
use host::Host;
use memory::Stack;
use platform::Platform;
use spin::Once;

boot::entry!(start);

/// Word of the command line: an emulator, which speculates nothing, gets what the processor that it shows would need.
const MITIGATE_ALWAYS: &str = "mitigate-emulated";

/// The ends of each processor's special stacks.
static STACKS: [Once<[u64; SPECIAL_STACKS]>; CPUS_MAX] = [const { Once::new() }; CPUS_MAX];

/// The boot processor, from the loader's hand to its loop.
fn start(boot: Result<BootInfo, &'static str>) -> ! {
    let host = set_up(boot);
    probe::report(host);
    processor::report();
    vm::create_configured(host);
    cpu_loop::run(host, 0)
}

/// Finds what there is and makes the host of it. Not inlined: what it moves about would stay on the stack for ever.
#[inline(never)]
fn set_up(boot: Result<BootInfo, &'static str>) -> &'static Host {
    log_ring::init();
    let boot = boot.unwrap_or_else(|error| panic!("{error}"));
    memory::init(&boot);
    log::info!("Pollux {} starts, loaded by {}", env!("CARGO_PKG_VERSION"), &*boot.loader);
    let rsdp = platform::find_rsdp(boot.rsdp);
    memory::protect(&boot);
    interrupts::init(epitaph::exception);
    screen::init(&boot);
    make_stacks(0).expect("memory for stacks");
    cpu::speculation::init(boot.command_line.split_ascii_whitespace().any(|word| word == MITIGATE_ALWAYS));
    prepare_processor(0);
    let platform = Platform::read(rsdp);
    let clock = time::init(&platform);
    insn::warm_up();
    let backend = backend::Backend::detect();
    assert!(backend.enable(0), "what was detected a moment ago is there");
    let config = probe::read_config(&boot);
    confinement::start(&platform);
    isa::mask_all(&platform);
    let (storage, network) = probe::devices(&platform, clock);
    serial::choose(&platform);
    let has_smp_room = smp::has_room(&boot);
    let host = host::init(Host::new(boot, platform, clock, backend, config, storage, network));
    host.cpus.add(interrupts::local_apic::id());
    if has_smp_room {
        start_other_processors(host);
    } else {
        log::warn!("the pages where other processors start are in use: one processor");
    }
    host
}

/// Makes a processor's special stacks. The guard pages change the page tables, so only before other processors start.
fn make_stacks(index: usize) -> Option<()> {
    let mut tops = [0; SPECIAL_STACKS];
    for top in &mut tops {
        *top = Stack::special()?.top();
    }
    STACKS[index].call_once(|| tops);
    Some(())
}

/// What every processor needs before interrupts: tables, its block, its local APIC.
fn prepare_processor(index: usize) {
    let stacks = STACKS[index].get().expect("the processor's stacks were made");
    cpu::tables::load(*stacks, interrupts::table());
    cpu::percpu::install(index);
    interrupts::local_apic::init();
    cpu::speculation::enable();
    cpu::machine_check::enable();
}

/// Starts the processors that the firmware lists, one after the other.
fn start_other_processors(host: &'static Host) {
    let own = interrupts::local_apic::id();
    let mut others: Vec<u32> = host.platform.cpus.iter().copied().filter(|&id| id != own).collect();
    others.retain(|&id| interrupts::local_apic::reaches(id));
    if others.len() < host.platform.cpus.len().saturating_sub(1) {
        log::warn!("processors with APIC IDs above 254 are not used: there is no x2APIC");
    }
    if others.len() >= CPUS_MAX {
        log::warn!("only {CPUS_MAX} processors are used");
    }
    // All stacks first: see `make_stacks`. A number whose processor does not start goes to the next.
    let stacks: Vec<Stack> =
        (1..CPUS_MAX).take(others.len()).map_while(|index| make_stacks(index).and_then(|()| Stack::new())).collect();
    smp::prepare();
    let mut stacks = stacks.into_iter();
    let mut stack = stacks.next();
    for apic_id in others {
        let Some(own_stack) = stack else { break };
        let index = host.cpus.count();
        host.cpus.add(apic_id);
        if smp::start(apic_id, index, host.clock.tsc_khz(), own_stack, start_secondary) {
            stack = stacks.next();
        } else {
            host.cpus.remove_last();
            log::warn!("the processor with APIC ID {apic_id} does not start");
        }
    }
}

/// Another processor, from its first Rust instruction to its loop.
extern "sysv64" fn start_secondary(index: usize) -> ! {
    smp::arrive(index);
    memory::init_secondary();
    prepare_processor(index);
    let host = host::get();
    if !host.backend.enable(index) {
        // Who started it gives up on it, with a message.
        cpu::halt_forever();
    }
    smp::begun(index);
    cpu_loop::run(host, index)
}
