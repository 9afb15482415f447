//! A client of the small guest's `serve`: one TCP connection on a [`Wire`] that asks numbered questions all the time. The
//! main type is [`Client`]; a question that is lost, answered twice or out of order, and whatever the guest finds wrong
//! with its memory or disk, is an error.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as NetInstant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, Ipv4Address};

use crate::wire::{Tap, Wire};

/// The client's address on the wire.
const MAC: [u8; 6] = [0x52, 0x54, 0, 0x50, 0x4d, 0xcc];
/// How often the wire is looked at.
const TURN: Duration = Duration::from_millis(1);
/// A connection that is silent for so long is lost.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// An answer's bytes: the number, how many were answered, the guest's time of day, what is wrong.
const ANSWER_BYTES: usize = 32;

/// What has happened so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Questions answered.
    pub answered: u64,
    /// The longest time between two answers since this was last reset.
    pub gap_max: Duration,
    /// How far the guest's clock is ahead of this machine's, by the quickest of the answers since it was last reset: in
    /// nanoseconds, and that answer's round trip.
    pub ahead_ns: i64,
    /// See there.
    pub round_trip: Duration,
}

/// A client at work in a thread of its own.
pub struct Client {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Shared {
    ends: AtomicBool,
    tally: Mutex<Tally>,
}

impl Client {
    /// Connects from address `own` to a guest's, and begins to ask.
    #[must_use]
    pub fn start(wire: &Wire, own: [u8; 4], server: [u8; 4], port: u16) -> Self {
        let shared = Arc::<Shared>::default();
        let (tap, own_shared) = (wire.tap(), shared.clone());
        let thread = thread::spawn(move || Talk::new(tap, own, server, port)?.run(&own_shared));
        Self { shared, thread: Some(thread) }
    }

    /// What has happened since the last call, or since the start; the longest gap and the clock begin anew.
    ///
    /// # Errors
    /// If the client has given up, with its reason.
    pub fn tally(&mut self) -> Result<Tally> {
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            self.join()?;
            bail!("the client ended");
        }
        let mut tally = self.shared.tally.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = *tally;
        *tally = Tally { answered: taken.answered, ..Tally::default() };
        Ok(taken)
    }

    /// Waits for so many further answers.
    ///
    /// # Errors
    /// If they do not come.
    pub fn wait(&mut self, answers: u64) -> Result<Tally> {
        let (first, until) = (self.tally()?.answered, Instant::now() + SILENCE_MAX);
        loop {
            ensure!(Instant::now() < until, "the guest does not answer");
            thread::sleep(Duration::from_millis(20));
            let is_there = self.shared.tally.lock().unwrap_or_else(PoisonError::into_inner).answered >= first + answers;
            if is_there || self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
                return self.tally();
            }
        }
    }

    /// Has the guest check all of its memory and disk, and hangs up.
    ///
    /// # Errors
    /// If anything is wrong there, or was on the way.
    pub fn finish(mut self) -> Result<()> {
        self.shared.ends.store(true, Ordering::Relaxed);
        self.join()
    }

    fn join(&mut self) -> Result<()> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result.context("the guest's client"),
            Some(Err(_)) => bail!("the guest's client panicked"),
            None => Ok(()),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
    }
}

/// The connection.
struct Talk {
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    card: Card,
    started: Instant,
}

impl Talk {
    fn new(tap: Tap, own: [u8; 4], server: [u8; 4], port: u16) -> Result<Self> {
        let mut card = Card(tap);
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(MAC)));
        let mut interface = Interface::new(config, &mut card, NetInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(Ipv4Address::from(own)), 24));
        });
        let buffer = || tcp::SocketBuffer::new(vec![0; 4096]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        let to = (IpAddress::Ipv4(Ipv4Address::from(server)), port);
        socket.connect(interface.context(), to, 49_200).map_err(|error| anyhow::anyhow!("connecting: {error:?}"))?;
        let mut sockets = SocketSet::new(Vec::new());
        let socket = sockets.add(socket);
        Ok(Self { interface, sockets, socket, card, started: Instant::now() })
    }

    /// Asks until it is told to end; the last question is number 0.
    fn run(mut self, shared: &Shared) -> Result<()> {
        let mut last = Instant::now();
        for number in 1_u64.. {
            let ends = shared.ends.load(Ordering::Relaxed);
            let asked = Instant::now();
            let number = if ends { 0 } else { number };
            let [echoed, answered, time_ns, wrong] = self.ask(number)?;
            ensure!(wrong == 0, "at question {number} the guest found wrong: {}", faults(wrong));
            ensure!(echoed == number, "question {number} was answered as {echoed}");
            if ends {
                return Ok(());
            }
            ensure!(answered == number, "question {number} was the guest's {answered}");
            let (gap, round_trip) = (last.elapsed(), asked.elapsed());
            last = Instant::now();
            let now_ns = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as i64;
            let mut tally = shared.tally.lock().unwrap_or_else(PoisonError::into_inner);
            tally.answered = answered;
            tally.gap_max = if number == 1 { Duration::ZERO } else { tally.gap_max.max(gap) };
            if tally.round_trip.is_zero() || round_trip < tally.round_trip {
                tally.round_trip = round_trip;
                tally.ahead_ns = time_ns.cast_signed() - (now_ns - round_trip.as_nanos() as i64 / 2);
            }
        }
        Ok(())
    }

    fn ask(&mut self, number: u64) -> Result<[u64; 4]> {
        let mut question = &number.to_le_bytes()[..];
        let mut answer = Vec::new();
        let asked = Instant::now();
        while answer.len() < ANSWER_BYTES {
            let now = NetInstant::from_micros(self.started.elapsed().as_micros() as i64);
            self.interface.poll(now, &mut self.card, &mut self.sockets);
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.socket);
            ensure!(socket.is_open(), "the connection was broken at question {number}");
            ensure!(asked.elapsed() < SILENCE_MAX, "question {number} was not answered");
            let mut moved = 0;
            if socket.can_send() && !question.is_empty() {
                let sent = socket.send_slice(question).unwrap_or(0);
                question = &question[sent..];
                moved += sent;
            }
            if socket.can_recv() {
                let taken = socket.recv(|bytes| {
                    answer.extend_from_slice(bytes);
                    (bytes.len(), bytes.len())
                });
                moved += taken.unwrap_or(0);
            }
            if moved == 0 {
                thread::sleep(TURN);
            }
        }
        ensure!(answer.len() == ANSWER_BYTES, "more was answered than asked");
        let word = |index: usize| u64::from_le_bytes(answer[8 * index..8 * index + 8].try_into().expect("eight bytes"));
        Ok([0, 1, 2, 3].map(word))
    }
}

/// What the guest's bits say.
fn faults(wrong: u64) -> String {
    let names = ["the order of the questions", "its memory", "its disk"];
    let named: Vec<&str> = (0..).zip(names).filter(|(bit, _)| wrong >> bit & 1 != 0).map(|(_, name)| name).collect();
    named.join(" and ")
}

/// The client's network card.
struct Card(Tap);

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, act: F) -> R {
        act(&self.0)
    }
}

struct Sending<'tap>(&'tap Tap);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, act: F) -> R {
        let mut frame = vec![0; length];
        let result = act(&mut frame);
        self.0.send(frame);
        result
    }
}

impl Device for Card {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _now: NetInstant) -> Option<(Received, Sending<'_>)> {
        self.0.receive().map(|frame| (Received(frame), Sending(&self.0)))
    }

    fn transmit(&mut self, _now: NetInstant) -> Option<Sending<'_>> {
        Some(Sending(&self.0))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guest_finds_wrong_is_named() {
        assert_eq!(faults(5), "the order of the questions and its disk");
        assert_eq!(faults(2), "its memory");
    }
}
