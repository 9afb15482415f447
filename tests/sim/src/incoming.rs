//! A VM on its way into a simulated host: does what [`migrate::Target`] says. Its mirror is [`crate::outgoing`].

use crate::host::{Key, Net, Vm};
use crate::stream::News;
use addr::{Gpa, PAGE_BYTES};
use machine::Moment;
use migrate::pages::{PAGE, Record, Records, Runs, unpack};
use migrate::target::{Breach, Effect, Phase, Word};
use migrate::wire::Message;
use migrate::{Id, Target, pages, talk};

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
    /// It says which pages are missing, and has come to this one.
    telling: Option<u64>,
    /// The guest stood here for want of its source.
    pub stood: bool,
}

impl Incoming {
    /// A VM that was offered, and the room for it, if there is any.
    pub fn new(id: Id, key: Key, link: usize, room: Option<Vm>) -> Self {
        let mut target = Target::new(id);
        match &room {
            Some(vm) => {
                let pages = vm.machine.memory().all_pages().expect("there is memory");
                target.prepared(pages).expect("there is memory");
            }
            None => target.refuse("there is no room"),
        }
        Self { target, key, link: Some(link), vm: room, asked_ns: None, ahead_ns: 0, telling: None, stood: false }
    }

    /// Whether this is its stream.
    pub fn is_on(&self, id: usize) -> bool {
        self.link == Some(id)
    }

    /// Takes what came on its stream.
    pub fn hear(&mut self, news: News, admitted: &mut Option<Vm>, net: &mut Net, now_ns: u64) {
        match news {
            News::Message(bytes) => {
                if let Err(what) = self.take(&bytes, admitted) {
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
    pub fn relink(&mut self, id: usize, bytes: &[u8], admitted: &mut Option<Vm>, net: &mut Net, now_ns: u64) {
        if self.link.is_some() {
            self.hang_up("there is another session", net, now_ns);
            self.target.unlinked("there is another session");
        }
        (self.link, self.telling) = (Some(id), None);
        if let Err(what) = self.take(bytes, admitted) {
            self.hang_up(&what, net, now_ns);
        }
    }

    fn hang_up(&mut self, reason: &str, net: &mut Net, now_ns: u64) {
        if let Some(link) = self.link.take() {
            net.close(link, 1, reason, now_ns);
        }
    }

    fn take(&mut self, bytes: &[u8], admitted: &mut Option<Vm>) -> Result<(), String> {
        let breach = |Breach(what)| what.to_string();
        let own = self.target.id();
        match Message::parse(bytes).map_err(|malformed| malformed.to_string())? {
            Message::Pages { records } => self.store(records, admitted).map_err(breach),
            Message::Missing { runs } => {
                runs.iter().try_for_each(|(first, count)| self.target.left_behind(first, count)).map_err(breach)
            }
            Message::State { total, bytes } => self.target.state_arrived(total, bytes).map_err(breach),
            Message::Clock { asked_ns } => {
                self.asked_ns = Some(asked_ns);
                Ok(())
            }
            Message::Finish { id, ahead_ns, left_behind } if id == own => {
                self.ahead_ns = ahead_ns;
                self.target.finished(left_behind).map_err(breach)
            }
            Message::Commit { id } if id == own => self.target.committed().map_err(breach),
            Message::Abort { id, reason } if id == own => self.target.aborted(reason).map_err(breach),
            other => panic!("a source said {other:?}"),
        }
    }

    fn store(&mut self, records: &[u8], admitted: &mut Option<Vm>) -> Result<(), Breach> {
        let Some(vm) = self.vm.as_ref().or(admitted.as_ref()) else {
            return Err(Breach("it sends memory out of turn"));
        };
        let mut unpacked = [0; PAGE];
        for record in Records::new(records) {
            match record.expect("what a source sends are records") {
                Record::Zero(first, count) => {
                    (first..first + count).try_for_each(|page| put(&mut self.target, vm, page, None))?;
                }
                Record::Raw(page, bytes) => put(&mut self.target, vm, page, Some(bytes))?,
                Record::Lz4(page, packed) => {
                    unpack(packed, &mut unpacked).expect("what was packed");
                    put(&mut self.target, vm, page, Some(&unpacked))?;
                }
                Record::Delta(page, delta) => {
                    self.target.changed(page)?;
                    for (offset, bytes) in delta.runs() {
                        let at = Gpa::new(page * PAGE_BYTES + offset as u64);
                        vm.machine.memory().write(at, bytes).map_err(|_| Breach("a page outside"))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Goes on; admits the VM when it is this host's.
    pub fn poll(&mut self, admitted: &mut Option<Vm>, net: &mut Net, (now, utc_ns): (Moment, u64), now_ns: u64) {
        if let (Some(asked_ns), Some(link)) = (self.asked_ns.take(), self.link) {
            net.say(link, 1, &Message::Time { asked_ns, utc_ns });
        }
        while let Some(effect) = self.target.take_effect() {
            match effect {
                Effect::Say(word) => self.say(&word, net),
                Effect::Restore => self.restore(net, now),
                Effect::Run => {
                    *admitted = self.vm.take();
                    admitted.iter_mut().for_each(|vm| vm.runs = true);
                }
                Effect::Pause => {
                    self.stood = true;
                    admitted.iter_mut().for_each(|vm| vm.runs = false);
                }
                Effect::GoOn => admitted.iter_mut().for_each(|vm| {
                    vm.machine.memory().ask_again();
                    vm.runs = true;
                }),
                Effect::Whole => admitted.iter().for_each(|vm| {
                    vm.machine.memory().stop_waiting();
                    vm.view.stop_waiting();
                }),
                Effect::Discard(_) => self.vm = None,
            }
        }
        let is_told = self.tell(net);
        if let (Some(vm), Some(link), true) = (&admitted, self.link, is_told && self.needs_source()) {
            vm.machine.memory().take_wanted(|page| {
                let run = pages::run(page, 1);
                net.say(link, 1, &Message::Want { runs: Runs::new(&run).expect("it is one") });
            });
        }
        if self.target.phase() == Phase::Gone {
            self.hang_up("it is over", net, now_ns);
        }
    }

    /// Says more of which pages are missing, few at a time; says whether all is said.
    fn tell(&mut self, net: &mut Net) -> bool {
        if let (Some(from), Some(link)) = (self.telling, self.link) {
            self.telling = pages::next_runs(self.target.missing_pages(), from, RUNS_MAX, |runs| {
                net.say(link, 1, &Message::Missing { runs });
            });
        }
        self.telling.is_none()
    }

    /// Whether the guest runs here and lacks memory.
    pub fn needs_source(&self) -> bool {
        self.target.phase() == Phase::Running && self.target.missing() > 0
    }

    fn restore(&mut self, net: &mut Net, now: Moment) {
        let Some(vm) = &mut self.vm else { return self.target.restored(Err("there is no machine")) };
        let Some(processor) = vm.processor.take().filter(|_| !net.random.one_in(16)) else {
            return self.target.restored(Err("a disk is gone"));
        };
        if self.target.is_postcopy() {
            let missing = self.target.missing_pages();
            vm.machine.memory().start_waiting(missing).expect("there is memory");
            vm.view.start_waiting(missing).expect("there is memory");
        }
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
        match talk::answer(&self.target, word) {
            Some(message) => net.say(link, 1, &message),
            None => self.telling = Some(0),
        }
    }
}

/// Pages that are missing, few at a time so that there are several messages.
const RUNS_MAX: usize = 3;

/// Puts a page in its place, if that is still due.
fn put(target: &mut Target, vm: &Vm, page: u64, content: Option<&[u8; PAGE]>) -> Result<(), Breach> {
    let follows = target.phase() == Phase::Running;
    if !target.arrived(page)? {
        return Ok(());
    }
    let (memory, at) = (vm.machine.memory(), Gpa::new(page * PAGE_BYTES));
    match (follows, content) {
        (true, _) => {
            memory.put(page, content).expect("it has the same memory");
            vm.view.put(page, content).expect("it has the same memory");
        }
        (false, Some(bytes)) => memory.write(at, bytes).expect("it has the same memory"),
        (false, None) => memory.zero(at, PAGE_BYTES).expect("it has the same memory"),
    }
    Ok(())
}
