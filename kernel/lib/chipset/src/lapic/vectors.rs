//! A set of interrupt vectors, as IRR, ISR and TMR are: 256 bits, of which the highest matters most.
//!
//! The type is [`Vectors`]; only `lapic` uses it.

/// A set of vectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Vectors([u64; 4]);

impl Vectors {
    /// Puts a vector in.
    pub fn insert(&mut self, vector: u8) {
        self.0[usize::from(vector >> 6)] |= bit(vector);
    }

    /// Takes a vector out.
    pub fn remove(&mut self, vector: u8) {
        self.0[usize::from(vector >> 6)] &= !bit(vector);
    }

    /// Puts a vector in or takes it out.
    pub fn set(&mut self, vector: u8, member: bool) {
        if member {
            self.insert(vector);
        } else {
            self.remove(vector);
        }
    }

    /// Whether the vector is in the set.
    pub fn contains(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 6)] & bit(vector) != 0
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    /// How many vectors are in it.
    pub fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// The member with the highest priority.
    pub fn highest(&self) -> Option<u8> {
        (0u8..4).rev().find_map(|index| {
            let word = self.0[usize::from(index)];
            word.checked_ilog2().map(|high| index << 6 | high as u8)
        })
    }

    /// The set as it is saved: bit `n` of word `m` is vector `64 * m + n`.
    pub fn words(&self) -> [u64; 4] {
        self.0
    }

    /// The set of saved words.
    pub fn from_words(words: [u64; 4]) -> Self {
        Self(words)
    }

    /// The 32 vectors from `32 * index` on, as a register shows them; `index` counts modulo 8.
    pub fn register(&self, index: u32) -> u32 {
        (self.0[(index >> 1 & 3) as usize] >> (32 * (index & 1))) as u32
    }
}

const fn bit(vector: u8) -> u64 {
    1 << (vector & 63)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn highest_of_each_word() {
        let mut set = Vectors::default();
        assert_eq!((set.highest(), set.is_empty()), (None, true));
        for vector in [0, 31, 32, 63, 64, 128, 200, 255] {
            set.insert(vector);
            assert_eq!(set.highest(), Some(vector));
        }
        assert_eq!(set.len(), 8);
        set.remove(255);
        assert_eq!(set.highest(), Some(200));
    }

    #[test]
    fn register_view() {
        let mut set = Vectors::default();
        set.insert(33);
        set.insert(255);
        assert_eq!((set.register(0), set.register(1), set.register(7)), (0, 2, 1 << 31));
    }
}
