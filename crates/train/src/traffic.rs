//! What was sent, as a ledger recorded it, in the plan's own count.

use mp_comm::ledger::Entry;
use mp_comm::Call;
use mp_plan::{Axis, Mesh, Traffic};

/// Adds up what a rank handed over, by group, to be held against [`Layout::traffic`](crate::layout::Layout::traffic).
///
/// Receiving counts nothing, nor do groups of one rank, nor the world's few numbers by which ranks agree.
pub fn sent(entries: &[Entry], mesh: &Mesh) -> Traffic {
    let mut sum = Traffic::default();
    for entry in entries.iter().filter(|entry| !matches!(entry.call, Call::Receive | Call::StartReceive)) {
        let along = |axis: Axis| if mesh.degree(axis) > 1 { entry.bytes } else { 0 };
        match &*entry.group {
            "tp" | "tp-replicas" => sum.tp += along(Axis::Tp),
            "cp" => sum.cp += along(Axis::Cp),
            "data" => sum.data += along(Axis::Dp).max(along(Axis::Cp)),
            "pp" => sum.pp += along(Axis::Pp),
            "ends" => sum.ends += entry.bytes,
            _ => {}
        }
    }
    sum
}
