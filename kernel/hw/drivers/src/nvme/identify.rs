//! What a controller and its namespaces say of themselves (NVM Express Base Specification 2.0, section 5.17; NVM Command
//! Set Specification 1.0, section 4.1.5).
//!
//! The main types are [`Capabilities`], [`ControllerFacts`] and [`NamespaceFacts`]; all are checked here, once.

use super::Fault;
use alloc::string::String;
use alloc::vec::Vec;

/// Bytes of every structure that Identify gives.
pub(super) const IDENTIFY_BYTES: usize = 4096;
/// The page size that this driver sets, and so the granule of physical region page entries.
pub(super) const PAGE_BYTES: u32 = 4096;

/// Entries of a queue at most.
const QUEUE_ENTRIES_MAX: u16 = 256;
/// The least time that the controller gets to change state, whatever it asks for.
const TIMEOUT_NS_MIN: u64 = 1_000_000_000;
/// The unit of CAP.TO.
const TIMEOUT_UNIT_NS: u64 = 500_000_000;

/// The controller's capabilities register (Base section 3.1.3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Capabilities {
    /// Entries of each queue: at least 2.
    pub queue_entries: u16,
    /// How long it may take to become ready or to stop.
    pub timeout_ns: u64,
    /// Bytes from one doorbell to the next.
    pub doorbell_stride: usize,
}

impl Capabilities {
    pub(super) fn parse(register: u64) -> Result<Self, Fault> {
        let field = |shift: u32, bits: u32| register >> shift & ((1 << bits) - 1);
        if register == u64::MAX {
            return Err(Fault::Gone);
        }
        if field(37, 1) == 0 {
            return Err(Fault::Unusable("it lacks the NVM command set"));
        }
        if field(48, 4) != 0 {
            return Err(Fault::Unusable("it cannot work with pages of 4 KiB"));
        }
        let entries = field(0, 16) + 1;
        if entries < 2 {
            return Err(Fault::Unusable("its queues hold nothing"));
        }
        Ok(Self {
            queue_entries: u16::try_from(entries).unwrap_or(u16::MAX).min(QUEUE_ENTRIES_MAX),
            timeout_ns: (field(24, 8) * TIMEOUT_UNIT_NS).max(TIMEOUT_NS_MIN),
            doorbell_stride: 4 << field(32, 4),
        })
    }
}

/// How free scatter-gather lists are in their addresses and lengths.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sgl {
    /// There are none.
    None,
    /// Any byte will do.
    Bytes,
    /// Multiples of 4.
    Words,
}

/// What Identify Controller says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ControllerFacts {
    pub serial: String,
    pub model: String,
    /// The most bytes of one transfer; `None` for no limit.
    pub max_transfer_bytes: Option<u32>,
    pub write_cache: bool,
    pub deallocate: bool,
    pub write_zeroes: bool,
    pub sgl: Sgl,
    /// The highest namespace number.
    pub namespaces: u32,
}

impl ControllerFacts {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        let transfer_power = byte(bytes, 77);
        // Entries of 64 and 16 bytes must be among what it takes.
        let takes = |at: usize, power: u8| byte(bytes, at) & 0xf <= power && byte(bytes, at) >> 4 >= power;
        if !takes(512, 6) || !takes(513, 4) {
            return Err(Fault::Unusable("its queue entries have other sizes"));
        }
        let optional = u16_at(bytes, 520);
        Ok(Self {
            serial: text(bytes, 4, 20),
            model: text(bytes, 24, 40),
            max_transfer_bytes: match transfer_power {
                0 => None,
                power => PAGE_BYTES.checked_mul(1_u32.checked_shl(power.into()).unwrap_or(0)).filter(|&max| max > 0),
            },
            write_cache: byte(bytes, 525) & 1 != 0,
            deallocate: optional & 1 << 2 != 0,
            write_zeroes: optional & 1 << 3 != 0,
            sgl: match u32_at(bytes, 536) & 3 {
                1 => Sgl::Bytes,
                2 => Sgl::Words,
                _ => Sgl::None,
            },
            namespaces: u32_at(bytes, 516),
        })
    }
}

/// The numbers in a list of active namespaces: ascending, ended by 0 (Base section 5.17.2.2).
pub(super) fn active_namespaces(bytes: &[u8]) -> Vec<u32> {
    let numbers = bytes.chunks_exact(4).map(|chunk| u32_at(chunk, 0));
    let mut last = 0;
    let ascending = numbers.take_while(|&number| core::mem::replace(&mut last, number) < number);
    ascending.filter(|&number| number != u32::MAX).collect()
}

/// What Identify Namespace says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct NamespaceFacts {
    pub blocks: u64,
    /// 512 to 4096, a power of two.
    pub block_bytes: u32,
    /// What is written at once, at least a block.
    pub physical_block_bytes: u32,
    pub write_protected: bool,
}

impl NamespaceFacts {
    /// `None` for an inactive namespace, of which everything is 0.
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<Self>, &'static str> {
        let blocks = u64_at(bytes, 0);
        if blocks == 0 {
            return Ok(None);
        }
        let formatted = byte(bytes, 26);
        let format = usize::from(formatted & 0xf | (formatted >> 1 & 0x30));
        if format > usize::from(byte(bytes, 25)) {
            return Err("it is in a format that it does not list");
        }
        let format = u32_at(bytes, 128 + 4 * format);
        if format & 0xffff != 0 {
            return Err("it is formatted with metadata");
        }
        let power = format >> 16 & 0xff;
        if !(9..=12).contains(&power) {
            return Err("its blocks are not of 512 to 4096 bytes");
        }
        let block_bytes = 1_u32 << power;
        if blocks.checked_mul(block_bytes.into()).is_none() {
            return Err("its size makes no sense");
        }
        // The preferred write granularity counts blocks from 0, and only where the namespace says that it means it.
        let granules = if byte(bytes, 24) & 1 << 4 != 0 { u32::from(u16_at(bytes, 64)) + 1 } else { 1 };
        let physical = block_bytes.checked_mul(granules).filter(|bytes| bytes.is_power_of_two());
        Ok(Some(Self {
            blocks,
            block_bytes,
            physical_block_bytes: physical.unwrap_or(block_bytes),
            write_protected: byte(bytes, 99) & 1 != 0,
        }))
    }
}

/// ASCII padded with spaces, without what could talk to the operator's terminal.
fn text(bytes: &[u8], at: usize, length: usize) -> String {
    let characters = bytes.iter().skip(at).take(length).take_while(|byte| **byte != 0);
    let text: String =
        characters.map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '?' }).collect();
    text.trim().into()
}

fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([byte(bytes, at), byte(bytes, at + 1)])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Maximum queue entries, timeout, stride, command set, page size.
    fn register(entries: u64, timeout: u64, stride: u64, nvm: u64, page: u64) -> u64 {
        entries | timeout << 24 | stride << 32 | nvm << 37 | page << 48
    }

    #[test]
    fn absurd_capabilities_are_refused_or_bounded() {
        let parse = Capabilities::parse;
        let good = parse(register(0xffff, 255, 15, 1, 0)).unwrap();
        assert_eq!((good.queue_entries, good.timeout_ns, good.doorbell_stride), (256, 127_500_000_000, 0x2_0000));
        let small = parse(register(1, 0, 0, 1, 0)).unwrap();
        assert_eq!((small.queue_entries, small.timeout_ns, small.doorbell_stride), (2, TIMEOUT_NS_MIN, 4));
        assert!(matches!(parse(u64::MAX), Err(Fault::Gone)));
        for bad in [register(0, 1, 0, 1, 0), register(9, 1, 0, 0, 0), register(9, 1, 0, 1, 1)] {
            assert!(matches!(parse(bad), Err(Fault::Unusable(_))), "{bad:x}");
        }
    }

    fn controller() -> Vec<u8> {
        let mut bytes = vec![0; IDENTIFY_BYTES];
        bytes[4..9].copy_from_slice(b"a\x1bb  ");
        (bytes[512], bytes[513]) = (0x66, 0x44);
        bytes
    }

    #[test]
    fn a_controller_is_read_with_suspicion() {
        let mut bytes = controller();
        let facts = ControllerFacts::parse(&bytes).unwrap();
        assert_eq!((&*facts.serial, facts.max_transfer_bytes, facts.sgl), ("a?b", None, Sgl::None));
        (bytes[77], bytes[520], bytes[525], bytes[536]) = (5, 0x0c, 1, 2);
        let facts = ControllerFacts::parse(&bytes).unwrap();
        assert_eq!((facts.max_transfer_bytes, facts.sgl), (Some(128 << 10), Sgl::Words));
        assert!(facts.write_cache && facts.deallocate && facts.write_zeroes);
        for power in [20, 32, 200, 255] {
            bytes[77] = power;
            assert_eq!(ControllerFacts::parse(&bytes).unwrap().max_transfer_bytes, None, "{power}");
        }
        bytes[512] = 0x77;
        assert!(ControllerFacts::parse(&bytes).is_err());
    }

    #[test]
    fn namespace_lists_end_where_they_stop_to_ascend() {
        let list = |numbers: &[u32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>();
        assert_eq!(active_namespaces(&list(&[1, 5, 9, 0, 12])), [1, 5, 9]);
        assert_eq!(active_namespaces(&list(&[4, 4, 5])), [4]);
        assert_eq!(active_namespaces(&list(&[0, 1])), []);
        assert_eq!(active_namespaces(&list(&[u32::MAX, 1])), []);
    }

    fn namespace(blocks: u64, format: u32) -> Vec<u8> {
        let mut bytes = vec![0; IDENTIFY_BYTES];
        bytes[..8].copy_from_slice(&blocks.to_le_bytes());
        bytes[128..132].copy_from_slice(&format.to_le_bytes());
        bytes
    }

    #[test]
    fn namespaces_that_cannot_be_driven_say_why() {
        let facts = NamespaceFacts::parse(&namespace(8, 12 << 16)).unwrap().unwrap();
        assert_eq!((facts.blocks, facts.block_bytes, facts.physical_block_bytes), (8, 4096, 4096));
        assert_eq!(NamespaceFacts::parse(&namespace(0, 9 << 16)), Ok(None));
        for (blocks, format) in [(8, 9 << 16 | 8), (8, 8 << 16), (8, 13 << 16), (8, 255 << 16), (u64::MAX, 9 << 16)] {
            assert!(NamespaceFacts::parse(&namespace(blocks, format)).is_err(), "{blocks} {format:x}");
        }
        let mut bytes = namespace(8, 9 << 16);
        bytes[26] = 1;
        assert!(NamespaceFacts::parse(&bytes).is_err());
        (bytes[25], bytes[26], bytes[24], bytes[64], bytes[99]) = (63, 0x60 | 15, 0x10, 7, 1);
        bytes[128 + 4 * 63 + 2] = 9;
        let facts = NamespaceFacts::parse(&bytes).unwrap().unwrap();
        assert_eq!((facts.block_bytes, facts.physical_block_bytes, facts.write_protected), (512, 4096, true));
    }
}
