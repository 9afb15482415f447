//! Received frames that wait although their card should have called.
//!
//! The type is [`Overlooked`], which is asked about once a second. It knows no card: whoever takes the frames tells it.

/// Watches one card.
#[derive(Default)]
pub struct Overlooked {
    /// Frames taken so far.
    taken: u64,
    /// How many had been taken when some waited at the last look.
    waited: Option<u64>,
}

impl Overlooked {
    /// Notes that so many frames were taken.
    pub fn took(&mut self, frames: usize) {
        self.taken = self.taken.wrapping_add(frames as u64);
    }

    /// Looks whether the card was overlooked: frames waited at the last look, wait now (`waits`), and none was taken
    /// in between. Whoever looks has taken what it was called for meanwhile.
    pub fn look(&mut self, waits: bool) -> bool {
        let before = core::mem::replace(&mut self.waited, waits.then_some(self.taken));
        waits && before == Some(self.taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_frames_that_nobody_takes_are_overlooked() {
        let mut watch = Overlooked::default();
        assert!(!watch.look(true), "they may have come this moment");
        assert!(watch.look(true) && watch.look(true), "until they are taken");
        watch.took(1);
        assert!(!watch.look(true), "somebody takes them");
        assert!(!watch.look(false));
        assert!(!watch.look(true), "others, which have just come");
        watch.took(0);
        assert!(watch.look(true), "a call that found none took none");
    }
}
