//! The management address: the host's own place in the network, over smoltcp.

use crate::host::Host;
use crate::network::{Forwarder, Frame};
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use config::Management as Setting;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{dhcpv4, tcp};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, Ipv4Address as Ipv4Addr, Ipv4Cidr};
use spin::Mutex;
use switch::{Offload, PortId};

/// Frames on their way out at most.
const OUTGOING_MAX: usize = 256;

/// Bytes that a connection holds for the direction in which memory flows, and for the other. A link of 10 Gbit/s carries
/// the first in 0.8 ms, which is longer than an answer takes.
const BULK_BYTES: usize = 1 << 20;
const ANSWER_BYTES: usize = 64 << 10;
/// How soon the uplink is looked at again that had no room.
const ROOM_NS: u64 = 50_000;
/// How long a connection waits for an answer before it is lost, and how often it asks for one when it has nothing to say.
const SILENCE: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// The address, for the report.
static ADDRESS: Mutex<Option<String>> = Mutex::new(None);

/// The host's end of its switch port.
pub struct Management {
    port: PortId,
    interface: Interface,
    sockets: SocketSet<'static>,
    dhcp: Option<SocketHandle>,
    wire: Wire,
    /// A stream was looked at: it may have something to say.
    is_touched: bool,
    /// More has arrived than was taken: there is to be another turn at once.
    is_behind: bool,
}

/// Frames to and from the switch.
#[derive(Default)]
struct Wire {
    incoming: VecDeque<Vec<u8>>,
    /// The first `filled` are on their way; the others are kept for their memory.
    outgoing: Vec<Vec<u8>>,
    filled: usize,
    /// How many may be filled: what the uplink has no room for would be lost, and sent again much later.
    room: usize,
    /// There was more to send than that.
    is_full: bool,
}

/// The address and its prefix length, once there is one.
pub fn address() -> Option<String> {
    ADDRESS.lock().clone()
}

impl Management {
    /// Joins the switch; `None` without an uplink.
    pub fn new(host: &Host) -> Option<Self> {
        let (port, mac) = host.network.lock().add_management()?;
        let mut wire = Wire::default();
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac.bytes())));
        config.random_seed = cpu::random().unwrap_or_else(cpu::tsc);
        let mut interface = Interface::new(config, &mut wire, Instant::ZERO);
        let mut sockets = SocketSet::new(Vec::new());
        let mut dhcp = None;
        match host.config.host.management {
            Setting::Dhcp => dhcp = Some(sockets.add(dhcpv4::Socket::new())),
            Setting::Static(setting) => {
                set_address(&mut interface, Some(Ipv4Cidr::new(setting.address, setting.prefix_bits)));
                set_gateway(&mut interface, setting.gateway);
            }
        }
        Some(Self { port, interface, sockets, dhcp, wire, is_touched: false, is_behind: false })
    }

    /// Takes in and sends what is due; returns when it wants to be called next.
    pub fn poll(&mut self, host: &Host, forwarder: &mut Forwarder) -> Option<u64> {
        while let Some(frame) = host.network.lock().next_management_frame() {
            self.wire.incoming.push_back(frame);
        }
        let now_ns = host.clock.now_ns();
        let now = Instant::from_micros((now_ns / 1000) as i64);
        let room = host.network.lock().uplink_room(self.wire.is_full);
        (self.wire.room, self.wire.is_full) = (room.min(OUTGOING_MAX), false);
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
        self.take_lease();
        let (from, frames) = (self.port, &self.wire.outgoing);
        forwarder.forward(host, self.wire.filled, |index| Frame {
            from,
            offload: Offload::default(),
            bytes: &frames[index],
        });
        self.wire.filled = 0;
        if self.wire.is_full {
            return Some(now_ns + ROOM_NS);
        }
        let next = self.interface.poll_at(now, &self.sockets)?;
        Some(next.total_micros().max(0) as u64 * 1000)
    }

    /// A stream that waits for a caller on `port`.
    pub fn listen(&mut self, port: u16) -> SocketHandle {
        let mut socket = stream(BULK_BYTES, ANSWER_BYTES);
        socket.listen(port).expect("a new socket takes any port but 0");
        self.sockets.add(socket)
    }

    /// A stream that calls another host; `None` where it cannot.
    pub fn connect(&mut self, to: Ipv4Addr, port: u16) -> Option<SocketHandle> {
        let own_port = 49_152 + (cpu::random().unwrap_or_else(cpu::tsc) % 16_384) as u16;
        let mut socket = stream(ANSWER_BYTES, BULK_BYTES);
        socket.connect(self.interface.context(), (IpAddress::Ipv4(to), port), own_port).ok()?;
        self.is_touched = true;
        Some(self.sockets.add(socket))
    }

    /// Notes that a stream has something to say: bytes, or room for more of the other end's.
    pub fn touch(&mut self) {
        self.is_touched = true;
    }

    /// Whether a stream has had something to say since the last call.
    pub fn has_to_send(&mut self) -> bool {
        core::mem::take(&mut self.is_touched)
    }

    /// Notes that more has arrived on a stream than one turn may take.
    pub fn fall_behind(&mut self) {
        self.is_behind = true;
    }

    /// Whether that was noted since the last call.
    pub fn is_behind(&mut self) -> bool {
        core::mem::take(&mut self.is_behind)
    }

    /// A stream.
    pub fn stream(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// What a stream has not got rid of, for the log.
    pub fn backlog(&mut self, handle: SocketHandle) -> String {
        let uplink = if self.wire.is_full { "full" } else { "not full" };
        let socket = self.stream(handle);
        let (unanswered, unread) = (socket.send_queue(), socket.recv_queue());
        format!("{unanswered} bytes were not acknowledged, {unread} not taken out, the uplink's queue is {uplink}")
    }

    /// Forgets a stream.
    pub fn forget(&mut self, handle: SocketHandle) {
        self.sockets.remove(handle);
    }

    fn take_lease(&mut self) {
        let Some(handle) = self.dhcp else { return };
        match self.sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
            Some(dhcpv4::Event::Configured(lease)) => {
                log::info!("the management address is {}", lease.address);
                set_address(&mut self.interface, Some(lease.address));
                set_gateway(&mut self.interface, lease.router);
            }
            Some(dhcpv4::Event::Deconfigured) if address().is_some() => {
                log::warn!("the management address is lost");
                set_address(&mut self.interface, None);
                set_gateway(&mut self.interface, None);
            }
            Some(dhcpv4::Event::Deconfigured) | None => {}
        }
    }
}

fn stream(receive_bytes: usize, send_bytes: usize) -> tcp::Socket<'static> {
    let buffer = |bytes| tcp::SocketBuffer::new(alloc::vec![0; bytes]);
    let mut socket = tcp::Socket::new(buffer(receive_bytes), buffer(send_bytes));
    socket.set_timeout(Some(SILENCE));
    socket.set_keep_alive(Some(KEEP_ALIVE));
    // A window as large as the buffer, sent again and again, would keep a network that loses some of it from recovering.
    socket.set_congestion_control(tcp::CongestionControl::Reno);
    // Whole messages are written at once: there is nothing to wait for.
    socket.set_nagle_enabled(false);
    socket
}

fn set_address(interface: &mut Interface, address: Option<Ipv4Cidr>) {
    interface.update_ip_addrs(|addresses| {
        addresses.clear();
        if let Some(address) = address {
            addresses.push(IpCidr::Ipv4(address)).expect("an empty list takes one");
        }
    });
    *ADDRESS.lock() = address.map(|address| format!("{address}"));
}

fn set_gateway(interface: &mut Interface, gateway: Option<core::net::Ipv4Addr>) {
    interface.routes_mut().remove_default_ipv4_route();
    if let Some(gateway) = gateway {
        interface.routes_mut().add_default_ipv4_route(gateway).expect("an empty table takes one");
    }
}

struct Incoming(Vec<u8>);
struct Outgoing<'a>(&'a mut Wire);

impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, act: F) -> R {
        act(&self.0)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, act: F) -> R {
        let Wire { outgoing, filled, .. } = self.0;
        if *filled == outgoing.len() {
            outgoing.push(Vec::new());
        }
        let frame = &mut outgoing[*filled];
        *filled += 1;
        // Whatever was in it: all of it is written now.
        frame.resize(length, 0);
        act(frame)
    }
}

impl Device for Wire {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Incoming, Outgoing<'_>)> {
        let frame = self.incoming.pop_front()?;
        Some((Incoming(frame), Outgoing(self)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Outgoing<'_>> {
        if self.filled < self.room {
            return Some(Outgoing(self));
        }
        self.is_full = true;
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}
