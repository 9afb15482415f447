//! One session over one stream of the management address.

use super::TURN_NS;
use crate::crew::CREW;
use crate::management::Management;
use crate::time::Clock;
use core::ops::ControlFlow;
use peer::{End, Event, FrameCounts, KeyPair, MakeSealer, Role, Session};
use smoltcp::iface::SocketHandle;

/// The stream of a session that migration messages are on.
const STREAM: u8 = 1;
/// Bytes that wait for the connection at most before more are made: two of the longest frames, or several where other CPUs
/// help to seal them.
const WAITING_BYTES_MAX: usize = 128 << 10;
const HELPED_BYTES_MAX: usize = 512 << 10;
/// Bytes that wait for a session to look at them at most before more are taken, of one that is open, and of a stranger's.
const TAKEN_BYTES_MAX: usize = 512 << 10;
const STRANGE_BYTES_MAX: usize = 128 << 10;

/// A session with another host.
pub struct Link {
    handle: SocketHandle,
    session: Session,
    is_over: bool,
}

impl Link {
    /// A session over a stream that is open or being opened.
    pub fn new(handle: SocketHandle, role: Role, keys: &KeyPair) -> Self {
        let session = Session::new(role, keys, aes(), Some(&CREW), &mut crate::cpu_loop::random);
        Self { handle, session, is_over: false }
    }

    /// Takes what arrived; each message goes to `message`. Gives what became of the session. A turn is limited whatever
    /// the other host sends: what is left waits for the next, which `management` is told of.
    pub fn receive(
        &mut self,
        management: &mut Management,
        clock: &Clock,
        mut message: impl FnMut(&[u8]),
    ) -> Option<Event> {
        let until_ns = clock.now_ns() + TURN_NS;
        while !self.is_over {
            let took_any = self.take_bytes(management);
            let mut is_late = false;
            let event = self.session.poll(|stream, bytes| {
                if stream == STREAM {
                    message(bytes);
                }
                is_late = clock.now_ns() >= until_ns;
                if is_late { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            if event.is_none() && !is_late && took_any {
                continue;
            }
            // What follows a handshake may have come with it.
            let has_more = self.session.has_more() || matches!(event, Some(Event::Identified(_) | Event::Open));
            let socket = management.stream(self.handle);
            let ends = !socket.is_open() || !socket.may_recv() && was_open(socket.state());
            let ends = ends && !socket.can_recv() && !has_more;
            if has_more || socket.can_recv() {
                management.fall_behind();
            }
            // Anybody may come and go, and is not worth a word.
            if event.is_none() && ends && self.session.is_open() {
                self.tell_of_loss(management);
            }
            let event = event.or_else(|| ends.then_some(Event::Ended(End::Lost)));
            self.is_over = matches!(event, Some(Event::Ended(_)));
            return event;
        }
        None
    }

    /// Says what this side waited for when its stream was lost: the other side says the same of itself, and both together
    /// tell who stood still.
    fn tell_of_loss(&mut self, management: &mut Management) {
        let (queued, waiting) = (self.session.to_send(), self.session.waiting());
        let stream = management.backlog(self.handle);
        log::warn!(
            "a peer's stream is lost: {stream}; {queued} bytes waited for room in it, {waiting} to be looked at"
        );
    }

    /// Takes bytes from the stream, as many as the session should have; says whether there were any.
    fn take_bytes(&mut self, management: &mut Management) -> bool {
        let socket = management.stream(self.handle);
        let mut took_any = false;
        let most = if self.session.is_open() { TAKEN_BYTES_MAX } else { STRANGE_BYTES_MAX };
        while socket.can_recv() {
            let room = most.saturating_sub(self.session.waiting());
            let taken = socket.recv(|bytes| {
                let count = bytes.len().min(room);
                self.session.receive(&bytes[..count]);
                (count, count)
            });
            match taken {
                Ok(count) if count > 0 => took_any = true,
                Ok(_) | Err(_) => break,
            }
        }
        if took_any {
            management.touch();
        }
        took_any
    }

    /// Says whether the other host's key is trusted; `None` where nobody asked.
    pub fn trust(&mut self, verdict: Result<(), &str>) -> Option<Event> {
        let event = self.session.trust(verdict);
        self.is_over |= matches!(event, Some(Event::Ended(_)));
        event
    }

    /// Sends a message, or drops it where the session is over.
    pub fn send(&mut self, message: &[u8]) {
        self.session.send(STREAM, &[message]);
    }

    /// Ends the session; the other host is told why.
    pub fn close(&mut self, reason: &str) {
        if !self.is_over {
            self.session.close(reason);
            self.is_over = true;
        }
    }

    /// Whether more may be sent without piling up.
    pub fn has_room(&self) -> bool {
        let most = if self.session.is_helped() { HELPED_BYTES_MAX } else { WAITING_BYTES_MAX };
        self.session.is_open() && self.session.to_send() < most
    }

    /// Gives what is sealed to the stream, and seals until there is room for more; says whether there is. Where other CPUs
    /// seal too, this one rather makes more for them.
    pub fn make_room(&mut self, management: &mut Management) -> bool {
        loop {
            self.give(management);
            let is_left = self.session.is_helped() && self.has_room();
            if is_left || !self.session.advance() {
                return self.has_room();
            }
        }
    }

    /// Gives what waits to the stream.
    pub fn flush(&mut self, management: &mut Management) {
        self.give(management);
        while self.session.advance() {
            self.give(management);
        }
        if self.session.is_elsewhere() {
            management.fall_behind();
        }
    }

    /// Gives to the stream what is sealed.
    fn give(&mut self, management: &mut Management) {
        let socket = management.stream(self.handle);
        let mut any = false;
        while socket.can_send() {
            match socket.send_slice(self.session.outgoing()) {
                Ok(count) if count > 0 => self.session.note_sent(count),
                _ => break,
            }
            any = true;
        }
        if any {
            management.touch();
        }
    }

    /// Whether nothing waits to be given to the stream.
    pub fn is_flushed(&self) -> bool {
        self.session.to_send() == 0
    }

    /// How many frames there were.
    pub fn frames(&self) -> FrameCounts {
        self.session.counts()
    }

    /// Whether messages can be sent.
    pub fn is_open(&self) -> bool {
        self.session.is_open()
    }

    /// Whether the session is over.
    pub fn is_closed(&self) -> bool {
        self.is_over
    }

    /// Goes on with the end of a session that is over; says whether its stream is gone.
    pub fn shut(&mut self, management: &mut Management) -> bool {
        self.flush(management);
        let is_flushed = self.is_flushed();
        let socket = management.stream(self.handle);
        if is_flushed || !socket.may_send() {
            socket.close();
        }
        let is_open = socket.is_open();
        management.touch();
        if is_open {
            return false;
        }
        management.forget(self.handle);
        true
    }
}

/// The processor's own cipher. All sessions are of the CPU that asks.
fn aes() -> Option<MakeSealer> {
    gcm::maker().filter(|_| cpu::fpu::is_enabled())
}

/// Whether a stream got through to the other end at all, so that its closed half means an end.
fn was_open(state: smoltcp::socket::tcp::State) -> bool {
    use smoltcp::socket::tcp::State;
    !matches!(state, State::Listen | State::SynSent | State::SynReceived)
}
