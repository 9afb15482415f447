//! Pollux: the parts put together. Start-up, one line a step, then every CPU into its loop.
#![no_std]
#![no_main]

extern crate alloc;

mod backend;
mod commands;
mod cpu_loop;
mod epitaph;
mod host;
mod host_console;
mod log_ring;
mod management;
mod network;
mod probe;
mod services;
mod storage;
mod time;
mod vm;

use boot::BootInfo;
use host::Host;
use memory::Stack;
use platform::Platform;

boot::entry!(start);

/// The boot processor, from the loader's hand to its loop.
fn start(boot: Result<BootInfo, &'static str>) -> ! {
    log_ring::init();
    let boot = boot.unwrap_or_else(|error| panic!("{error}"));
    memory::init(&boot);
    log::info!("Pollux {} starts, loaded by {}", env!("CARGO_PKG_VERSION"), &*boot.loader);
    let platform = Platform::read(boot.rsdp);
    memory::protect(&boot);
    interrupts::init(epitaph::exception);
    prepare_processor(0);
    let clock = time::init(&platform);
    insn::warm_up();
    let backend = backend::Backend::detect();
    backend.enable(0);
    let config = probe::read_config(&boot);
    let (storage, network) = probe::devices();
    probe::route_serial_line(&platform);
    let host = host::init(Host::new(boot, platform, clock, backend, config, storage, network));
    start_other_processors(host);
    probe::report(host);
    vm::create_configured(host);
    cpu_loop::run(host, 0)
}

/// What every processor needs before interrupts: stacks, tables, its block, its local APIC.
fn prepare_processor(index: usize) {
    let stacks = [(); cpu::tables::SPECIAL_STACKS].map(|()| Stack::new().expect("memory for stacks").top());
    cpu::tables::load(stacks, interrupts::table());
    cpu::percpu::install(index);
    interrupts::local_apic::init();
}

/// Starts the processors that the firmware lists, one after the other.
fn start_other_processors(host: &'static Host) {
    smp::prepare();
    let own = interrupts::local_apic::id();
    host.cpus.add(own);
    for &apic_id in host.platform.cpus.iter().filter(|&&id| id != own) {
        let index = host.cpus.count();
        if index == cpu::percpu::CPUS_MAX {
            log::warn!("only {index} processors are used");
            break;
        }
        let Some(stack) = Stack::new() else { break };
        host.cpus.add(apic_id);
        if !smp::start(apic_id, index, host.clock.tsc_khz(), stack, start_secondary) {
            host.cpus.remove_last();
            log::warn!("the processor with APIC ID {apic_id} does not start");
        }
    }
}

/// Another processor, from its first Rust instruction to its loop.
extern "sysv64" fn start_secondary(index: usize) -> ! {
    memory::init_secondary();
    prepare_processor(index);
    let host = host::get();
    host.backend.enable(index);
    smp::begun();
    cpu_loop::run(host, index)
}
