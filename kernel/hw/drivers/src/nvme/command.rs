//! What the host writes into a submission queue and the controller into a completion queue (NVM Express Base
//! Specification 2.0, sections 3.3.3 and 5; NVM Command Set Specification 1.0, section 3.2).
//!
//! The main types are [`Command`] and [`Completion`].

use block::{IoError, Outcome};

/// Bytes of a submission queue entry, and doublewords of it.
pub(super) const COMMAND_BYTES: usize = 64;
pub(super) const COMMAND_WORDS: usize = COMMAND_BYTES / 4;
/// Bytes of a completion queue entry.
pub(super) const COMPLETION_BYTES: usize = 16;

/// Admin opcodes (Base section 5).
const CREATE_SUBMISSION_QUEUE: u32 = 0x01;
const CREATE_COMPLETION_QUEUE: u32 = 0x05;
const IDENTIFY: u32 = 0x06;
const ABORT: u32 = 0x08;
const SET_FEATURES: u32 = 0x09;
/// The feature "Number of Queues" (Base section 5.27.1.5).
const FEATURE_QUEUES: u32 = 0x07;

/// Input and output opcodes (NVM Command Set section 3.2; Flush: Base section 7.1).
const FLUSH: u32 = 0x00;
const WRITE: u32 = 0x01;
const READ: u32 = 0x02;
const WRITE_ZEROES: u32 = 0x08;
const DATASET_MANAGEMENT: u32 = 0x09;

/// PSDT: the data pointer is a scatter-gather list, and there is no metadata (Base section 3.3.3.1).
const DATA_BY_SGL: u32 = 1 << 14;
/// Where the command identifier begins in doubleword 0.
const IDENTIFIER_SHIFT: u32 = 16;
/// A write's "force unit access".
const FORCE_UNIT_ACCESS: u32 = 1 << 30;
/// Data set management's "deallocate" (NVM Command Set section 3.2.3).
const DEALLOCATE: u32 = 1 << 2;

/// What Identify is about (CNS, Base section 5.17).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Subject {
    /// The namespace with this number.
    Namespace(u32),
    Controller,
    /// The first 1,024 active namespaces.
    Namespaces,
}

/// Where a command's data lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Data {
    /// Physical region page entries 1 and 2.
    Prp(u64, u64),
    /// A scatter-gather list's first descriptor.
    Sgl([u64; 2]),
}

/// A submission queue entry, its identifier yet 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Command(pub [u32; COMMAND_WORDS]);

impl Command {
    pub(super) fn identify(subject: Subject, into: u64) -> Self {
        let (selector, namespace) = match subject {
            Subject::Namespace(number) => (0, number),
            Subject::Controller => (1, 0),
            Subject::Namespaces => (2, 0),
        };
        Self::new(IDENTIFY, namespace).with_data(Data::Prp(into, 0)).with(10, selector)
    }

    /// Asks for as many queues of either kind.
    pub(super) fn set_queues(count: u16) -> Self {
        let count = u32::from(count.max(1)) - 1;
        Self::new(SET_FEATURES, 0).with(10, FEATURE_QUEUES).with(11, count << 16 | count)
    }

    /// A completion queue (section 5.4): physically contiguous, with interrupts by vector 0 where `interrupts`.
    pub(super) fn create_completion_queue(id: u16, entries: u16, at: u64, interrupts: bool) -> Self {
        let flags = 1 | u32::from(interrupts) << 1;
        Self::new(CREATE_COMPLETION_QUEUE, 0).with_data(Data::Prp(at, 0)).with(10, queue(id, entries)).with(11, flags)
    }

    /// A submission queue (section 5.5), whose completions go to the completion queue of the same number.
    pub(super) fn create_submission_queue(id: u16, entries: u16, at: u64) -> Self {
        Self::new(CREATE_SUBMISSION_QUEUE, 0)
            .with_data(Data::Prp(at, 0))
            .with(10, queue(id, entries))
            .with(11, u32::from(id) << 16 | 1)
    }

    /// Withdraws the command `identifier` of the submission queue `queue` (section 5.1).
    pub(super) fn abort(queue: u16, identifier: u16) -> Self {
        Self::new(ABORT, 0).with(10, u32::from(identifier) << 16 | u32::from(queue))
    }

    pub(super) fn flush(namespace: u32) -> Self {
        Self::new(FLUSH, namespace)
    }

    pub(super) fn read(namespace: u32, block: u64, blocks: u16) -> Self {
        Self::new(READ, namespace).with_blocks(block, blocks)
    }

    pub(super) fn write(namespace: u32, block: u64, blocks: u16) -> Self {
        Self::new(WRITE, namespace).with_blocks(block, blocks)
    }

    /// As [`Command::write`], but completed only when the data are durable (Force Unit Access, NVM Command Set section
    /// 3.2.6).
    pub(super) fn write_through(namespace: u32, block: u64, blocks: u16) -> Self {
        Self::write(namespace, block, blocks).with(12, u32::from(blocks) | FORCE_UNIT_ACCESS)
    }

    pub(super) fn write_zeroes(namespace: u32, block: u64, blocks: u16) -> Self {
        Self::new(WRITE_ZEROES, namespace).with_blocks(block, blocks)
    }

    /// Deallocates the one range that the data describe.
    pub(super) fn deallocate(namespace: u32, range: u64) -> Self {
        Self::new(DATASET_MANAGEMENT, namespace).with_data(Data::Prp(range, 0)).with(11, DEALLOCATE)
    }

    pub(super) fn with_data(self, data: Data) -> Self {
        match data {
            Data::Prp(first, second) => self.with_pair(6, first).with_pair(8, second),
            Data::Sgl([first, second]) => {
                self.with(0, self.0[0] | DATA_BY_SGL).with_pair(6, first).with_pair(8, second)
            }
        }
    }

    /// The same with its identifier.
    pub(super) fn named(self, identifier: u16) -> Self {
        self.with(0, self.0[0] & 0xffff | u32::from(identifier) << IDENTIFIER_SHIFT)
    }

    fn new(opcode: u32, namespace: u32) -> Self {
        Self::default().with(0, opcode).with(1, namespace)
    }

    /// `blocks` is what the field holds: one less than are meant.
    fn with_blocks(self, block: u64, blocks: u16) -> Self {
        self.with_pair(10, block).with(12, blocks.into())
    }

    fn with(mut self, word: usize, value: u32) -> Self {
        self.0[word] = value;
        self
    }

    fn with_pair(self, word: usize, value: u64) -> Self {
        self.with(word, value as u32).with(word + 1, (value >> 32) as u32)
    }
}

/// Doubleword 10 of a queue's creation. Sizes count from 0.
fn queue(id: u16, entries: u16) -> u32 {
    u32::from(entries - 1) << 16 | u32::from(id)
}

/// A completion queue entry (Base section 3.3.3.2), as it was read once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Completion {
    /// Doubleword 0: the command's own result.
    pub result: u32,
    /// How far the controller has got in the submission queue.
    pub head: u16,
    /// The submission queue.
    pub queue: u16,
    /// The command.
    pub identifier: u16,
    pub status: Status,
}

impl Completion {
    pub(super) fn new(result: u32, word2: u32, word3: u32) -> Self {
        Self {
            result,
            head: word2 as u16,
            queue: (word2 >> 16) as u16,
            identifier: word3 as u16,
            status: Status((word3 >> 17) as u16),
        }
    }
}

/// The phase tag of a completion's doubleword 3.
pub(super) fn phase(word3: u32) -> bool {
    word3 & 1 << 16 != 0
}

/// A status field: code in bits 7:0, type in bits 10:8 (Base section 3.3.3.2.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Status(pub u16);

impl Status {
    pub(super) fn is_success(self) -> bool {
        self.0 & 0x7ff == 0
    }

    /// What the submitter hears.
    pub(super) fn outcome(self) -> Outcome {
        match self.0 & 0x7ff {
            0x000 => Ok(()),
            0x001 => Err(IoError::Unsupported),
            0x080 => Err(IoError::OutOfRange),
            _ => Err(IoError::Device),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_specification_has_them() {
        let read = Command::read(3, 0x1_2345_6789, 7).with_data(Data::Prp(0x1_0000_2000, 0x3000)).named(0x44);
        assert_eq!(read.0, [0x44_0002, 3, 0, 0, 0, 0, 0x2000, 1, 0x3000, 0, 0x2345_6789, 1, 7, 0, 0, 0]);
        let write = Command::write(1, 8, 0).with_data(Data::Sgl([0x5000, 1 << 60])).named(1);
        assert_eq!(write.0, [0x1_4001, 1, 0, 0, 0, 0, 0x5000, 0, 0, 1 << 28, 8, 0, 0, 0, 0, 0]);
        assert_eq!(Command::set_queues(4).0[10..12], [7, 0x3_0003]);
        assert_eq!(Command::create_completion_queue(2, 256, 0x1000, true).0[10..12], [0xff_0002, 3]);
        assert_eq!(Command::create_submission_queue(2, 256, 0x1000).0[10..12], [0xff_0002, 0x2_0001]);
        assert_eq!(Command::abort(2, 9).0[10], 0x9_0002);
        assert_eq!(Command::deallocate(1, 0x7000).0[10..12], [0, 4]);
        assert_eq!(Command::identify(Subject::Namespace(5), 0x1000).0[1], 5);
    }

    #[test]
    fn completions_are_taken_apart() {
        let completion = Completion::new(7, 0x2_0011, 0x4002 << 17 | 1 << 16 | 0x33);
        assert_eq!((completion.result, completion.head, completion.queue), (7, 0x11, 2));
        assert_eq!((completion.identifier, completion.status), (0x33, Status(0x4002)));
        assert_eq!(completion.status.outcome(), Err(IoError::Device));
        assert_eq!(Status(0x4000).outcome(), Ok(()));
        assert_eq!(Status(0x4001).outcome(), Err(IoError::Unsupported));
        assert_eq!(Status(0x0080).outcome(), Err(IoError::OutOfRange));
        assert_eq!(Status(0x0180).outcome(), Err(IoError::Device));
    }
}
