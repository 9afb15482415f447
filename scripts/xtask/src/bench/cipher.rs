//! What sessions seal and open, alone and with another processor's help. Nothing of it is emulated: the code is the
//! kernel's, the processor is this machine's, and a thread stands for each CPU.

use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use peer::{Crew, Event, KeyPair, MESSAGE_BYTES_MAX, Role, Session, Work};

use super::Figures;
use super::rig::{Rig, System};

/// Messages of one measurement, 512 MiB, and how many are sealed and then opened at a time: what lies between stays in the
/// processor's caches.
const MESSAGES: usize = 8192;
const AT_A_TIME: usize = 64;
/// Bytes that wait to be sealed, or opened, at most, as in the kernel.
const WAITING_BYTES_MAX: usize = 512 << 10;

/// A thread that helps.
struct Helper(Mutex<Sender<Arc<Work>>>);

impl Crew for Helper {
    fn offer(&self, work: &Arc<Work>) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).send(work.clone()).is_ok()
    }
}

/// Measures it, on one CPU and on two.
pub fn run(_: &Rig, system: System) -> Result<Figures> {
    let mut figures = Figures::new();
    if system == System::Pollux {
        for (cpus, crew) in [("one_cpu", None), ("two_cpus", Some(helper()))] {
            let (mut caller, mut called) = open(crew)?;
            let mut wire = vec![0; (AT_A_TIME + 1) * (MESSAGE_BYTES_MAX + 64)];
            let (mut seal_s, mut open_s) = (0.0, 0.0);
            for _ in 0..MESSAGES / AT_A_TIME {
                let began = Instant::now();
                let bytes = seal(&mut caller, &mut wire)?;
                let sealed = Instant::now();
                receive(&mut called, &wire[..bytes])?;
                seal_s += (sealed - began).as_secs_f64();
                open_s += sealed.elapsed().as_secs_f64();
            }
            let rate = |seconds: f64| (MESSAGES * MESSAGE_BYTES_MAX) as f64 / 1e6 / seconds;
            figures.insert(format!("seal_{cpus}_MBps"), rate(seal_s));
            figures.insert(format!("open_{cpus}_MBps"), rate(open_s));
        }
    }
    Ok(figures)
}

/// Starts a thread that does what it is shown, for as long as this program runs.
fn helper() -> &'static dyn Crew {
    let (sender, works): (_, Receiver<Arc<Work>>) = channel();
    thread::spawn(move || works.into_iter().for_each(|work| _ = work.help()));
    Box::leak(Box::new(Helper(Mutex::new(sender))))
}

/// Two ends of a session that trust each other.
fn open(crew: Option<&'static dyn Crew>) -> Result<(Session, Session)> {
    let keys = [KeyPair::new([1; 32]), KeyPair::new([2; 32])];
    let aes = Some(gcm::maker().context("this machine's processor has no instructions for AES")?);
    let mut entropy = |into: &mut [u8]| into.fill(7);
    let mut caller = Session::new(Role::Initiator(keys[1].public()), &keys[0], aes, crew, &mut entropy);
    let mut called = Session::new(Role::Responder, &keys[1], aes, crew, &mut entropy);
    while !(caller.is_open() && called.is_open()) {
        called.receive(&caller.drain());
        if let Some(Event::Identified(_)) = called.poll(|_, _| ControlFlow::Continue(())) {
            called.trust(Ok(()));
        }
        caller.receive(&called.drain());
        caller.poll(|_, _| ControlFlow::Continue(()));
    }
    Ok((caller, called))
}

/// Seals messages; gives how many bytes they became.
fn seal(session: &mut Session, wire: &mut [u8]) -> Result<usize> {
    let message = [0x5a; MESSAGE_BYTES_MAX];
    let mut end = 0;
    for _ in 0..AT_A_TIME {
        ensure!(session.send(1, &[&message]), "the session ended");
        while session.to_send() > WAITING_BYTES_MAX {
            end += give(session, &mut wire[end..]);
        }
    }
    while session.to_send() > 0 {
        end += give(session, &mut wire[end..]);
    }
    Ok(end)
}

/// Takes what is sealed, or seals a frame; gives how many bytes it took.
fn give(session: &mut Session, into: &mut [u8]) -> usize {
    if session.outgoing().is_empty() {
        session.advance();
    }
    let part = session.outgoing();
    let count = part.len();
    into[..count].copy_from_slice(part);
    session.note_sent(count);
    count
}

/// Opens their frames.
fn receive(session: &mut Session, mut frames: &[u8]) -> Result<()> {
    let mut messages = 0;
    while messages < AT_A_TIME {
        let room = WAITING_BYTES_MAX.saturating_sub(session.waiting()).min(frames.len());
        session.receive(&frames[..room]);
        frames = &frames[room..];
        let event = session.poll(|_, _| {
            messages += 1;
            ControlFlow::Continue(())
        });
        ensure!(event.is_none(), "the session ended: {event:?}");
    }
    Ok(())
}
