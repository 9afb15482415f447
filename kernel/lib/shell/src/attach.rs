//! Leaving a guest's console.
//!
//! [`Attach`] stands between the operator's keys and the guest and looks for the detach key. One press leaves, two
//! give the guest one; what tells them apart is time, so it is told the time.

use config::ControlKey;

/// How long after the detach key a second one still belongs to it.
const SECOND_PRESS_NS: u64 = 400_000_000;

/// The way from the operator's keys to a guest's console.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attach {
    key: u8,
    /// When the detach key was pressed, where that is not decided yet.
    pressed_ns: Option<u64>,
}

/// What to do about a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AttachAction {
    /// Give this byte to the guest.
    Forward(u8),
    /// Nothing yet: ask [`Attach::poll`] when time has passed.
    Wait,
    /// Go back to the shell, which gets this byte where there is one.
    Detach(Option<u8>),
}

impl Attach {
    /// A session that `key` leaves.
    pub const fn new(key: ControlKey) -> Self {
        Self { key: key.byte(), pressed_ns: None }
    }

    /// The operator pressed a key.
    pub fn byte(&mut self, byte: u8, now_ns: u64) -> AttachAction {
        match (self.pressed_ns.take(), byte == self.key) {
            (None, false) => AttachAction::Forward(byte),
            (None, true) => {
                self.pressed_ns = Some(now_ns);
                AttachAction::Wait
            }
            (Some(pressed_ns), true) if now_ns.saturating_sub(pressed_ns) < SECOND_PRESS_NS => {
                AttachAction::Forward(byte)
            }
            (Some(_), true) => AttachAction::Detach(None),
            (Some(_), false) => AttachAction::Detach(Some(byte)),
        }
    }

    /// Time passed.
    pub fn poll(&mut self, now_ns: u64) -> AttachAction {
        match self.deadline_ns() {
            Some(deadline_ns) if now_ns >= deadline_ns => {
                self.pressed_ns = None;
                AttachAction::Detach(None)
            }
            _ => AttachAction::Wait,
        }
    }

    /// When [`poll`](Attach::poll) will have something to say.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.pressed_ns.map(|pressed_ns| pressed_ns.saturating_add(SECOND_PRESS_NS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: u8 = 0x1d;

    #[test]
    fn keys_go_to_the_guest() {
        let mut attach = Attach::new(ControlKey::DETACH);
        for byte in (0..=255).filter(|&byte| byte != KEY) {
            assert_eq!(attach.byte(byte, 0), AttachAction::Forward(byte));
        }
        assert_eq!(attach.poll(u64::MAX), AttachAction::Wait);
    }

    #[test]
    fn one_press_leaves_after_a_moment() {
        let mut attach = Attach::new(ControlKey::DETACH);
        assert_eq!(attach.byte(KEY, 1000), AttachAction::Wait);
        assert_eq!(attach.poll(1000 + SECOND_PRESS_NS - 1), AttachAction::Wait);
        assert_eq!(attach.deadline_ns(), Some(1000 + SECOND_PRESS_NS));
        assert_eq!(attach.poll(1000 + SECOND_PRESS_NS), AttachAction::Detach(None));
        assert_eq!(attach.poll(u64::MAX), AttachAction::Wait);
    }

    #[test]
    fn two_presses_give_the_guest_one() {
        let mut attach = Attach::new(ControlKey::DETACH);
        assert_eq!(attach.byte(KEY, 0), AttachAction::Wait);
        assert_eq!(attach.byte(KEY, 1), AttachAction::Forward(KEY));
        assert_eq!(attach.byte(b'x', 2), AttachAction::Forward(b'x'));
        assert_eq!(attach.byte(KEY, 3), AttachAction::Wait);
        assert_eq!(attach.byte(KEY, 3 + SECOND_PRESS_NS), AttachAction::Detach(None));
    }

    #[test]
    fn what_is_typed_after_the_key_is_for_the_shell() {
        let mut attach = Attach::new("ctrl-a".parse().unwrap());
        assert_eq!(attach.byte(KEY, 0), AttachAction::Forward(KEY));
        assert_eq!(attach.byte(1, 0), AttachAction::Wait);
        assert_eq!(attach.byte(b'v', 1), AttachAction::Detach(Some(b'v')));
    }
}
