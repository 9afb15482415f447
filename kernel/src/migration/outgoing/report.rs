//! How far a move is, for the operator.

use super::Outgoing;
use alloc::format;
use alloc::string::{String, ToString};
use migrate::source::{Outcome, Phase};
use shell::MoveInfo;

impl Outgoing {
    /// How it was, in one line.
    pub(super) fn summary(&self) -> String {
        let info = self.info(self.ended_ns.unwrap_or(self.started_ns));
        format!(
            "{} moved to {}: {} ms in all, {} ms down, {} KiB, pages: {} zero, {} compressed, {} plain, {} changes",
            info.vm,
            info.peer,
            info.total_ns / 1_000_000,
            info.downtime_ns.unwrap_or(0) / 1_000_000,
            info.bytes >> 10,
            info.zero_pages,
            info.lz4_pages,
            info.raw_pages,
            info.delta_pages
        )
    }

    /// How far it is.
    pub fn info(&self, now_ns: u64) -> MoveInfo {
        let counts = self.pace.counts();
        let end_ns = self.ended_ns.unwrap_or(now_ns);
        let (phase, reason) = match &self.outcome {
            None => (phase_name(self.source.phase()), None),
            Some(Outcome::Stayed(reason)) if self.source.phase() == Phase::Withdrawing => {
                (phase_name(self.source.phase()), Some(reason.clone()))
            }
            Some(Outcome::Moved) => ("moved", None),
            Some(Outcome::Stayed(reason)) => ("stayed", Some(reason.clone())),
            Some(Outcome::Torn) => ("lost", Some("it was on two hosts, and one lost its half".to_string())),
            Some(Outcome::Lost) => ("lost", Some("the other host has forgotten it".to_string())),
        };
        MoveInfo {
            vm: self.name().to_string(),
            peer: self.peer.name.to_string(),
            outgoing: true,
            phase: phase.to_string(),
            reason,
            round: self.source.round(),
            pages: self.source.pages(),
            remaining: self.source.remaining(),
            zero_pages: counts.zero,
            raw_pages: counts.raw,
            lz4_pages: counts.lz4,
            delta_pages: counts.delta,
            bytes: counts.bytes,
            frames: self.frames.all,
            helped_frames: self.frames.helped,
            bytes_per_s: self.pace.bytes_per_s(),
            dirty_pages_per_s: self.dirty_pages_per_s,
            looks: self.looks.count,
            looked_pages: self.looks.pages,
            looking_ns: self.looks.ns,
            page_ns: self.pace.page_ns(),
            running_percent: self.source.running_percent(),
            expected_downtime_ns: self.source.expected_ns(),
            downtime_ns: self.stopped_ns.map(|ns| self.runs_there_ns.unwrap_or(end_ns).saturating_sub(ns)),
            started_ns: self.started_ns,
            total_ns: end_ns.saturating_sub(self.started_ns),
        }
    }
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Offering => "offering",
        Phase::Copying => "copying",
        Phase::Stopping | Phase::LastLook | Phase::LastPages | Phase::Saving | Phase::Finished => "handing over",
        Phase::Committed => "given away",
        Phase::Serving => "sending the rest",
        Phase::Withdrawing => "taking back",
        Phase::Done => "done",
    }
}
