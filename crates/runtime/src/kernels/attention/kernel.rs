//! Which kernel attends: a function of what is asked, and of nothing that differs between ranks.

use crate::kernels::attention::{flash, Dropped, Mask};
use crate::{Device, Kind, Result, Tensor};

/// The ways to attend. All give the same but for rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// libtorch's fused kernel on the host; takes any mask.
    Host,
    /// libtorch's flash kernel on a CUDA device.
    Flash,
    /// Step by step, with all weights in memory.
    Plain,
}

/// The widest head that the flash kernel's backward takes on every device that has it.
pub const FLASH_WIDTH: i64 = 192;
/// A head's elements are read so many at a time.
const FLASH_STEP: i64 = 8;

/// What is asked of a kernel.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Where the tensors lie.
    pub device: Device,
    /// Their kind.
    pub kind: Kind,
    /// Queries, keys, and a head's width.
    pub sizes: [i64; 3],
    /// Which keys are seen.
    pub sight: Sight,
    /// Whether weights are dropped.
    pub drops: bool,
    /// Whether the device runs the flash kernel at all.
    pub has_flash: bool,
}

/// A [`Mask`] without its tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// [`Mask::Full`].
    Full,
    /// [`Mask::Causal`].
    Causal,
    /// [`Mask::Seen`].
    Seen,
}

impl Case {
    /// Describes queries and keys, `[b, h, s, k]` and `[b, h, t, k]`.
    ///
    /// # Errors
    /// [`Error::DeviceOutOfMemory`](crate::Error::DeviceOutOfMemory) where the device has no room to try its kernel.
    pub fn of(q: &Tensor, k: &Tensor, mask: &Mask, dropped: Option<&Dropped>) -> Result<Self> {
        let (queries, keys) = (q.size(), k.size());
        let sight = match mask {
            Mask::Full => Sight::Full,
            Mask::Causal => Sight::Causal,
            Mask::Seen(_) => Sight::Seen,
        };
        let sizes = [queries[2], keys[2], queries[3]];
        let (device, kind, drops) = (q.device(), q.kind(), dropped.is_some());
        let asked = Self { device, kind, sizes, sight, drops, has_flash: true };
        // A device is asked where the answer matters.
        let has_flash = asked.kernel() == Kernel::Flash && flash::runs(device)?;
        Ok(Self { has_flash, ..asked })
    }

    /// Chooses.
    ///
    /// No fused kernel knows a mask of dropped weights. Flash attention computes in half precision alone, knows no mask but
    /// the causal one, and lays that from the last key where there are more keys than queries, not from the first.
    pub fn kernel(&self) -> Kernel {
        let [queries, keys, width] = self.sizes;
        let sight = match self.sight {
            Sight::Full => true,
            Sight::Causal => queries == keys,
            Sight::Seen => false,
        };
        let fits = queries > 0 && keys > 0 && width % FLASH_STEP == 0 && (1..=FLASH_WIDTH).contains(&width);
        match self.device {
            _ if self.drops => Kernel::Plain,
            Device::Cpu => Kernel::Host,
            Device::Cuda(_) if self.has_flash && self.kind == Kind::BFloat16 && sight && fits => Kernel::Flash,
            _ => Kernel::Plain,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_is_a_table() {
        let gpu = Case {
            device: Device::Cuda(0),
            kind: Kind::BFloat16,
            sizes: [64, 64, 64],
            sight: Sight::Causal,
            drops: false,
            has_flash: true,
        };
        let cpu = Case { device: Device::Cpu, has_flash: false, ..gpu };
        let cases = [
            (cpu, Kernel::Host),
            (Case { kind: Kind::Double, ..cpu }, Kernel::Host),
            (Case { sight: Sight::Seen, sizes: [64, 128, 7], ..cpu }, Kernel::Host),
            (Case { drops: true, ..cpu }, Kernel::Plain),
            (gpu, Kernel::Flash),
            (Case { sight: Sight::Full, ..gpu }, Kernel::Flash),
            (Case { sight: Sight::Full, sizes: [64, 128, 64], ..gpu }, Kernel::Flash),
            (Case { sizes: [64, 128, 64], ..gpu }, Kernel::Plain),
            (Case { sight: Sight::Seen, ..gpu }, Kernel::Plain),
            (Case { drops: true, ..gpu }, Kernel::Plain),
            (Case { kind: Kind::Float, ..gpu }, Kernel::Plain),
            (Case { kind: Kind::Double, ..gpu }, Kernel::Plain),
            (Case { kind: Kind::Half, ..gpu }, Kernel::Plain),
            (Case { sizes: [64, 64, 192], ..gpu }, Kernel::Flash),
            (Case { sizes: [64, 64, 200], ..gpu }, Kernel::Plain),
            (Case { sizes: [64, 64, 60], ..gpu }, Kernel::Plain),
            (Case { sizes: [0, 0, 64], ..gpu }, Kernel::Plain),
            (Case { has_flash: false, ..gpu }, Kernel::Plain),
            (Case { device: Device::Mps, ..gpu }, Kernel::Plain),
        ];
        for (case, kernel) in cases {
            assert_eq!(case.kernel(), kernel, "{case:?}");
        }
    }

    #[test]
    fn tensors_on_the_host_take_its_kernel() {
        let q = Tensor::f_zeros([1, 2, 3, 8], (Kind::BFloat16, Device::Cpu)).unwrap();
        let k = q.f_narrow(2, 0, 2).unwrap();
        let case = Case::of(&q, &k, &Mask::Full, None).unwrap();
        assert_eq!((case.sizes, case.sight, case.has_flash), ([3, 2, 8], Sight::Full, false));
        assert_eq!(case.kernel(), Kernel::Host);
    }
}
