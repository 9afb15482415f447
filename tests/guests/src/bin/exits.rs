//! Times what leaves the guest: prints `BENCH name cycles`, the best of five rounds of a thousand, per operation. Run
//! directly on an emulator with SVM, it times the bare world switch too, the floor under all of them.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "`guest!` exports a symbol, and what is timed are bare instructions")]

use core::hint::black_box;
use guests::apic;
use guests::interrupts::{self, APIC_VECTOR};
use guests::{cpu, guest, mmio, println, tap, world_switch};

guest!(exits);

const ROUNDS: u32 = 5;
const REPEATS: u64 = 1000;
/// A port that takes everything: POST codes.
const POST_PORT: u16 = 0x80;
/// The last page of the PCI window, where no BAR is.
const UNBACKED: u64 = 0xfebf_f000;
const IPI_VECTOR: u8 = APIC_VECTOR + 1;

fn exits() {
    apic::start();
    if world_switch::is_available() {
        // SAFETY: once, and nothing else here uses SVM.
        unsafe { world_switch::prepare() };
        bench("world_switch", world_switch::round_trip);
        tap::check(world_switch::ended_by_cpuid(), "the floor was measured around CPUID");
    }
    bench("nothing", || {
        black_box(0);
    });
    bench("cpuid", || {
        black_box(cpu::cpuid(0, 0));
    });
    bench("port_write", || cpu::out8(POST_PORT, 0));
    bench("port_read", || {
        black_box(cpu::in8(POST_PORT));
    });
    // SAFETY: no memory and no device is there.
    bench("mmio_read", || unsafe {
        black_box(mmio::read(UNBACKED, 4));
    });
    // SAFETY: as above.
    bench("mmio_write", || unsafe { mmio::write(UNBACKED, 4, 0) });
    bench("msr_read", || {
        black_box(cpu::read_msr(cpu::msr::APIC_BASE));
    });
    if apic::has_tsc_deadline() {
        // SAFETY: zero disarms the timer.
        bench("msr_write", || unsafe { cpu::write_msr(cpu::msr::TSC_DEADLINE, 0) });
    } else {
        let base = cpu::read_msr(cpu::msr::APIC_BASE);
        // SAFETY: what it holds already.
        bench("msr_write", || unsafe { cpu::write_msr(cpu::msr::APIC_BASE, base) });
    }
    cpu::enable_interrupts();
    let before = interrupts::count(IPI_VECTOR);
    bench("self_ipi", || {
        let seen = interrupts::count(IPI_VECTOR);
        apic::send_to_self(IPI_VECTOR);
        while interrupts::count(IPI_VECTOR) == seen {
            core::hint::spin_loop();
        }
    });
    cpu::disable_interrupts();
    let sent = ROUNDS * REPEATS as u32;
    tap::check(interrupts::count(IPI_VECTOR).wrapping_sub(before) == sent, "every IPI arrived");
}

fn bench(name: &str, mut operation: impl FnMut()) {
    let best = (0..ROUNDS).map(|_| {
        let start = cpu::tsc();
        (0..REPEATS).for_each(|_| operation());
        cpu::tsc() - start
    });
    println!("BENCH {name} {}", best.min().unwrap_or(0) / REPEATS);
}
