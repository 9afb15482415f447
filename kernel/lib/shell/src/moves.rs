//! What the operator is told of peers and of VMs on their way: the replies to `migrate status` and `peer list`.

use crate::table::{
    Side::{Left, Right},
    Table,
};
use crate::units::{bytes, count, duration};
use alloc::{format, string::String};
use serde::Serialize;

/// A host that is trusted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PeerInfo {
    /// What it is called here.
    pub name: String,
    /// Its management address.
    pub address: String,
    /// Its public key.
    pub key: String,
}

/// A VM on its way, or that was moved lately.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct MoveInfo {
    /// The VM.
    pub vm: String,
    /// The other host.
    pub peer: String,
    /// Whether it leaves this host; else it arrives.
    pub outgoing: bool,
    /// How far it is: "copying", "moved", ...
    pub phase: String,
    /// Why it ended, where that needs saying.
    pub reason: Option<String>,
    /// The round of copying, from 1.
    pub round: u32,
    /// Pages (of 4 KiB) of memory.
    pub pages: u64,
    /// Pages still to be sent in this round.
    pub remaining: u64,
    /// Pages sent as a marker, because they are zero.
    pub zero_pages: u64,
    /// Pages sent as they are.
    pub raw_pages: u64,
    /// Pages sent compressed.
    pub lz4_pages: u64,
    /// Pages of which only what changed was sent.
    pub delta_pages: u64,
    /// Bytes of pages that were sent.
    pub bytes: u64,
    /// Frames that went through the cipher of the session, and how many of them on CPUs that had nothing else to do.
    pub frames: u64,
    /// See [`frames`](Self::frames).
    pub helped_frames: u64,
    /// Bytes a second, as last measured.
    pub bytes_per_s: u64,
    /// Pages a second that the guest wrote, as of the last look.
    pub dirty_pages_per_s: u64,
    /// How often it was looked what the guest wrote, and how many pages that found; one that several found counts as
    /// often.
    pub looks: u64,
    /// See [`looks`](Self::looks).
    pub looked_pages: u64,
    /// How long the looks took, until every vCPU had forgotten its translations.
    pub looking_ns: u64,
    /// What a page takes to send, as last measured.
    pub page_ns: u64,
    /// What of its time the guest has, while it is throttled.
    pub running_percent: u8,
    /// The downtime that is expected if it stopped now.
    pub expected_downtime_ns: u64,
    /// How long the guest stood still, as far as this host knows.
    pub downtime_ns: Option<u64>,
    /// When it began, since the host started.
    pub started_ns: u64,
    /// How long it has taken.
    pub total_ns: u64,
}

pub(crate) fn render_peers(peers: &[PeerInfo]) -> String {
    if peers.is_empty() {
        return "no peers: add one with `peer add NAME ADDRESS KEY`\n".into();
    }
    let mut table = Table::new([("PEER", Left), ("ADDRESS", Left), ("KEY", Left)]);
    for peer in peers {
        table.row([peer.name.clone(), peer.address.clone(), peer.key.clone()]);
    }
    table.render()
}

pub(crate) fn render_moves(moves: &[MoveInfo]) -> String {
    if moves.is_empty() {
        return "no VM is on its way, and none was moved\n".into();
    }
    let mut table = Table::new([
        ("VM", Left),
        ("HOST", Left),
        ("PHASE", Left),
        ("ROUND", Right),
        ("LEFT", Right),
        ("SENT", Right),
        ("SPEED", Right),
        ("DIRTIED", Right),
        ("EXPECTED", Right),
        ("DOWN", Right),
        ("TOTAL", Right),
    ]);
    for one in moves {
        table.row([
            one.vm.clone(),
            format!("{} {}", if one.outgoing { "to" } else { "from" }, one.peer),
            one.phase.clone(),
            if one.round == 0 { "-".into() } else { format!("{}", one.round) },
            count(one.remaining),
            bytes(one.bytes),
            format!("{}/s", bytes(one.bytes_per_s)),
            format!("{}/s", bytes(one.dirty_pages_per_s.saturating_mul(4096))),
            duration(one.expected_downtime_ns),
            one.downtime_ns.map_or_else(|| "-".into(), duration),
            duration(one.total_ns),
        ]);
    }
    let mut text = table.render();
    for one in moves.iter().filter(|one| one.reason.is_some()) {
        text.push_str(&format!("{}: {}\n", one.vm, one.reason.as_deref().unwrap_or_default()));
    }
    for one in moves.iter().filter(|one| one.running_percent < 100) {
        text.push_str(&format!("{}: its guest has {} % of its time\n", one.vm, one.running_percent));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn a_move_is_one_line_and_its_reason_another() {
        let one = MoveInfo {
            vm: "web".to_string(),
            peer: "castor".to_string(),
            outgoing: true,
            phase: "stayed".to_string(),
            reason: Some("the link is lost".to_string()),
            round: 2,
            pages: 65_536,
            remaining: 1234,
            zero_pages: 1,
            raw_pages: 2,
            lz4_pages: 3,
            delta_pages: 4,
            bytes: 96 << 20,
            bytes_per_s: 40 << 20,
            dirty_pages_per_s: 256,
            looks: 3,
            frames: 40,
            helped_frames: 9,
            looked_pages: 99,
            looking_ns: 1_000_000,
            page_ns: 30_000,
            running_percent: 60,
            expected_downtime_ns: 30_000_000,
            downtime_ns: None,
            started_ns: 1_000_000_000,
            total_ns: 2_000_000_000,
        };
        let text = render_moves(&[one]);
        assert_eq!(text.lines().count(), 4);
        assert!(text.contains("1 MiB/s") && text.contains("60 % of its time"), "{text}");
        assert!(
            text.contains("to castor") && text.contains("1,234") && text.contains("web: the link is lost"),
            "{text}"
        );
        assert!(render_moves(&[]).contains("no VM"));
        assert!(render_peers(&[]).contains("peer add"));
    }
}
