//! A VM on its way into a simulated host: does what [`migrate::Target`] says. Its mirror is [`crate::outgoing`].

use crate::host::{Key, Net, Vm};
use crate::stream::News;
use addr::{Gpa, PAGE_BYTES};
use machine::Moment;
use migrate::pages::{PAGE, Record, Records, unpack};
use migrate::target::{Breach, Effect, Phase, Word};
use migrate::wire::Message;
use migrate::{Id, Target};

/// A VM that arrives at a host.
pub struct Incoming {
    /// The protocol.
    pub target: Target,
    /// Who sends it.
    pub key: Key,
    link: Option<usize>,
    vm: Option<Vm>,
    asked_ns: Option<u64>,
    ahead_ns: i64,
}

impl Incoming {
    /// A VM that was offered, and the room for it, if there is any.
    pub fn new(id: Id, key: Key, link: usize, room: Option<Vm>) -> Self {
        let mut target = Target::new(id);
        match &room {
            Some(vm) => target.prepared(vm.machine.memory().all_pages().expect("there is memory")),
            None => target.refuse("there is no room"),
        }
        Self { target, key, link: Some(link), vm: room, asked_ns: None, ahead_ns: 0 }
    }

    /// Whether this is its stream.
    pub fn is_on(&self, id: usize) -> bool {
        self.link == Some(id)
    }

    /// Takes what came on its stream.
    pub fn hear(&mut self, news: News, net: &mut Net, now_ns: u64) {
        match news {
            News::Message(bytes) => {
                if let Err(what) = self.take(&bytes) {
                    self.target.cancel(&what);
                    self.hang_up(&what, net, now_ns);
                }
            }
            News::Ended(reason) => {
                self.link = None;
                self.target.unlinked(&reason);
            }
            News::Open | News::Identified => {}
        }
    }

    /// The source is back on another stream, with this message.
    pub fn relink(&mut self, id: usize, bytes: &[u8], net: &mut Net, now_ns: u64) {
        if self.link.is_some() {
            self.hang_up("there is another session", net, now_ns);
            self.target.unlinked("there is another session");
        }
        self.link = Some(id);
        if let Err(what) = self.take(bytes) {
            self.hang_up(&what, net, now_ns);
        }
    }

    fn hang_up(&mut self, reason: &str, net: &mut Net, now_ns: u64) {
        if let Some(link) = self.link.take() {
            net.close(link, 1, reason, now_ns);
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), String> {
        let breach = |Breach(what)| what.to_string();
        let own = self.target.id();
        match Message::parse(bytes).map_err(|malformed| malformed.to_string())? {
            Message::Pages { records } => self.store(records).map_err(breach),
            Message::State { total, bytes } => self.target.state_arrived(total, bytes).map_err(breach),
            Message::Clock { asked_ns } => {
                self.asked_ns = Some(asked_ns);
                Ok(())
            }
            Message::Finish { id, ahead_ns } if id == own => {
                self.ahead_ns = ahead_ns;
                self.target.finished().map_err(breach)
            }
            Message::Commit { id } if id == own => self.target.committed().map_err(breach),
            Message::Abort { id, reason } if id == own => self.target.aborted(reason).map_err(breach),
            other => panic!("a source said {other:?}"),
        }
    }

    fn store(&mut self, records: &[u8]) -> Result<(), Breach> {
        let Some(vm) = &self.vm else { return Err(Breach("it sends memory out of turn")) };
        let memory = vm.machine.memory();
        let at = |page: u64| Gpa::new(page * PAGE_BYTES);
        let mut unpacked = [0; PAGE];
        for record in Records::new(records) {
            match record.expect("what a source sends are records") {
                Record::Zero(first, count) => {
                    self.target.arrived(first, count)?;
                    memory.zero(at(first), count * PAGE_BYTES).expect("it has the same memory");
                }
                Record::Raw(page, bytes) => {
                    self.target.arrived(page, 1)?;
                    memory.write(at(page), bytes).expect("it has the same memory");
                }
                Record::Lz4(page, packed) => {
                    self.target.arrived(page, 1)?;
                    unpack(packed, &mut unpacked).expect("what was packed");
                    memory.write(at(page), &unpacked).expect("it has the same memory");
                }
            }
        }
        Ok(())
    }

    /// Goes on; gives the VM when it is this host's.
    pub fn poll(&mut self, net: &mut Net, now: Moment, utc_ns: u64, now_ns: u64) -> Option<Vm> {
        if let (Some(asked_ns), Some(link)) = (self.asked_ns.take(), self.link) {
            net.say(link, 1, &Message::Time { asked_ns, utc_ns });
        }
        let mut arrived = None;
        while let Some(effect) = self.target.take_effect() {
            match effect {
                Effect::Say(word) => self.say(&word, net),
                Effect::Restore => self.restore(net, now),
                Effect::Run => {
                    arrived = self.vm.take();
                    arrived.iter_mut().for_each(|vm| vm.runs = true);
                }
                Effect::Discard(_) => self.vm = None,
            }
        }
        if self.target.phase() == Phase::Gone {
            self.hang_up("it is over", net, now_ns);
        }
        arrived
    }

    fn restore(&mut self, net: &mut Net, now: Moment) {
        let Some(vm) = &mut self.vm else { return self.target.restored(Err("there is no machine")) };
        let Some(processor) = vm.processor.take().filter(|_| !net.random.one_in(16)) else {
            return self.target.restored(Err("a disk is gone"));
        };
        match vm.machine.restore(self.target.state(), vec![Box::new(processor)], now, self.ahead_ns) {
            Ok(mut threads) => {
                vm.thread = threads.pop();
                self.target.restored(Ok(()));
            }
            Err(error) => panic!("what was saved cannot be restored: {error}"),
        }
    }

    fn say(&mut self, word: &Word, net: &mut Net) {
        let Some(link) = self.link else { return };
        let id = self.target.id();
        let message = match word {
            Word::Accept => Message::Accept,
            Word::Refuse(reason) => Message::Refuse { reason },
            Word::Ready => Message::Ready { id },
            Word::Running => Message::Running { id },
            Word::Abort(reason) => Message::Abort { id, reason },
        };
        net.say(link, 1, &message);
    }
}
