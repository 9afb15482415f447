//! An Ethernet segment between emulated machines and the test itself. The main type is [`Wire`]: a learning switch, so that
//! a guest that moved and did not say so is out of reach, with faults on order. Machines join by QEMU's stream back end
//! (a frame behind its length, four bytes, big-endian) or Bochs's sockets (a frame in a datagram); the test joins by [`Tap`].

use std::collections::HashMap;
use std::io::{Read, Write as _};
use std::net::{Ipv4Addr, UdpSocket};
use std::ops::Range;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};

/// The largest frame that anybody sends.
const FRAME_BYTES_MAX: usize = 64 << 10;
const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Protocol type of RARP (RFC 903), by which a host announces where a guest is.
const RARP: [u8; 2] = [0x80, 0x35];
/// Where the protocol type, the addresses and the payload of an IPv4 frame are.
const TYPE_AT: usize = 12;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV4_AT: usize = 14;

/// A segment. Its machines' ports are numbered from 0; the test's follow.
pub struct Wire {
    state: Arc<Mutex<State>>,
    sockets: Vec<PathBuf>,
}

#[derive(Default)]
struct State {
    ports: Vec<Port>,
    /// Behind which port an address is.
    known: HashMap<[u8; 6], usize>,
    announcements: u32,
}

#[derive(Default)]
struct Port {
    out: Option<Sender<Vec<u8>>>,
    is_cut: bool,
    /// What is said from here does not arrive.
    is_mute: bool,
    /// The next TCP segment from here with so many bytes of payload is corrupted.
    corrupts: Option<usize>,
}

/// The test's own place on the segment.
pub struct Tap {
    state: Arc<Mutex<State>>,
    port: usize,
    frames: Receiver<Vec<u8>>,
}

impl Wire {
    /// A segment for so many machines.
    ///
    /// # Errors
    /// If a socket cannot be made.
    pub fn new(name: &str, machines: usize) -> Result<Self> {
        let state = Arc::new(Mutex::new(State::default()));
        let mut sockets = Vec::new();
        for port in 0..machines {
            let path = std::env::temp_dir().join(format!("pollux-{}-{name}-{port}.wire", std::process::id()));
            let _ = std::fs::remove_file(&path);
            let listener = UnixListener::bind(&path).with_context(|| format!("listening at {}", path.display()))?;
            state.lock().unwrap_or_else(PoisonError::into_inner).ports.push(Port::default());
            let shared = state.clone();
            thread::spawn(move || {
                // A machine that was switched off and on again joins anew.
                while let Ok((stream, _)) = listener.accept() {
                    let _ = carry(&shared, port, stream);
                }
            });
            sockets.push(path);
        }
        Ok(Self { state, sockets })
    }

    /// The value of QEMU's `-netdev` for the machine at a port.
    #[must_use]
    pub fn netdev(&self, port: usize) -> String {
        format!("stream,id=net0,server=off,addr.type=unix,addr.path={}", self.sockets[port].display())
    }

    /// One more port, for a machine whose frames are UDP datagrams as Bochs's are: where it is to receive; it sends to the
    /// port after that.
    ///
    /// # Errors
    /// If there are no two such ports.
    pub fn datagrams(&self) -> Result<u16> {
        let (socket, theirs) = two_ports()?;
        let (out, queue) = mpsc::channel::<Vec<u8>>();
        let sender = socket.try_clone()?;
        thread::spawn(move || {
            for frame in queue {
                // A machine that is switched off refuses it.
                let _ = sender.send_to(&frame, (LOCALHOST, theirs));
            }
        });
        let mut state = self.lock();
        state.ports.push(Port { out: Some(out), ..Port::default() });
        let (port, shared) = (state.ports.len() - 1, self.state.clone());
        thread::spawn(move || {
            let mut frame = vec![0; FRAME_BYTES_MAX];
            loop {
                // What was refused is told here.
                if let Ok((bytes, _)) = socket.recv_from(&mut frame) {
                    forward(&shared, port, frame[..bytes].to_vec());
                }
            }
        });
        Ok(theirs)
    }

    /// Joins the segment.
    #[must_use]
    pub fn tap(&self) -> Tap {
        let (out, frames) = mpsc::channel();
        let mut state = self.lock();
        state.ports.push(Port { out: Some(out), ..Port::default() });
        Tap { state: self.state.clone(), port: state.ports.len() - 1, frames }
    }

    /// Cuts a port's cable, or mends it.
    pub fn cut(&self, port: usize, is_cut: bool) {
        self.lock().ports[port].is_cut = is_cut;
    }

    /// Loses every TCP segment with payload from a port, or no more: acknowledgements and what keeps a connection alive pass,
    /// so that the other side goes on to where it waits for a word, and does not take this one for dead.
    pub fn mute(&self, port: usize, is_mute: bool) {
        self.lock().ports[port].is_mute = is_mute;
    }

    /// Whether it is cut.
    #[must_use]
    pub fn is_cut(&self, port: usize) -> bool {
        self.lock().ports[port].is_cut
    }

    /// Corrupts the next TCP segment from a port that has so many bytes of payload, in a way that no checksum sees.
    pub fn corrupt(&self, port: usize, payload_bytes: usize) {
        self.lock().ports[port].corrupts = Some(payload_bytes);
    }

    /// Whether that has happened.
    #[must_use]
    pub fn has_corrupted(&self, port: usize) -> bool {
        self.lock().ports[port].corrupts.is_none()
    }

    /// How many RARP frames were seen.
    #[must_use]
    pub fn announcements(&self) -> u32 {
        self.lock().announcements
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for socket in &self.sockets {
            let _ = std::fs::remove_file(socket);
        }
    }
}

impl Tap {
    /// Sends a frame.
    pub fn send(&self, frame: Vec<u8>) {
        forward(&self.state, self.port, frame);
    }

    /// The next frame that arrived.
    #[must_use]
    pub fn receive(&self) -> Option<Vec<u8>> {
        self.frames.try_recv().ok()
    }
}

/// A socket at a port, and the port before it, which is free.
fn two_ports() -> Result<(UdpSocket, u16)> {
    for _ in 0..100 {
        let socket = UdpSocket::bind((LOCALHOST, 0)).context("a port for frames")?;
        let before = socket.local_addr()?.port() - 1;
        if UdpSocket::bind((LOCALHOST, before)).is_ok() {
            return Ok((socket, before));
        }
    }
    bail!("there are no two ports in a row")
}

/// Carries frames from and to a machine until it hangs up.
fn carry(state: &Arc<Mutex<State>>, port: usize, mut stream: UnixStream) -> Result<()> {
    let (out, queue) = mpsc::channel::<Vec<u8>>();
    let mut writer = stream.try_clone()?;
    thread::spawn(move || {
        for frame in queue {
            let mut bytes = (frame.len() as u32).to_be_bytes().to_vec();
            bytes.extend_from_slice(&frame);
            if writer.write_all(&bytes).is_err() {
                break;
            }
        }
    });
    state.lock().unwrap_or_else(PoisonError::into_inner).ports[port].out = Some(out);
    let mut length = [0; 4];
    loop {
        stream.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        anyhow::ensure!(length <= FRAME_BYTES_MAX, "a frame of {length} bytes");
        let mut frame = vec![0; length];
        stream.read_exact(&mut frame)?;
        forward(state, port, frame);
    }
}

/// Gives a frame to whom it is for: behind one port, as far as that is known, else all others.
fn forward(state: &Mutex<State>, from: usize, mut frame: Vec<u8>) {
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    let state = &mut *state;
    if frame.len() < IPV4_AT || state.ports[from].is_cut || state.ports[from].is_mute && says_something(&frame) {
        return;
    }
    if state.ports[from].corrupts.is_some_and(|bytes| corrupt(&mut frame, bytes)) {
        state.ports[from].corrupts = None;
    }
    let address = |at: usize| -> [u8; 6] { frame[at..at + 6].try_into().expect("six bytes") };
    let (to, source) = (address(0), address(6));
    state.known.insert(source, from);
    state.announcements += u32::from(frame[TYPE_AT..IPV4_AT] == RARP);
    let only = state.known.get(&to).copied().filter(|_| to[0] & 1 == 0);
    for (index, port) in state.ports.iter().enumerate() {
        if index != from
            && !port.is_cut
            && only.is_none_or(|only| only == index)
            && let Some(out) = &port.out
        {
            let _ = out.send(frame.clone());
        }
    }
}

/// Swaps two words of a TCP segment's payload, which its checksum is blind to; says whether it has so much payload.
fn corrupt(frame: &mut [u8], payload_bytes: usize) -> bool {
    let Some(payload) = payload(frame).filter(|payload| payload.len() >= payload_bytes) else { return false };
    let middle = payload.start + payload_bytes / 2 / 2 * 2;
    if frame[middle..middle + 2] == frame[middle + 2..middle + 4] {
        return false;
    }
    frame[middle..middle + 4].rotate_left(2);
    true
}

/// Whether a frame has TCP payload of which something is said: a byte alone keeps a connection alive (RFC 1122, 4.2.3.6).
fn says_something(frame: &[u8]) -> bool {
    payload(frame).is_some_and(|bytes| bytes.len() > 1)
}

/// Where a frame's TCP payload is, if it has any.
fn payload(frame: &[u8]) -> Option<Range<usize>> {
    const TCP: u8 = 6;
    if frame[TYPE_AT..IPV4_AT] != IPV4 || frame.len() < IPV4_AT + 40 || frame[IPV4_AT + 9] != TCP {
        return None;
    }
    let tcp_at = IPV4_AT + usize::from(frame[IPV4_AT] & 0xf) * 4;
    let packet_bytes = usize::from(u16::from_be_bytes([frame[IPV4_AT + 2], frame[IPV4_AT + 3]]));
    let payload_at = tcp_at + usize::from(*frame.get(tcp_at + 12)? >> 4) * 4;
    // A short frame has padding behind it.
    let end = frame.len().min(IPV4_AT + packet_bytes);
    (payload_at < end).then_some(payload_at..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
    const B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];

    fn frame(to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
        [&to[..], &from, &[0x88, 0xb5], &[0; 46]].concat()
    }

    #[test]
    fn frames_go_where_their_address_was_last_seen() {
        let wire = Wire::new("unit", 0).unwrap();
        let taps = [wire.tap(), wire.tap(), wire.tap()];
        taps[0].send(frame(B, A));
        assert!(taps[1].receive().is_some() && taps[2].receive().is_some(), "nobody knows B");
        taps[1].send(frame(A, B));
        assert!(taps[0].receive().is_some() && taps[2].receive().is_none());
        taps[0].send(frame(B, A));
        assert!(taps[1].receive().is_some() && taps[2].receive().is_none());
        taps[2].send(frame([0xff; 6], B));
        let _ = taps[1].receive();
        taps[0].send(frame(B, A));
        assert!(taps[1].receive().is_none() && taps[2].receive().is_some(), "B moved");
        wire.cut(2, true);
        taps[0].send(frame(B, A));
        assert!(taps[2].receive().is_none());
    }

    #[test]
    fn corruption_keeps_the_checksum() {
        let mut segment = frame(A, B);
        segment.extend(0..=255);
        segment[TYPE_AT..IPV4_AT].copy_from_slice(&IPV4);
        (segment[IPV4_AT], segment[IPV4_AT + 9], segment[IPV4_AT + 32]) = (0x45, 6, 0x50);
        let packet_bytes = (segment.len() - IPV4_AT) as u16;
        segment[IPV4_AT + 2..IPV4_AT + 4].copy_from_slice(&packet_bytes.to_be_bytes());
        let sum = |bytes: &[u8]| bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum::<u32>();
        let before = segment.clone();
        assert!(corrupt(&mut segment, 200) && segment != before);
        assert_eq!(sum(&segment), sum(&before));
        assert!(!corrupt(&mut segment, 2000));
    }

    #[test]
    fn a_mute_port_acknowledges_and_says_nothing() {
        let wire = Wire::new("unit-mute", 0).unwrap();
        let taps = [wire.tap(), wire.tap()];
        wire.mute(0, true);
        let segment = |payload_bytes: u16| {
            let mut segment = frame(B, A);
            segment.resize(IPV4_AT + 40 + usize::from(payload_bytes).max(6), 0);
            segment[TYPE_AT..IPV4_AT].copy_from_slice(&IPV4);
            segment[IPV4_AT + 2..IPV4_AT + 4].copy_from_slice(&(40 + payload_bytes).to_be_bytes());
            (segment[IPV4_AT], segment[IPV4_AT + 9], segment[IPV4_AT + 32]) = (0x45, 6, 0x50);
            segment
        };
        taps[0].send(segment(2));
        assert!(taps[1].receive().is_none(), "a word");
        taps[0].send(segment(0));
        assert!(taps[1].receive().is_some(), "an acknowledgement with padding behind it");
        taps[0].send(segment(1));
        assert!(taps[1].receive().is_some(), "the connection is kept alive");
        wire.mute(0, false);
        taps[0].send(segment(2));
        assert!(taps[1].receive().is_some());
    }
}
