//! Does everything wrong that a guest can do wrong, and checks that it still runs.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "`guest!` exports a symbol, and wild accesses are the point")]

use guests::random::Random;
use guests::virtio_blk::{QUEUE_SIZE, Rings, VirtioBlk, common, flag, place};
use guests::{apic, boot, cpu, guest, interrupts, legacy, mmio, pci, println, tap};

guest!(wild);

const ACCESSES: u32 = 2000;
/// No memory of any guest this small reaches here, and the page tables do not map it.
const BEYOND: u64 = 1 << 45;
/// Where no memory is and the page tables reach: the PCI window.
const HOLE: u64 = 0xf000_0000;

fn wild() {
    let canary = Canary::place();
    ports(&mut Random::new(1));
    legacy::start_pics(0xffff);
    legacy::stop_pit();
    tap::check(canary.lives(), "wild ports are survived");
    msrs(&mut Random::new(2));
    tap::check(canary.lives(), "wild MSRs are survived");
    holes(&mut Random::new(3));
    tap::check(canary.lives(), "wild accesses to holes are survived");
    interrupt_controllers(&mut Random::new(4));
    tap::check(canary.lives(), "garbage in the interrupt controllers is survived");
    configuration_space(&mut Random::new(5));
    tap::check(canary.lives(), "garbage in configuration space is survived");
    match VirtioBlk::find() {
        Some(disk) => virtio(&disk, &canary),
        None => tap::skip("a virtio disk that is driven wrongly is survived", "no virtio disk"),
    }
}

/// A page of memory that must not change.
struct Canary(u64);

impl Canary {
    const WORD: u64 = 0x5ca1_ab1e_0ddb_a115;

    fn place() -> Self {
        let canary = Self(boot::free_memory().0 + 0x10_0000);
        // SAFETY: free memory.
        canary.words().for_each(|at| unsafe { mmio::write(at, 8, Self::WORD) });
        canary
    }

    fn words(&self) -> impl Iterator<Item = u64> + use<> {
        (self.0..self.0 + 4096).step_by(8)
    }

    fn lives(&self) -> bool {
        // SAFETY: as `place`.
        self.words().all(|at| unsafe { mmio::read(at, 8) } == Self::WORD)
    }
}

/// Whether a 4-byte access reaches a port that ends the guest or its output, or reaches memory by its definition:
/// reset (0x64, 0x92, 0xCF9), COM1, the ACPI block, QEMU's SMI trigger, exit device and firmware configuration.
fn is_spared(port: u16) -> bool {
    (port..=port.saturating_add(3)).any(|port| {
        matches!(port, 0x60..=0x64 | 0x92 | 0xb2 | 0x3f8..=0x3ff | 0x501..=0x51f | 0x600..=0x67f | 0xcf8..=0xcff)
    })
}

fn ports(random: &mut Random) {
    for _ in 0..ACCESSES {
        // Half of them where devices are.
        let bound = if random.below(2) == 0 { 0x1_0000 } else { 0x1000 };
        let port = random.below(bound) as u16;
        if is_spared(port) {
            continue;
        }
        let value = random.next() as u32;
        match random.below(6) {
            0 => cpu::out8(port, value as u8),
            1 => cpu::out16(port, value as u16),
            2 => cpu::out32(port, value),
            3 => drop(cpu::in8(port)),
            4 => drop(cpu::in16(port)),
            _ => drop(cpu::in32(port)),
        }
    }
}

/// Registers whose change would end the guest as it would on hardware: its own mode, IPIs, its APIC.
fn is_own(index: u32) -> bool {
    const COMMAND: u32 = 0x830;
    const SELF_IPI: u32 = 0x83f;
    matches!(index, cpu::msr::APIC_BASE | COMMAND | SELF_IPI | cpu::msr::EFER)
}

fn msrs(random: &mut Random) {
    const RANGES: [(u32, u64); 6] =
        [(0, 0x1000), (0x4000_0000, 0x200), (0x4b56_4d00, 8), (0xc000_0000, 0x200), (0xc001_0000, 0x200), (0, 1 << 32)];
    let (mut faults, mut done) = (0, 0);
    for _ in 0..ACCESSES {
        let (start, count) = RANGES[random.below(RANGES.len() as u64) as usize];
        let index = start.wrapping_add(random.below(count) as u32);
        let value = random.next() >> random.below(64);
        // What takes an address gets one that is no memory: a paravirtual clock would write there.
        let value = if (0x4000_0000..0x5000_0000).contains(&index) || matches!(index, 0x11 | 0x12) {
            value | BEYOND
        } else {
            value
        };
        let fault = interrupts::catch(|| {
            cpu::read_msr(index);
            if !is_own(index) {
                // SAFETY: no code here depends on what the others hold.
                unsafe { cpu::write_msr(index, value) };
            }
        });
        if fault.is_some() { faults += 1 } else { done += 1 }
    }
    println!("# MSRs: {done} taken, {faults} refused");
}

fn holes(random: &mut Random) {
    let (start, bytes) = boot::free_memory();
    let memory_end = start + bytes;
    for _ in 0..ACCESSES {
        // Between the end of memory and the interrupt controllers, or in the video area.
        let at = match random.below(4) {
            0 => 0xa_0000 + random.below(0x2_0000 - 8),
            1 => HOLE + random.below(0xec0_0000 - 8),
            _ => memory_end + random.below(0xfec0_0000 - memory_end - 8),
        };
        let size = 1 << random.below(4);
        let value = random.next();
        interrupts::catch(|| {
            // SAFETY: no memory is there; devices that are there have not been started.
            unsafe {
                mmio::read(at, size);
                mmio::write(at, size, value);
            }
        });
    }
}

fn interrupt_controllers(random: &mut Random) {
    for _ in 0..ACCESSES / 2 {
        // Redirections stay masked: an INIT through one would do what it says.
        legacy::write_ioapic(random.below(256) as u8, random.next() as u32 | 1 << 16);
        legacy::read_ioapic(random.below(256) as u8);
        local_apic_page(random);
    }
    (0..24).for_each(|pin| legacy::route(pin, None, 0));
    apic::start();
}

/// One wild access to each controller's page.
fn local_apic_page(random: &mut Random) {
    const IOAPIC: u64 = 0xfec0_0000;
    const LOCAL_APIC: u64 = 0xfee0_0000;
    /// IPIs would be sent, LVT entries would come as exceptions: both do what they say.
    const COMMAND_AND_LVT: core::ops::Range<u64> = 0x2f0..0x390;
    let at = random.below(0x1000 - 8);
    let size = 1 << random.below(4);
    let value = random.next();
    interrupts::catch(|| {
        // SAFETY: neither controller touches memory.
        unsafe {
            mmio::read(IOAPIC + at, size);
            mmio::read(LOCAL_APIC + at, size);
            if !COMMAND_AND_LVT.contains(&at) && !COMMAND_AND_LVT.contains(&(at + size as u64)) {
                mmio::write(LOCAL_APIC + at, size, value);
            }
        }
    });
}

fn configuration_space(random: &mut Random) {
    for _ in 0..ACCESSES {
        cpu::out32(0xcf8, random.next() as u32);
        cpu::in32(0xcfc + random.below(4) as u16);
    }
    for slot in 0..32 {
        let device = pci::Device(slot);
        if device.read(0) == u32::MAX || device.read(8) >> 24 == 0x06 {
            // Nobody there, or a bridge, which on a real board decodes this very access.
            continue;
        }
        let saved: [u32; 6] = core::array::from_fn(|bar| device.read(0x10 + 4 * bar as u8));
        device.disable();
        for _ in 0..50 {
            let value = random.next() as u32;
            device.write(0x10 + 4 * random.below(6) as u8, value);
            // The read-only part, and what lies behind the header.
            device.write(random.below(4) as u8, value);
        }
        (0..).zip(saved).for_each(|(bar, value)| device.write(0x10 + 4 * bar, value));
    }
}

fn virtio(disk: &VirtioBlk, canary: &Canary) {
    println!("# virtio disk: common configuration at {:#x}", disk.common);
    tap::check(disk.serves(), "the virtio disk serves a good request");
    let attack = |name: &str, action: &dyn Fn(&VirtioBlk)| {
        action(disk);
        tap::check(canary.lives() && disk.serves(), name);
    };
    attack("ring addresses outside memory", &rings_outside);
    attack("queue sizes that are none", &queue_sizes);
    attack("descriptors in a loop", &descriptor_loop);
    attack("descriptors outside memory", &buffers_outside);
    attack("descriptors of 4 GiB", &huge_buffers);
    attack("chains from a head outside the table", &heads_outside);
    attack("an available index that runs away", &index_runs_away);
    attack("indirect tables that are none", &indirect_tables);
    attack("chains of the wrong shape", &wrong_shapes);
    attack("a reset with requests in flight", &reset_in_flight);
    attack("garbage in the registers", &register_garbage);
}

/// How long an attacked device is given to do its worst.
fn pause() {
    cpu::wait_until(2_000_000, || false);
}

fn rings_outside(disk: &VirtioBlk) {
    let good = disk.rings();
    let end = boot::free_memory().0 + boot::free_memory().1;
    for address in [BEYOND, HOLE, u64::MAX - 7, !0xfff, end - 8, 1, 0xa_0000] {
        for part in 0..3 {
            let mut rings = good;
            *[&mut rings.descriptors, &mut rings.available, &mut rings.used][part] = address;
            disk.reset();
            disk.negotiate(false);
            disk.start(rings);
            disk.describe_read(place::DESCRIPTORS);
            disk.offer(0, 1);
            pause();
        }
    }
}

fn queue_sizes(disk: &VirtioBlk) {
    for size in [0, 3, 7, 0x7fff, 0x8000, 0xffff] {
        disk.reset();
        disk.negotiate(false);
        disk.start(Rings { size, ..disk.rings() });
        disk.describe_read(place::DESCRIPTORS);
        disk.offer(0, 1);
        pause();
    }
}

fn descriptor_loop(disk: &VirtioBlk) {
    disk.restart();
    let header = (disk.memory + place::HEADER, 16);
    disk.describe(place::DESCRIPTORS, 0, header, flag::NEXT, 1);
    disk.describe(place::DESCRIPTORS, 1, header, flag::NEXT, 0);
    disk.offer(0, 1);
    pause();
    disk.restart();
    disk.describe(place::DESCRIPTORS, 0, header, flag::NEXT, 0);
    disk.offer(0, 1);
    pause();
}

/// Offers reads whose descriptor `index` is replaced by each of `buffers`.
fn with_buffers(disk: &VirtioBlk, buffers: &[(u64, u32)]) {
    for buffer in buffers {
        for index in 0..3u16 {
            disk.restart();
            disk.describe_read(place::DESCRIPTORS);
            let flags = [flag::NEXT, flag::NEXT | flag::WRITE, flag::WRITE][usize::from(index)];
            disk.describe(place::DESCRIPTORS, index, *buffer, flags, (index + 1) % 3);
            disk.offer(0, 1);
            pause();
        }
    }
}

fn buffers_outside(disk: &VirtioBlk) {
    let end = boot::free_memory().0 + boot::free_memory().1;
    with_buffers(disk, &[(BEYOND, 512), (HOLE, 512), (u64::MAX, 512), (u64::MAX - 511, 512), (end - 4, 512)]);
}

fn huge_buffers(disk: &VirtioBlk) {
    let high = boot::free_memory().0 + boot::free_memory().1 - 0x1000;
    with_buffers(disk, &[(high, u32::MAX), (high, 0x8000_0000), (disk.memory + place::DATA, 0)]);
}

fn heads_outside(disk: &VirtioBlk) {
    for head in [QUEUE_SIZE, QUEUE_SIZE + 1, 0x7fff, 0xffff] {
        disk.restart();
        disk.describe_read(place::DESCRIPTORS);
        disk.offer(head, 1);
        pause();
        disk.restart();
        disk.describe(place::DESCRIPTORS, 0, (disk.memory + place::HEADER, 16), flag::NEXT, head);
        disk.offer(0, 1);
        pause();
    }
}

fn index_runs_away(disk: &VirtioBlk) {
    for index in [QUEUE_SIZE + 1, 0x7fff, 0x8000, 0xffff] {
        disk.restart();
        disk.describe_read(place::DESCRIPTORS);
        disk.offer(0, index);
        pause();
    }
}

fn indirect_tables(disk: &VirtioBlk) {
    let table = disk.memory + place::INDIRECT;
    for (address, bytes, flags) in [
        (table, 0, flag::INDIRECT),
        (table, 15, flag::INDIRECT),
        (table, u32::MAX, flag::INDIRECT),
        (table, 48, flag::INDIRECT | flag::NEXT),
        (table, 48, flag::INDIRECT | flag::WRITE),
        (BEYOND, 48, flag::INDIRECT),
        (disk.memory + place::DESCRIPTORS, 16, flag::INDIRECT),
    ] {
        disk.restart();
        disk.describe_read(place::INDIRECT);
        disk.describe(place::DESCRIPTORS, 0, (address, bytes), flags, 0);
        disk.offer(0, 1);
        pause();
    }
    // A table in a table.
    disk.restart();
    disk.describe(place::INDIRECT, 0, (table, 48), flag::INDIRECT, 0);
    disk.describe(place::DESCRIPTORS, 0, (table, 48), flag::INDIRECT, 0);
    disk.offer(0, 1);
    pause();
}

fn wrong_shapes(disk: &VirtioBlk) {
    let at = |offset| disk.memory + offset;
    let shapes: [&[((u64, u32), u16)]; 5] = [
        &[((at(place::HEADER), 16), 0)],
        &[((at(place::HEADER), 4), flag::NEXT), ((at(place::STATUS), 1), flag::WRITE)],
        &[((at(place::STATUS), 1), flag::WRITE)],
        &[((at(place::DATA), 512), flag::WRITE | flag::NEXT), ((at(place::HEADER), 16), 0)],
        &[
            ((at(place::HEADER), 16), flag::NEXT),
            ((at(place::DATA), 511), flag::WRITE | flag::NEXT),
            ((at(place::STATUS), 1), flag::WRITE),
        ],
    ];
    for shape in shapes {
        for (kind, sector) in [(0, 0), (0, u64::MAX), (1, u64::MAX >> 9), (0xffff_ffff, 0)] {
            disk.restart();
            disk.store(place::HEADER, 4, kind);
            disk.store(place::HEADER + 8, 8, sector);
            for (index, (buffer, flags)) in (0..).zip(shape) {
                disk.describe(place::DESCRIPTORS, index, *buffer, *flags, index + 1);
            }
            disk.offer(0, 1);
            pause();
        }
    }
}

fn reset_in_flight(disk: &VirtioBlk) {
    for _ in 0..20 {
        disk.restart();
        disk.describe_read(place::DESCRIPTORS);
        (1..=4).for_each(|index| disk.offer(0, index));
        disk.reset();
    }
}

fn register_garbage(disk: &VirtioBlk) {
    let mut random = Random::new(6);
    for _ in 0..ACCESSES / 2 {
        let (at, size) = (random.below(0x40), 1 << random.below(4));
        // The queue's addresses stay as they are: a device that is then started would write to this program.
        if at + size > common::QUEUE_DESC && at < common::QUEUE_DEVICE + 8
            || at < common::QUEUE_DESC && at + size > common::DEVICE_STATUS
        {
            disk.read(at, size as usize);
            continue;
        }
        disk.write(at, size as usize, random.next());
        disk.read(random.below(0x1000 - 8), size as usize);
    }
}
