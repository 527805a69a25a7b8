//! The arithmetic that MPI lacks: averages, and bfloat16 through `f32`.

use half::bf16;

use crate::{Kind, ReduceOp};

/// Divides a sum by the group's size where an average is wanted.
pub(super) fn finish(bytes: &mut [u8], kind: Kind, op: ReduceOp, size: usize) {
    if op != ReduceOp::Avg || bytes.is_empty() {
        return;
    }
    match kind {
        Kind::F64 => bytemuck::cast_slice_mut::<u8, f64>(bytes).iter_mut().for_each(|x| *x /= size as f64),
        Kind::F32 => bytemuck::cast_slice_mut::<u8, f32>(bytes).iter_mut().for_each(|x| *x /= size as f32),
        // Averages of bfloat16 are taken in f32; averages of integers are refused.
        Kind::Bf16 | Kind::I64 | Kind::I32 | Kind::U8 => {}
    }
}

/// Widens bfloat16 elements.
pub(super) fn widen(bytes: &[u8], wide: &mut [f32]) {
    if !bytes.is_empty() {
        let narrow: &[bf16] = bytemuck::cast_slice(bytes);
        wide.iter_mut().zip(narrow).for_each(|(w, n)| *w = n.to_f32());
    }
}

/// Rounds to bfloat16 elements.
pub(super) fn narrow(wide: &[f32], bytes: &mut [u8]) {
    if !bytes.is_empty() {
        let narrow: &mut [bf16] = bytemuck::cast_slice_mut(bytes);
        narrow.iter_mut().zip(wide).for_each(|(n, w)| *n = bf16::from_f32(*w));
    }
}
