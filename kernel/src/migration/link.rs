//! One session over one stream of the management address.

use crate::management::Management;
use peer::{End, Event, KeyPair, MakeSealer, Role, Session};
use smoltcp::iface::SocketHandle;

/// The stream of a session that migration messages are on.
const STREAM: u8 = 1;
/// Bytes that wait for the connection at most before more are made.
const WAITING_BYTES_MAX: usize = 128 << 10;

/// A session with another host.
pub struct Link {
    handle: SocketHandle,
    session: Session,
    /// What of the session's bytes has been given to the stream.
    given: usize,
    is_over: bool,
}

impl Link {
    /// A session over a stream that is open or being opened.
    pub fn new(handle: SocketHandle, role: Role, keys: &KeyPair) -> Self {
        let session = Session::new(role, keys, aes(), &mut crate::cpu_loop::random);
        Self { handle, session, given: 0, is_over: false }
    }

    /// Takes what arrived; each message goes to `message`. Gives what became of the session.
    pub fn receive(&mut self, management: &mut Management, mut message: impl FnMut(&[u8])) -> Option<Event> {
        if self.is_over {
            return None;
        }
        if management.stream(self.handle).can_recv() {
            management.touch();
        }
        let socket = management.stream(self.handle);
        while socket.can_recv() {
            let taken = socket.recv(|bytes| (bytes.len(), self.session.receive(bytes)));
            if taken.is_err() {
                break;
            }
        }
        let ends = !socket.is_open() || !socket.may_recv() && !socket.can_recv() && was_open(socket.state());
        let event = self.session.poll(|stream, bytes| {
            if stream == STREAM {
                message(bytes);
            }
        });
        match event {
            None if ends => {
                self.is_over = true;
                Some(Event::Ended(End::Lost))
            }
            Some(Event::Ended(end)) => {
                self.is_over = true;
                Some(Event::Ended(end))
            }
            other => other,
        }
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
    pub fn has_room(&mut self) -> bool {
        self.session.is_open() && self.session.outgoing().len() - self.given < WAITING_BYTES_MAX
    }

    /// Gives what waits to the stream.
    pub fn flush(&mut self, management: &mut Management) {
        let socket = management.stream(self.handle);
        let outgoing = self.session.outgoing();
        let mut any = false;
        while self.given < outgoing.len() && socket.can_send() {
            match socket.send_slice(&outgoing[self.given..]) {
                Ok(count) if count > 0 => self.given += count,
                _ => break,
            }
            any = true;
        }
        if self.given == outgoing.len() {
            outgoing.clear();
            self.given = 0;
        }
        if any {
            management.touch();
        }
    }

    /// Whether nothing waits to be given to the stream.
    pub fn is_flushed(&mut self) -> bool {
        self.session.outgoing().is_empty()
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
