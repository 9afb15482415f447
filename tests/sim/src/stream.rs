//! Streams between two hosts: in order, whole, late, until they break; and the session at each end. The main type is
//! [`Stream`].

use crate::random::Random;
use peer::{KeyPair, Role, Session};
use std::collections::VecDeque;
use std::ops::ControlFlow;

/// The most bytes that arrive at once.
const SEGMENT_BYTES: u64 = 20_000;

/// What a session tells its owner.
pub enum News {
    /// The other end has shown its key, and waits to be trusted.
    Identified,
    /// Messages can be sent.
    Open,
    /// It is over.
    Ended(String),
    /// A message.
    Message(Vec<u8>),
}

/// One end of a stream.
pub struct End {
    /// Whose it is.
    pub host: usize,
    /// The session on it.
    pub session: Session,
    /// What is under way to it, and when it arrives.
    inbox: VecDeque<(u64, Vec<u8>)>,
    /// When this end finds out that nothing comes any more.
    lost_at_ns: Option<u64>,
    /// Its owner has heard that it is over, or ended it.
    pub is_over: bool,
}

/// A stream.
pub struct Stream {
    /// Who called, and who was called.
    pub ends: [End; 2],
    is_broken: bool,
    /// How late segments are at most.
    late_ns: u64,
    /// A byte under way to the second end is changed after so many more.
    corrupt_in: Option<u64>,
}

impl Stream {
    /// From one host to another, whose key is known.
    pub fn new(from: (usize, &KeyPair), to: (usize, &KeyPair), late_ns: u64, random: &mut Random) -> Self {
        let mut entropy = |into: &mut [u8]| into.iter_mut().for_each(|byte| *byte = random.next() as u8);
        let mut end = |host, role, keys| End {
            host,
            session: Session::new(role, keys, None, None, &mut entropy),
            inbox: VecDeque::new(),
            lost_at_ns: None,
            is_over: false,
        };
        let ends = [end(from.0, Role::Initiator(to.1.public()), from.1), end(to.0, Role::Responder, to.1)];
        Self { ends, is_broken: false, late_ns, corrupt_in: None }
    }

    /// Breaks it; each end finds out later.
    pub fn cut(&mut self, now_ns: u64, random: &mut Random) {
        if !self.is_broken {
            self.is_broken = true;
            for end in &mut self.ends {
                // What is under way may still arrive, or not.
                let kept = random.below(end.inbox.len() as u64 + 1) as usize;
                end.inbox.truncate(kept);
                end.lost_at_ns = Some(now_ns + self.late_ns + random.below(20_000_000));
            }
        }
    }

    /// Has a byte changed on its way to the one that was called.
    pub fn corrupt(&mut self, after_bytes: u64) {
        self.corrupt_in = Some(after_bytes);
    }

    /// Whether neither end has any use for it.
    pub fn is_gone(&self) -> bool {
        self.ends.iter().all(|end| end.is_over)
    }

    /// Sends what the sessions have to say.
    pub fn send(&mut self, now_ns: u64, random: &mut Random) {
        for from in 0..2 {
            let mut bytes = self.ends[from].session.drain();
            if self.is_broken || bytes.is_empty() {
                continue;
            }
            if from == 0
                && let Some(left) = &mut self.corrupt_in
            {
                match bytes.get_mut(*left as usize) {
                    Some(byte) => {
                        *byte ^= 0x20;
                        self.corrupt_in = None;
                    }
                    None => *left -= bytes.len() as u64,
                }
            }
            let inbox = &mut self.ends[1 - from].inbox;
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (segment, after) = rest.split_at((1 + random.below(SEGMENT_BYTES) as usize).min(rest.len()));
                let before_ns = inbox.back().map_or(0, |(at_ns, _)| *at_ns);
                inbox.push_back((before_ns.max(now_ns + random.below(self.late_ns + 1)), segment.to_vec()));
                rest = after;
            }
        }
    }

    /// Takes what has arrived at an end.
    pub fn receive(&mut self, index: usize, now_ns: u64) -> Vec<News> {
        let end = &mut self.ends[index];
        let mut news = Vec::new();
        if end.is_over {
            return news;
        }
        while end.inbox.front().is_some_and(|(at_ns, _)| *at_ns <= now_ns) {
            let Some((_, bytes)) = end.inbox.pop_front() else { break };
            end.session.receive(&bytes);
        }
        loop {
            let event = end.session.poll(|_, bytes| {
                news.push(News::Message(bytes.to_vec()));
                ControlFlow::Continue(())
            });
            match event {
                Some(peer::Event::Identified(_)) => news.push(News::Identified),
                Some(peer::Event::Open) => news.push(News::Open),
                Some(peer::Event::Ended(why)) => {
                    end.is_over = true;
                    news.push(News::Ended(why.to_string()));
                }
                None => break,
            }
            // The owner's word comes first.
            if matches!(news.last(), Some(News::Identified)) {
                break;
            }
        }
        if !end.is_over && end.inbox.is_empty() && end.lost_at_ns.is_some_and(|at_ns| at_ns <= now_ns) {
            end.is_over = true;
            news.push(News::Ended("the connection is lost".to_string()));
        }
        news
    }

    /// The owner of an end has no more to do with it.
    pub fn close(&mut self, index: usize, reason: &str, now_ns: u64) {
        let end = &mut self.ends[index];
        if !end.is_over {
            end.session.close(reason);
            end.is_over = true;
            self.ends[1 - index].lost_at_ns.get_or_insert(now_ns + 2 * self.late_ns + 1);
        }
    }
}
