//! The board: which device answers at which port or address, and how their interrupt lines are wired.
//!
//! The type is [`Chipset`]; it joins the devices of this crate, none of which knows another. ISA interrupts go to both
//! interrupt controllers: interrupt 0 to IOAPIC pin 2, the others to the pin of their number (GSI).

use crate::debug::DebugPorts;
use crate::hotplug::{EVENT_PORTS, HOTPLUG_PORTS, Hotplug};
use crate::i8042::I8042;
use crate::ioapic::{self, IoApic};
use crate::pic::PicPair;
use crate::pit::Pit;
use crate::power::{self, Power};
use crate::rtc::Rtc;
use crate::uart::Uart;
use crate::{COM1_GSI, Clock, Effect, PIT_GSI, RTC_GSI, SCI_GSI, ports, saved};
use addr::Gpa;
use alloc::vec::Vec;
use state::Invalid;

/// How much of the guest's RAM the CMOS memory reports as lying below 4 GiB; the rest lies above.
pub const CMOS_LOW_RAM_BYTES_MAX: u64 = 3 << 30;

const KEYBOARD_GSI: u8 = 1;
const AUXILIARY_GSI: u8 = 12;
/// What an undriven data bus reads as.
const FLOATING: u8 = 0xff;

const COM1_LAST: u16 = ports::COM1 + 7;
const PIC_MASTER_DATA: u16 = ports::PIC_MASTER + 1;
const PIC_SLAVE_DATA: u16 = ports::PIC_SLAVE + 1;
const PIC_ELCR_SLAVE: u16 = ports::PIC_ELCR + 1;
const PIT_LAST: u16 = ports::PIT + 2;
const PIT_CONTROL: u16 = ports::PIT + 3;
const RTC_DATA: u16 = ports::RTC + 1;
const POWER_LAST: u16 = ports::PM1A_EVENT + power::BLOCK_PORTS - 1;
const GPE0_LAST: u16 = ports::GPE0 + EVENT_PORTS - 1;
const HOTPLUG_LAST: u16 = ports::HOTPLUG + HOTPLUG_PORTS - 1;

/// The devices that a VM has once.
#[derive(Clone, Debug)]
pub struct Chipset {
    uart: Uart,
    pics: PicPair,
    pit: Pit,
    rtc: Rtc,
    keyboard: I8042,
    ioapic: IoApic,
    power: Power,
    hotplug: Hotplug,
    debug: DebugPorts,
    /// The level of each GSI.
    lines: u32,
    /// The PIC output that the machine was told last.
    pic_output: bool,
    /// When the earliest timer expires. Kept, since it is asked for after every access, most of which are the UART's.
    deadline_ns: Option<u64>,
}

impl Chipset {
    /// A board after power-up. `wall_unix_ns` is UTC in nanoseconds since 1970 at machine time zero; `ram_bytes` is what
    /// the CMOS memory reports.
    pub fn new(wall_unix_ns: u64, ram_bytes: u64) -> Self {
        let low_ram_bytes = ram_bytes.min(CMOS_LOW_RAM_BYTES_MAX);
        Self::with_ram(wall_unix_ns, low_ram_bytes, ram_bytes - low_ram_bytes)
    }

    /// The same with so much memory below 4 GiB and above.
    pub fn with_ram(wall_unix_ns: u64, low_bytes: u64, high_bytes: u64) -> Self {
        Self::around(Rtc::new(wall_unix_ns, low_bytes, high_bytes), Power::new())
    }

    /// The same with debug ports.
    #[must_use]
    pub fn with_debug_ports(self, debug: DebugPorts) -> Self {
        Self { debug, ..self }
    }

    /// Which debug ports there are.
    pub fn debug_ports(&self) -> DebugPorts {
        self.debug
    }

    /// The reset line: everything as after power-up but the time, the CMOS memory and the free-running timer. Whoever
    /// drives lines from outside ([`set_gsi`](Self::set_gsi)) drives them anew.
    pub fn reset(&mut self, effects: &mut Vec<Effect>) {
        let mut fresh = Self::around(self.rtc.clone(), self.power.clone());
        fresh.rtc.reset();
        fresh.power.reset();
        fresh.pic_output = self.pic_output;
        fresh.debug = self.debug;
        *self = fresh;
        self.note_deadline();
        self.report_pic(effects);
    }

    /// What restores it.
    pub fn save(&self) -> saved::Board {
        saved::Board {
            uart: Some(self.uart.save()),
            pics: Some(self.pics.save()),
            pit: Some(self.pit.save()),
            rtc: Some(self.rtc.save()),
            keyboard: Some(self.keyboard.save()),
            ioapic: Some(self.ioapic.save()),
            power: Some(self.power.save()),
            hotplug: self.hotplug.save(),
            lines: self.lines,
            pic_output: self.pic_output,
        }
    }

    /// This board, fresh, made to go on where the saved one was. What is missing stays as it is after power-up.
    ///
    /// # Errors
    /// Where no board can have been there.
    pub fn restore(self, saved: &saved::Board) -> Result<Self, Invalid> {
        let lines = saved.lines;
        Invalid::unless(lines >> ioapic::PINS == 0, "the interrupt lines")?;
        // The timer is wired to IOAPIC pin 2 and to input 0 of the PIC, whose input 2 is the cascade's.
        let pic_lines = lines & 0xfffa | lines >> PIT_GSI & 1;
        let mut board = Self {
            uart: saved.uart.as_ref().map_or(Ok(self.uart), Uart::restore)?,
            pics: match &saved.pics {
                Some(pics) => PicPair::restore(pics, pic_lines as u16)?,
                None => self.pics,
            },
            pit: saved.pit.as_ref().map_or(Ok(self.pit), Pit::restore)?,
            rtc: saved.rtc.as_ref().map_or(Ok(self.rtc), Rtc::restore)?,
            keyboard: saved.keyboard.as_ref().map_or(Ok(self.keyboard), I8042::restore)?,
            ioapic: match &saved.ioapic {
                Some(ioapic) => IoApic::restore(ioapic, lines)?,
                None => self.ioapic,
            },
            power: saved.power.as_ref().map_or(Ok(self.power), Power::restore)?,
            hotplug: saved.hotplug.as_ref().map_or(self.hotplug, Hotplug::restore),
            debug: self.debug,
            lines,
            pic_output: saved.pic_output,
            deadline_ns: None,
        };
        board.note_deadline();
        Ok(board)
    }

    fn around(rtc: Rtc, power: Power) -> Self {
        Self {
            uart: Uart::new(),
            pics: PicPair::new(),
            pit: Pit::new(),
            rtc,
            keyboard: I8042::new(),
            ioapic: IoApic::new(),
            power,
            hotplug: Hotplug::default(),
            debug: DebugPorts::default(),
            lines: 0,
            pic_output: false,
            deadline_ns: None,
        }
    }

    /// IN of `size` bytes (1, 2 or 4). `None`: nobody is there. Byte-wide devices answer a wider access byte by byte, as
    /// the ISA bus splits it; only the device at the first port decides whether the access is the board's.
    pub fn port_read(&mut self, port: u16, size: u8, clock: Clock, effects: &mut Vec<Effect>) -> Option<u32> {
        if let ports::PM1A_EVENT..=POWER_LAST = port {
            let value = self.power.read(port - ports::PM1A_EVENT, size, clock.ns);
            self.note_deadline();
            self.drive_sci(effects);
            return Some(value);
        }
        match port {
            ports::GPE0..=GPE0_LAST => return Some(self.hotplug.read_events(port - ports::GPE0, size)),
            ports::HOTPLUG..=HOTPLUG_LAST => return Some(self.hotplug.read(port - ports::HOTPLUG, size)),
            _ => {}
        }
        let first = self.read_byte(port, size, clock, effects)?;
        let mut value = u32::from(first);
        for byte in 1..u16::from(size.min(4)) {
            let next = self.read_byte(port.wrapping_add(byte), size, clock, effects).unwrap_or(FLOATING);
            value |= u32::from(next) << (8 * byte);
        }
        if !has_no_timer(port) {
            self.note_deadline();
        }
        Some(value)
    }

    /// OUT of `size` bytes (1, 2 or 4). False: nobody is there. Split as reads are.
    pub fn port_write(&mut self, port: u16, size: u8, value: u32, clock: Clock, effects: &mut Vec<Effect>) -> bool {
        if let ports::PM1A_EVENT..=POWER_LAST = port {
            self.power.write(port - ports::PM1A_EVENT, size, value, clock.ns, effects);
            self.note_deadline();
            self.drive_sci(effects);
            return true;
        }
        if self.write_hotplug(port, size, value, effects) {
            return true;
        }
        let bytes = value.to_le_bytes();
        if !self.write_byte(port, size, bytes[0], clock, effects) {
            let debug = self.debug.write(port, value);
            effects.extend(debug);
            return debug.is_some();
        }
        for byte in 1..u16::from(size.min(4)) {
            self.write_byte(port.wrapping_add(byte), size, bytes[usize::from(byte)], clock, effects);
        }
        if !has_no_timer(port) {
            self.note_deadline();
        }
        true
    }

    /// A read of guest-physical memory. `None`: nobody is there.
    pub fn mmio_read(&mut self, gpa: Gpa, size: u8) -> Option<u64> {
        let offset = ioapic_offset(gpa)?;
        Some(self.ioapic.read(offset, size))
    }

    /// A write to guest-physical memory. False: nobody is there.
    pub fn mmio_write(&mut self, gpa: Gpa, size: u8, value: u64, effects: &mut Vec<Effect>) -> bool {
        let Some(offset) = ioapic_offset(gpa) else { return false };
        self.ioapic.write(offset, size, value, effects);
        true
    }

    /// Sets the level of a GSI (0 to 23; others have no pin). GSIs below 16 reach the PIC, too. Whoever shares a line
    /// must pass the OR of its sources; the board's own devices take 1, 2, 4, 8, 9 and 12.
    pub fn set_gsi(&mut self, gsi: u8, asserted: bool, effects: &mut Vec<Effect>) {
        if gsi < ioapic::PINS {
            self.drive(gsi, asserted, effects);
        }
    }

    /// The end of a level-triggered interrupt, as a local APIC broadcasts it.
    pub fn end_of_interrupt(&mut self, vector: u8, effects: &mut Vec<Effect>) {
        self.ioapic.end_of_interrupt(vector, effects);
    }

    /// The processor's acknowledge cycle to the PIC: the vector, that of a spurious interrupt if nothing requests any more.
    pub fn acknowledge_pic(&mut self, effects: &mut Vec<Effect>) -> u8 {
        let vector = self.pics.acknowledge();
        self.report_pic(effects);
        vector
    }

    /// Does everything that is due by now.
    pub fn advance(&mut self, clock: Clock, effects: &mut Vec<Effect>) {
        self.advance_pit(clock.ns, effects);
        self.rtc.advance(clock.ns);
        self.drive(RTC_GSI, self.rtc.irq(), effects);
        self.power.advance(clock.ns);
        self.drive_sci(effects);
        self.note_deadline();
    }

    /// When [`advance`](Self::advance) has something to do next, in machine time.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.deadline_ns
    }

    /// How many bytes [`console_input`](Self::console_input) would take now.
    pub fn console_room(&self) -> usize {
        self.uart.room()
    }

    /// Bytes arrive at the UART; how many it took. The rest waits with the caller until the guest has read some.
    pub fn console_input(&mut self, bytes: &[u8], effects: &mut Vec<Effect>) -> usize {
        let taken = self.uart.receive(bytes);
        self.drive(COM1_GSI, self.uart.irq(), effects);
        taken
    }

    /// The power button is pressed and let go: the guest gets a system control interrupt if it asked for one.
    pub fn press_power_button(&mut self, effects: &mut Vec<Effect>) {
        self.power.press_button();
        self.drive_sci(effects);
    }

    /// A PCI device came.
    pub fn announce_device(&mut self, device: u8, effects: &mut Vec<Effect>) {
        self.hotplug.arrive(device);
        self.drive_sci(effects);
    }

    /// The guest is asked to let go of a PCI device; then there is an [`Effect::Eject`].
    pub fn ask_device_to_leave(&mut self, device: u8, effects: &mut Vec<Effect>) {
        self.hotplug.ask(device);
        self.drive_sci(effects);
    }

    /// A PCI device may stay that was asked to leave: an [`Effect::Eject`] does not come any more.
    pub fn let_device_stay(&mut self, device: u8) {
        self.hotplug.withdraw(device);
    }

    /// A PCI device is gone, and the guest did not let go of it.
    pub fn tell_of_lost_device(&mut self, device: u8, effects: &mut Vec<Effect>) {
        self.hotplug.vanish(device);
        self.drive_sci(effects);
    }

    fn drive_sci(&mut self, effects: &mut Vec<Effect>) {
        self.drive(SCI_GSI, self.power.sci() || self.hotplug.sci(), effects);
    }

    /// A write to the registers of general-purpose events or of hotplug; false elsewhere.
    fn write_hotplug(&mut self, port: u16, size: u8, value: u32, effects: &mut Vec<Effect>) -> bool {
        match port {
            ports::GPE0..=GPE0_LAST => {
                self.hotplug.write_events(port - ports::GPE0, size, value);
                self.drive_sci(effects);
            }
            ports::HOTPLUG..=HOTPLUG_LAST => self.hotplug.write(port - ports::HOTPLUG, value, effects),
            _ => return false,
        }
        true
    }

    fn note_deadline(&mut self) {
        let timers = [self.pit.deadline_ns(), self.rtc.deadline_ns(), self.power.deadline_ns()];
        self.deadline_ns = timers.into_iter().flatten().min();
    }

    fn read_byte(&mut self, port: u16, size: u8, clock: Clock, effects: &mut Vec<Effect>) -> Option<u8> {
        Some(match port {
            ports::COM1..=COM1_LAST => {
                let value = self.uart.read(port - ports::COM1);
                self.drive(COM1_GSI, self.uart.irq(), effects);
                value
            }
            ports::PIC_MASTER | PIC_MASTER_DATA | ports::PIC_SLAVE | PIC_SLAVE_DATA => {
                // A poll command makes the read an acknowledge cycle.
                let value = self.pics.read(port & 0x80 != 0, port & 1 != 0);
                self.report_pic(effects);
                value
            }
            ports::PIC_ELCR | PIC_ELCR_SLAVE => self.pics.elcr(port == PIC_ELCR_SLAVE),
            ports::PIT..=PIT_LAST => self.pit.read(port - ports::PIT, clock.ns),
            PIT_CONTROL | ports::RTC | ports::POST | ports::DELAY => FLOATING,
            ports::SYSTEM_CONTROL_B => self.pit.read_port_b(clock.ns),
            RTC_DATA => {
                let value = self.rtc.read(clock.ns);
                self.drive(RTC_GSI, self.rtc.irq(), effects);
                value
            }
            ports::I8042_DATA => {
                let value = self.keyboard.read_data();
                self.drive_keyboard(effects);
                value
            }
            ports::I8042_COMMAND => self.keyboard.read_status(),
            ports::SYSTEM_CONTROL_A => self.power.read_port_a(),
            // Wider accesses around here are to PCI's configuration ports.
            ports::RESET if size == 1 => self.power.read_reset(),
            _ => return self.debug.read(port),
        })
    }

    fn write_byte(&mut self, port: u16, size: u8, value: u8, clock: Clock, effects: &mut Vec<Effect>) -> bool {
        match port {
            ports::COM1..=COM1_LAST => self.write_uart(port - ports::COM1, value, effects),
            ports::PIC_MASTER | PIC_MASTER_DATA | ports::PIC_SLAVE | PIC_SLAVE_DATA => {
                self.pics.write(port & 0x80 != 0, port & 1 != 0, value);
                self.report_pic(effects);
            }
            ports::PIC_ELCR | PIC_ELCR_SLAVE => {
                self.pics.set_elcr(port == PIC_ELCR_SLAVE, value);
                self.report_pic(effects);
            }
            ports::PIT..=PIT_CONTROL => self.write_pit(port - ports::PIT, value, clock.ns, effects),
            ports::SYSTEM_CONTROL_B => self.pit.write_port_b(value, clock.ns),
            ports::RTC => self.rtc.select(value),
            RTC_DATA => {
                self.rtc.write(value, clock.ns);
                self.drive(RTC_GSI, self.rtc.irq(), effects);
            }
            ports::I8042_DATA | ports::I8042_COMMAND => self.write_keyboard(port, value, effects),
            ports::SYSTEM_CONTROL_A => self.power.write_port_a(value, effects),
            // Written for the time it takes.
            ports::POST | ports::DELAY => (),
            ports::RESET if size == 1 => self.power.write_reset(value, effects),
            _ => return false,
        }
        true
    }

    fn write_uart(&mut self, offset: u16, value: u8, effects: &mut Vec<Effect>) {
        let written = self.uart.write(offset, value);
        if let Some(byte) = written.transmitted {
            effects.push(Effect::Console(byte));
        }
        if written.pulsed_low {
            self.drive(COM1_GSI, false, effects);
        }
        self.drive(COM1_GSI, self.uart.irq(), effects);
    }

    fn write_pit(&mut self, offset: u16, value: u8, now_ns: u64, effects: &mut Vec<Effect>) {
        // What was due under the old programming is.
        self.advance_pit(now_ns, effects);
        if offset == PIT_CONTROL - ports::PIT {
            self.pit.control(value, now_ns);
        } else {
            self.pit.write(offset, value, now_ns);
        }
        let output = self.pit.output(now_ns);
        self.drive(PIT_GSI, output, effects);
    }

    fn advance_pit(&mut self, now_ns: u64, effects: &mut Vec<Effect>) {
        if self.pit.advance(now_ns) {
            // Only rises are tracked; the fall before this one happened unseen.
            self.drive(PIT_GSI, false, effects);
            self.drive(PIT_GSI, true, effects);
        }
    }

    fn write_keyboard(&mut self, port: u16, value: u8, effects: &mut Vec<Effect>) {
        let reset = if port == ports::I8042_COMMAND {
            self.keyboard.write_command(value)
        } else {
            self.keyboard.write_data(value)
        };
        if reset {
            effects.push(Effect::Reset);
        }
        self.drive_keyboard(effects);
    }

    fn drive_keyboard(&mut self, effects: &mut Vec<Effect>) {
        self.drive(KEYBOARD_GSI, self.keyboard.keyboard_irq(), effects);
        self.drive(AUXILIARY_GSI, self.keyboard.auxiliary_irq(), effects);
    }

    /// Sets the level of a GSI below [`ioapic::PINS`] at both interrupt controllers.
    #[inline]
    fn drive(&mut self, gsi: u8, asserted: bool, effects: &mut Vec<Effect>) {
        if (self.lines >> gsi & 1 != 0) != asserted {
            self.change_line(gsi, asserted, effects);
        }
    }

    fn change_line(&mut self, gsi: u8, asserted: bool, effects: &mut Vec<Effect>) {
        self.lines ^= 1 << gsi;
        let irq = match gsi {
            PIT_GSI => Some(0),
            1..16 => Some(gsi),
            _ => None,
        };
        if let Some(irq) = irq {
            self.pics.set_line(irq, asserted);
            self.report_pic(effects);
        }
        self.ioapic.set_pin(gsi, asserted, effects);
    }

    fn report_pic(&mut self, effects: &mut Vec<Effect>) {
        let output = self.pics.output();
        if output != self.pic_output {
            self.pic_output = output;
            effects.push(Effect::PicLine(output));
        }
    }
}

/// Whether an access that starts at the port leaves all timers as they are.
fn has_no_timer(port: u16) -> bool {
    matches!(port, ports::COM1..=COM1_LAST | ports::POST)
}

/// Where in the IOAPIC's window an address lies.
fn ioapic_offset(gpa: Gpa) -> Option<u64> {
    let offset = gpa.as_u64().wrapping_sub(ioapic::BASE.as_u64());
    (offset < ioapic::WINDOW_BYTES).then_some(offset)
}
