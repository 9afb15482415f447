//! The transport as a driver sees it: capabilities, negotiation, interrupts, reset; and hostile register accesses.

use super::*;
use crate::testing::{BUFFERS, Driver, IO_BASE, MMIO_BASE, VECTOR_NONE, config_interrupt, queue_interrupt};
use crate::{Blk, Console, Net, Rng, blk::BlkConfig, net::NetConfig};
use proptest::prelude::*;

fn driver() -> Driver<Blk> {
    Driver::new(Blk::new(BlkConfig::new(1000)))
}

fn net() -> Net {
    Net::new(NetConfig { mac: [2, 0, 0, 0, 0, 1], mtu: 1500, offloads: true })
}

impl<D: Device> Driver<D> {
    fn config_read(&mut self, offset: u16, size: u8) -> u32 {
        self.function.config_read(offset, size, &mut self.signals)
    }

    /// BAR, offset and length in the capability of one kind.
    fn structure(&mut self, kind: u8) -> (u32, u32, u32) {
        let at = self.capability_of(kind);
        (self.config_read(at + 4, 1), self.config_read(at + 8, 4), self.config_read(at + 12, 4))
    }

    fn capability_of(&mut self, kind: u8) -> u16 {
        self.capability(CAPABILITY_VENDOR, |found| found == kind)
    }

    /// Goes without MSI-X.
    fn use_pin(&mut self) {
        let at = self.capability(pci::CAPABILITY_MSIX, |_| true);
        self.config_write(at + 2, 2, 0);
    }
}

impl Driver<Blk> {
    /// Has the device use one chain and tell.
    fn use_one(&mut self) {
        let head = self.rings[0].add(&self.memory, &[(BUFFERS, 16, false), (BUFFERS + 16, 1, true)]);
        self.put(BUFFERS, &4u128.to_le_bytes());
        self.rings[0].set_used_event(&self.memory, head / 2);
        assert!(self.function.next_request(&self.memory, &mut crate::blk::Request::default()));
        self.function.complete(&self.memory, head, crate::blk::Outcome::Ok);
        self.function.notify_if_needed(&self.memory, &mut self.signals);
    }
}

#[test]
fn identity_and_capabilities() {
    let mut driver = driver();
    assert_eq!(driver.config_read(0, 4), 0x1042_1af4);
    assert_eq!(driver.config_read(8, 4), 0x0180_0001);
    assert_eq!(driver.config_read(0x3d, 1), 1);
    assert_eq!(driver.structure(CAPABILITY_COMMON), (1, 0, 60));
    assert_eq!(driver.structure(CAPABILITY_ISR), (1, 0x1000, 1));
    assert_eq!(driver.structure(CAPABILITY_DEVICE), (1, 0x2000, 60));
    assert_eq!(driver.structure(CAPABILITY_NOTIFY), (0, 0, 4));
    let notify = driver.capability_of(CAPABILITY_NOTIFY);
    assert_eq!(driver.config_read(notify + 2, 1), 20, "length");
    assert_eq!(driver.config_read(notify + 16, 4), 0, "multiplier");
    let msix = driver.capability(pci::CAPABILITY_MSIX, |_| true);
    assert_eq!(driver.config_read(msix + 2, 2), 0x8001, "one queue and the configuration");
    assert_eq!(driver.config_read(msix + 4, 4), 0x3001);
    assert_eq!(driver.config_read(msix + 8, 4), 0x3801);
}

#[test]
fn bars_are_hit_where_they_are() {
    let mut driver = driver();
    let function = &driver.function;
    assert_eq!(function.port_hit(IO_BASE + 31), Some(31));
    assert_eq!((function.port_hit(IO_BASE - 1), function.port_hit(IO_BASE + 32)), (None, None));
    assert_eq!(function.mmio_hit(Gpa::new(u64::from(MMIO_BASE) + 0x3fff)), Some(0x3fff));
    assert_eq!(function.mmio_hit(Gpa::new(u64::from(MMIO_BASE) + 0x4000)), None);
    assert_eq!(function.mmio_hit(Gpa::new(1 << 32 | u64::from(MMIO_BASE))), None);
    driver.config_write(0x14, 4, 0xd000_0000);
    assert_eq!(driver.function.mmio_hit(Gpa::new(0xd000_0004)), Some(4));
    driver.config_write(4, 2, 0);
    assert_eq!(driver.function.mmio_hit(Gpa::new(0xd000_0004)), None);
    assert_eq!(driver.function.port_hit(IO_BASE), None);
}

#[test]
fn features_must_be_offered_and_modern() {
    let mut driver = driver();
    let offered = driver.offered();
    assert_eq!(offered & (F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX), F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX);
    for (features, accepted) in
        [(offered & !F_VERSION_1, false), (offered | 1 << 40, false), (F_VERSION_1, true), (offered, true)]
    {
        driver.reset();
        assert_eq!(driver.negotiate(features), accepted, "{features:x}");
        assert_eq!(driver.function.driver_features(), if accepted { features } else { 0 });
    }
    driver.write(8, 4, 1);
    driver.write(12, 4, 0);
    assert_eq!(driver.read(12, 4), 1, "settled");
    driver.write(0, 4, 2);
    assert_eq!(driver.read(4, 4), 0, "there are 64");
}

#[test]
fn net_features_depend_on_each_other() {
    let mut driver = Driver::new(net());
    for (features, accepted) in
        [(1u64 << 7, false), (1 << 7 | 1 << 1, true), (1 << 11, false), (1 << 23, false), (1 << 23 | 1 << 17, true)]
    {
        driver.reset();
        assert_eq!(driver.negotiate(features | F_VERSION_1), accepted, "{features:x}");
    }
}

#[test]
fn queues_are_set_up_once() {
    let mut driver = driver();
    driver.write(24, 2, 16);
    driver.write(32, 8, 0x1234_5670);
    driver.write(28, 2, 0);
    assert_eq!((driver.read(24, 2), driver.read(28, 2)), (256, 1), "running");
    assert_eq!(driver.read(32, 8), driver.rings[0].descriptors);
    driver.write(26, 2, 7);
    assert_eq!(driver.read(26, 2), VECTOR_NONE, "no such vector");
    driver.write(22, 2, 1);
    assert_eq!((driver.read(24, 2), driver.read(18, 2)), (0, 1), "no such queue");
    driver.reset();
    driver.write(28, 2, 1);
    assert_eq!(driver.read(28, 2), 0, "not before the features");
    driver.write(20, 1, 4);
    assert!(!driver.function.live(), "nor is the device");
}

#[test]
fn kicks_need_a_live_device() {
    let mut driver = driver();
    let kick = |driver: &mut Driver<Blk>, offset, value| {
        driver.function.port_write(offset, 2, value, &mut driver.signals);
        driver.take_signals()
    };
    assert_eq!(kick(&mut driver, 0, 0), [Signal::Kicked(0)]);
    assert_eq!(kick(&mut driver, 0, 1), []);
    assert_eq!(kick(&mut driver, 4, 0), []);
    driver.config_write(4, 2, 0b011);
    assert_eq!(kick(&mut driver, 0, 0), [], "no bus master");
    driver.config_write(4, 2, 0b111);
    assert_eq!(driver.take_signals(), [Signal::Kicked(0)], "what was missed");
    driver.reset();
    driver.take_signals();
    assert_eq!(kick(&mut driver, 0, 0), []);
    let features = driver.offered();
    driver.bring_up(features);
    assert_eq!(driver.take_signals(), [Signal::Kicked(0)], "buffers may be there before the device is ready");
}

#[test]
fn the_pin_follows_isr_status() {
    let mut driver = driver();
    driver.use_pin();
    driver.use_one();
    assert_eq!(driver.take_signals(), [Signal::Line(true)]);
    assert_eq!(driver.config_read(6, 2) & 8, 8);
    driver.use_one();
    assert_eq!(driver.take_signals(), [], "it is up");
    driver.config_write(4, 2, 0x407);
    assert_eq!(driver.take_signals(), [Signal::Line(false)]);
    assert_eq!(driver.config_read(6, 2) & 8, 8, "wanted but forbidden");
    driver.config_write(4, 2, 7);
    assert_eq!(driver.take_signals(), [Signal::Line(true)]);
    assert_eq!(driver.read(0x1000, 1), 1);
    assert_eq!(driver.take_signals(), [Signal::Line(false)]);
    assert_eq!(driver.read(0x1000, 1), 0, "cleared by the read");
    driver.function.resize(1, &mut driver.signals);
    assert_eq!(driver.read(0x1000, 1), 2);
    assert_eq!(driver.take_signals(), [Signal::Line(true), Signal::Line(false)]);
}

#[test]
fn masked_messages_wait() {
    let mut driver = driver();
    driver.write(0x3000 + 16 + 12, 4, 1);
    driver.use_one();
    assert_eq!(driver.take_signals(), []);
    assert_eq!(driver.read(0x3800, 8), 2);
    driver.write(0x3000 + 16 + 12, 4, 0);
    assert_eq!(driver.take_signals(), [queue_interrupt(0)]);
    let at = driver.capability(pci::CAPABILITY_MSIX, |_| true);
    driver.config_write(at + 2, 2, 0xc000);
    driver.use_one();
    driver.function.resize(1, &mut driver.signals);
    assert_eq!(driver.take_signals(), []);
    driver.config_write(at + 2, 2, 0x8000);
    assert_eq!(driver.take_signals(), [config_interrupt(), queue_interrupt(0)]);
    driver.write(26, 2, VECTOR_NONE);
    driver.use_one();
    assert_eq!((driver.take_signals(), driver.read(0x1000, 1)), (vec![], 0), "no vector, no interrupt");
}

#[test]
fn reset_brings_everything_back() {
    let mut driver = driver();
    driver.use_pin();
    driver.use_one();
    driver.take_signals();
    driver.reset();
    assert_eq!(driver.take_signals(), [Signal::Line(false), Signal::Reset]);
    for (offset, size, value) in [(12, 4, 0), (16, 2, VECTOR_NONE), (20, 1, 0), (26, 2, VECTOR_NONE), (28, 2, 0)] {
        assert_eq!(driver.read(offset, size), value, "{offset}");
    }
    assert_eq!((driver.read(32, 8), driver.read(0x1000, 1)), (0, 0));
    driver.reset();
    assert_eq!(driver.take_signals(), [], "it was");
}

#[test]
fn a_held_reset_is_seen_to_last() {
    let mut driver = driver();
    driver.reset();
    driver.function.hold_reset();
    assert_ne!(driver.read(20, 1), 0);
    driver.write(20, 1, 1);
    driver.function.finish_reset();
    assert_eq!(driver.read(20, 1), 0);
}

#[test]
fn structures_are_reached_through_the_window() {
    let mut driver = driver();
    let window = driver.capability_of(CAPABILITY_WINDOW);
    let aim = |driver: &mut Driver<Blk>, bar, offset, length| {
        driver.config_write(window + 4, 1, bar);
        driver.config_write(window + 8, 4, offset);
        driver.config_write(window + 12, 4, length);
    };
    aim(&mut driver, 1, 18, 2);
    assert_eq!(driver.config_read(window + 16, 4), 1, "queues");
    aim(&mut driver, 1, 16, 2);
    driver.config_write(window + 16, 4, 1);
    assert_eq!(driver.read(16, 2), 1);
    aim(&mut driver, 0, 0, 2);
    driver.config_write(window + 16, 4, 0);
    assert_eq!(driver.take_signals(), [Signal::Kicked(0)]);
    for (bar, offset, length) in [(1, 1, 2), (1, 0, 3), (1, u32::MAX - 3, 4), (0, 0x1_0000, 2), (9, 0, 4), (1, 0, 8)] {
        aim(&mut driver, bar, offset, length);
        driver.config_write(window + 16, 4, 0);
        assert_eq!(driver.config_read(window + 16, 4), 0);
    }
    assert_eq!(driver.take_signals(), []);
}

/// Everything a device can be asked to do, a few times; the numbers of rounds bound the work.
trait Exercise: Device + Sized {
    fn exercise(function: &mut Function<Self>, memory: &guestmem::GuestMemory, signals: &mut Vec<Signal>);
}

impl Exercise for Blk {
    fn exercise(function: &mut Function<Self>, memory: &guestmem::GuestMemory, signals: &mut Vec<Signal>) {
        let mut request = crate::blk::Request::default();
        for round in 0..20 {
            if function.next_request(memory, &mut request) {
                assert!(request.sector + request.sectors <= 1000 && request.pieces.len() <= 258);
                function.complete(memory, request.id, crate::blk::Outcome::Ok);
            }
            function.complete(memory, round, crate::blk::Outcome::IoError);
        }
        function.notify_if_needed(memory, signals);
    }
}

impl Exercise for Net {
    fn exercise(function: &mut Function<Self>, memory: &guestmem::GuestMemory, signals: &mut Vec<Signal>) {
        let mut frame = crate::net::TxFrame::new();
        for _ in 0..10 {
            if function.transmit(memory, &mut frame) {
                assert!((14..=crate::net::FRAME_BYTES_MAX).contains(&frame.bytes.len()));
            }
            let _ = function.receive(memory, &crate::net::NetHeader::default(), &[0xff; 1500]);
            function.has_receive_buffers(memory);
        }
        function.notify_transmit(memory, signals);
        function.notify_receive(memory, signals);
        function.control(memory, signals);
        function.announce(signals);
    }
}

impl Exercise for Console {
    fn exercise(function: &mut Function<Self>, memory: &guestmem::GuestMemory, signals: &mut Vec<Signal>) {
        let mut out = Vec::new();
        function.take_output(memory, &mut out, signals);
        assert!(out.len() <= 128 << 10);
        assert!(function.input(memory, &[7; 100], signals) <= 100);
    }
}

impl Exercise for Rng {
    fn exercise(function: &mut Function<Self>, memory: &guestmem::GuestMemory, signals: &mut Vec<Signal>) {
        for _ in 0..10 {
            if let Some((head, bytes)) = function.wanted(memory) {
                assert!((1..=4096).contains(&bytes));
                function.fill(memory, head, &[1; 8192], signals);
            }
        }
    }
}

/// One thing a hostile guest does.
#[derive(Clone, Debug)]
enum Act {
    Config(u16, u8, u32),
    Mmio(u32, u8, u64),
    Port(u16, u32),
    /// A 16-bit word of a ring: its queue, where in it, what.
    Ring(usize, u64, u16),
    /// A descriptor somewhere in a table, with a length and an address that are likely to be close to right.
    Descriptor(usize, u16, u64, u32, u16, u16),
    /// Bytes where requests are.
    Data(u64, u64),
    Serve,
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    let size = prop_oneof![Just(1u8), Just(2), Just(4), Just(8)];
    let word = prop_oneof![0u64..8, any::<u64>()];
    let address = prop_oneof![
        (0u64..0x100).prop_map(|offset| BUFFERS + 16 * offset),
        Just(crate::testing::END - 8),
        Just(u64::MAX - 3),
        any::<u64>(),
    ];
    let bytes = prop_oneof![0u32..40, Just(512), Just(513), Just(4096), any::<u32>()];
    prop_oneof![
        1 => (any::<u16>(), 1u8..=4, any::<u32>()).prop_map(|(at, size, value)| Act::Config(at, size, value)),
        1 => (0x40u16..0xc0, 1u8..=4, any::<u32>()).prop_map(|(at, size, value)| Act::Config(at, size, value)),
        1 => (0u32..0x3900, size, word.clone()).prop_map(|(at, size, value)| Act::Mmio(at, size, value)),
        1 => (0u16..8, 0u32..5).prop_map(|(at, value)| Act::Port(at, value)),
        4 => (0usize..3, 0u64..12, 0u16..300).prop_map(|(queue, at, value)| Act::Ring(queue, at, value)),
        8 => (0usize..3, 0u16..6, address.clone(), bytes, 0u16..8, 0u16..8)
            .prop_map(|(queue, index, at, bytes, flags, next)| Act::Descriptor(queue, index, at, bytes, flags, next)),
        4 => (0u64..0x1000, word).prop_map(|(at, value)| Act::Data(at, value)),
        4 => Just(Act::Serve),
        1 => Just(Act::Restart),
    ]
}

fn attack<D: Exercise>(device: D, acts: &[Act]) {
    let mut driver = Driver::new(device);
    let queues = driver.rings.len();
    for act in acts.iter().cloned() {
        match act {
            Act::Config(at, size, value) => {
                driver.config_write(at, size, value);
                driver.config_read(at, size);
            }
            Act::Mmio(at, size, value) => {
                driver.write(at, size, value);
                driver.read(at, size);
            }
            Act::Port(at, value) => driver.function.port_write(at, 2, value, &mut driver.signals),
            Act::Ring(queue, at, value) => {
                let ring = driver.rings[queue % queues].clone();
                driver.memory.store(Gpa::new(ring.available + 2 * at), 2, value.into()).unwrap();
            }
            Act::Descriptor(queue, index, at, bytes, flags, next) => {
                let ring = driver.rings[queue % queues].clone();
                let table = if index < 4 { ring.descriptors } else { BUFFERS };
                ring.set_descriptor(&driver.memory, table, index % 4, (at, bytes, flags, next));
            }
            Act::Data(at, value) => driver.put(BUFFERS + at, &value.to_le_bytes()),
            Act::Serve => D::exercise(&mut driver.function, &driver.memory, &mut driver.signals),
            Act::Restart => {
                driver.reset();
                driver.function.place_bars(IO_BASE, MMIO_BASE);
                driver.config_write(4, 2, 7);
                let features = driver.offered();
                driver.bring_up(features);
            }
        }
        assert!(driver.take_signals().len() <= 100);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn hostile_guests_of_blk(acts in prop::collection::vec(act(), 1..80)) {
        attack(Blk::new(BlkConfig::new(1000)), &acts);
    }

    #[test]
    fn hostile_guests_of_net(acts in prop::collection::vec(act(), 1..80)) {
        attack(net(), &acts);
    }

    #[test]
    fn hostile_guests_of_console(acts in prop::collection::vec(act(), 1..80)) {
        attack(Console::new(), &acts);
    }

    #[test]
    fn hostile_guests_of_rng(acts in prop::collection::vec(act(), 1..80)) {
        attack(Rng::new(), &acts);
    }
}
