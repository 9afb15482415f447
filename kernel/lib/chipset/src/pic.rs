//! The two cascaded 8259A interrupt controllers and their edge/level control registers.
//!
//! The type is [`PicPair`]; `board` drives its inputs and passes its output on. Source: Intel 8259A datasheet (December
//! 1988); ELCR as in the 82371SB (PIIX3) datasheet.

mod saved;

pub use saved::Saved;

/// The master's input that the slave drives.
const CASCADE: u8 = 2;
/// The input that a spurious interrupt claims to be.
const SPURIOUS: u8 = 7;

/// Both controllers.
#[derive(Clone, Debug)]
pub struct PicPair {
    master: Pic,
    slave: Pic,
}

impl PicPair {
    /// The pair before any initialisation word: nothing comes through.
    pub fn new() -> Self {
        // Inputs 0, 1, 2, 8 and 13 are edge-triggered for good.
        Self { master: Pic::new(0xf8), slave: Pic::new(0xde) }
    }

    /// Sets the level at ISA interrupt `irq` (0 to 15, not 2).
    pub fn set_line(&mut self, irq: u8, asserted: bool) {
        if irq < 8 {
            self.master.set_line(irq, asserted);
        } else {
            self.slave.set_line(irq & 7, asserted);
            self.cascade();
        }
    }

    /// The level of the INTR output.
    pub fn output(&self) -> bool {
        self.master.winner().is_some()
    }

    /// The processor's acknowledge cycle: the vector, that of a spurious interrupt if the reason is gone.
    pub fn acknowledge(&mut self) -> u8 {
        let irq = self.master.acknowledge();
        let vector = if irq == Some(CASCADE) {
            self.slave.vector | self.slave.acknowledge().unwrap_or(SPURIOUS)
        } else {
            self.master.vector | irq.unwrap_or(SPURIOUS)
        };
        self.cascade();
        vector
    }

    /// Reads the command (`data` false) or the mask port of the master or the slave.
    pub fn read(&mut self, slave: bool, data: bool) -> u8 {
        let value = self.controller(slave).read(data);
        self.cascade();
        value
    }

    /// Writes the same ports.
    pub fn write(&mut self, slave: bool, data: bool, value: u8) {
        let controller = self.controller(slave);
        if data {
            controller.write_data(value);
        } else {
            controller.write_command(value);
        }
        self.cascade();
    }

    /// The edge/level control register: set bits are level-triggered inputs.
    pub fn elcr(&self, slave: bool) -> u8 {
        if slave { self.slave.level } else { self.master.level }
    }

    /// Writes it; inputs that belong to the board stay edge-triggered.
    pub fn set_elcr(&mut self, slave: bool, value: u8) {
        let controller = self.controller(slave);
        controller.level = value & controller.level_writable;
        self.cascade();
    }

    fn controller(&mut self, slave: bool) -> &mut Pic {
        if slave { &mut self.slave } else { &mut self.master }
    }

    /// The slave's output at the master. It counts as a level, since it drops only for the length of an acknowledge cycle
    /// when another request waits.
    fn cascade(&mut self) {
        let request = 1 << CASCADE;
        if self.slave.winner().is_some() {
            self.master.requests |= request;
        } else {
            self.master.requests &= !request;
        }
    }
}

/// Where the initialisation sequence is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    /// Operation: the data port is the mask.
    Mask,
    Icw2,
    Icw3,
    Icw4,
}

#[derive(Clone, Debug)]
struct Pic {
    /// Bits 7 to 3 of the vectors.
    vector: u8,
    lines: u8,
    /// IRR. In edge mode a request stays latched until acknowledged.
    requests: u8,
    mask: u8,
    in_service: u8,
    level: u8,
    level_writable: u8,
    /// The input with the highest priority; the others follow in a circle.
    first: u8,
    next: Next,
    single: bool,
    wants_icw4: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_fully_nested: bool,
    special_mask: bool,
    read_in_service: bool,
    poll: bool,
}

impl Pic {
    fn new(level_writable: u8) -> Self {
        Self {
            vector: 0,
            lines: 0,
            requests: 0,
            mask: 0xff,
            in_service: 0,
            level: 0,
            level_writable,
            first: 0,
            next: Next::Mask,
            single: false,
            wants_icw4: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_fully_nested: false,
            special_mask: false,
            read_in_service: false,
            poll: false,
        }
    }

    fn set_line(&mut self, input: u8, asserted: bool) {
        let bit = 1 << input;
        let rising = asserted && self.lines & bit == 0;
        if rising {
            self.requests |= bit;
        }
        if asserted {
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
    }

    /// What requests service: latched edges, and level inputs as they stand.
    fn pending(&self) -> u8 {
        self.requests & !self.level | self.lines & self.level
    }

    /// How far down the circle of priorities the first of `inputs` is; 8 if there is none.
    fn rank(&self, inputs: u8) -> u8 {
        inputs.rotate_right(u32::from(self.first)).trailing_zeros() as u8
    }

    fn input_at(&self, rank: u8) -> u8 {
        (rank + self.first) & 7
    }

    /// The input that interrupts now: unmasked, and above all that is in service.
    fn winner(&self) -> Option<u8> {
        let rank = self.rank(self.pending() & !self.mask);
        let mut blocking = self.in_service;
        if self.special_mask {
            blocking &= !self.mask;
        }
        // So that a slave's higher request interrupts its lower one (special fully nested mode).
        if self.special_fully_nested {
            blocking &= !(1 << CASCADE);
        }
        (rank < self.rank(blocking)).then(|| self.input_at(rank))
    }

    fn acknowledge(&mut self) -> Option<u8> {
        let input = self.winner()?;
        self.requests &= !(1 << input);
        if !self.auto_eoi {
            self.in_service |= 1 << input;
        } else if self.rotate_on_auto_eoi {
            self.first = (input + 1) & 7;
        }
        Some(input)
    }

    fn read(&mut self, data: bool) -> u8 {
        if core::mem::take(&mut self.poll) {
            return self.acknowledge().map_or(0, |input| 0x80 | input);
        }
        match (data, self.read_in_service) {
            (true, _) => self.mask,
            (false, true) => self.in_service,
            (false, false) => self.pending(),
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.initialise(value);
        } else if value & 0x08 != 0 {
            self.poll = value & 4 != 0;
            if value & 2 != 0 {
                self.read_in_service = value & 1 != 0;
            }
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
        } else {
            self.operate(value >> 5, value & 7);
        }
    }

    /// ICW1. The edge sense restarts, so an input must fall and rise again to request.
    fn initialise(&mut self, icw1: u8) {
        *self = Self {
            vector: self.vector,
            lines: self.lines,
            mask: 0,
            level: self.level,
            next: Next::Icw2,
            single: icw1 & 2 != 0,
            wants_icw4: icw1 & 1 != 0,
            ..Self::new(self.level_writable)
        };
    }

    /// OCW2: ends of interrupts and rotations.
    fn operate(&mut self, command: u8, input: u8) {
        match command {
            0 | 4 => self.rotate_on_auto_eoi = command == 4,
            1 | 5 => {
                let masked = if self.special_mask { self.mask } else { 0 };
                let rank = self.rank(self.in_service & !masked);
                if rank < 8 {
                    let ended = self.input_at(rank);
                    self.end(ended, command == 5);
                }
            }
            3 | 7 => self.end(input, command == 7),
            6 => self.first = (input + 1) & 7,
            _ => (),
        }
    }

    fn end(&mut self, input: u8, rotate: bool) {
        self.in_service &= !(1 << input);
        if rotate {
            self.first = (input + 1) & 7;
        }
    }

    fn write_data(&mut self, value: u8) {
        self.next = match self.next {
            Next::Mask => {
                self.mask = value;
                Next::Mask
            }
            Next::Icw2 => {
                self.vector = value & 0xf8;
                if !self.single { Next::Icw3 } else { self.after_icw3() }
            }
            Next::Icw3 => self.after_icw3(),
            Next::Icw4 => {
                self.special_fully_nested = value & 0x10 != 0;
                self.auto_eoi = value & 2 != 0;
                Next::Mask
            }
        };
    }

    fn after_icw3(&self) -> Next {
        if self.wants_icw4 { Next::Icw4 } else { Next::Mask }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux initialises them: vectors 0x30 and 0x38, normal EOI, everything unmasked here.
    fn pair(icw4: u8) -> PicPair {
        let mut pair = PicPair::new();
        for (slave, base, cascade) in [(false, 0x30, 4), (true, 0x38, 2)] {
            pair.write(slave, false, 0x11);
            for value in [base, cascade, icw4, 0] {
                pair.write(slave, true, value);
            }
        }
        pair
    }

    #[test]
    fn mask_probe() {
        let mut pair = PicPair::new();
        pair.write(false, true, 0xfb);
        assert_eq!(pair.read(false, true), 0xfb);
    }

    #[test]
    fn edge_is_taken_once() {
        let mut pair = pair(1);
        pair.set_line(4, true);
        assert!(pair.output());
        assert_eq!(pair.acknowledge(), 0x34);
        assert!(!pair.output());
        pair.write(false, false, 0x20);
        assert!(!pair.output(), "still high, but no new edge");
        pair.set_line(4, false);
        pair.set_line(4, true);
        assert!(pair.output());
    }

    #[test]
    fn level_repeats_until_it_falls() {
        let mut pair = pair(1);
        pair.set_elcr(true, 0xff);
        assert_eq!(pair.elcr(true), 0xde);
        pair.set_line(11, true);
        assert_eq!(pair.acknowledge(), 0x3b);
        assert!(!pair.output());
        pair.write(true, false, 0x20);
        pair.write(false, false, 0x20);
        assert!(pair.output());
        pair.set_line(11, false);
        assert!(!pair.output());
    }

    #[test]
    fn priorities_nest() {
        let mut pair = pair(1);
        pair.set_line(5, true);
        assert_eq!(pair.acknowledge(), 0x35);
        pair.set_line(6, true);
        assert!(!pair.output(), "lower waits");
        pair.set_line(1, true);
        assert_eq!(pair.acknowledge(), 0x31);
        pair.write(false, false, 0x0b);
        assert_eq!(pair.read(false, false), 0x22, "both in service");
        pair.write(false, false, 0x20);
        assert_eq!(pair.read(false, false), 0x20, "the higher ended first");
        pair.write(false, false, 0x65);
        assert_eq!(pair.acknowledge(), 0x36);
    }

    #[test]
    fn spurious() {
        let mut pair = pair(1);
        assert_eq!(pair.acknowledge(), 0x37);
        pair.set_elcr(true, 0x08);
        pair.set_line(11, true);
        assert!(pair.output());
        pair.write(true, true, 0x08);
        assert_eq!(pair.acknowledge(), 0x37);
        pair.write(false, false, 0x0b);
        assert_eq!(pair.read(false, false), 0, "nothing is in service after one");
    }

    #[test]
    fn both_slave_requests_arrive() {
        let mut pair = pair(3);
        pair.set_line(8, true);
        pair.set_line(14, true);
        assert_eq!(pair.acknowledge(), 0x38);
        assert!(pair.output(), "automatic EOI");
        assert_eq!(pair.acknowledge(), 0x3e);
        assert!(!pair.output());
    }

    #[test]
    fn rotation_and_special_mask() {
        let mut pair = pair(1);
        pair.write(false, false, 0xc3);
        pair.set_line(1, true);
        pair.set_line(6, true);
        assert_eq!(pair.acknowledge(), 0x36, "4 comes first, so 6 before 1");
        pair.write(false, true, 0x40);
        pair.write(false, false, 0x68);
        assert_eq!(pair.acknowledge(), 0x31, "a masked input in service does not block");
    }

    #[test]
    fn poll() {
        let mut pair = pair(1);
        pair.set_line(3, true);
        pair.write(false, false, 0x0c);
        assert_eq!(pair.read(false, false), 0x83);
        pair.write(false, false, 0x0c);
        assert_eq!(pair.read(false, false), 0);
    }
}
