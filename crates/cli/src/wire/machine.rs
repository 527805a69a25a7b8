//! What a rank can ask of the machine that it is on. A trait, so that tests can have another machine.

use std::path::Path;
use std::sync::Arc;

use mp_comm::nccl::{self, Library, Nccl};
use mp_comm::{Accelerator, Communicator};
use mp_model::accelerator::{zeros, Cuda};
use mp_runtime::device::{self, Numerics};

use super::place::Number;

/// A machine, as one rank sees it.
pub trait Machine {
    /// Returns how many CUDA devices tensors can be put on, or why there is none.
    fn devices(&self) -> Result<usize, String>;
    /// Says whether the system has a driver for such devices.
    fn has_driver(&self) -> bool;
    /// Returns what tells a device apart from all others.
    ///
    /// # Errors
    /// What the driver refuses.
    fn number(&self, index: usize) -> mp_runtime::Result<Number>;
    /// Makes a device the one that this thread uses, and sets how devices compute, before the first product.
    ///
    /// # Errors
    /// What libtorch refuses.
    fn prepare(&self, index: usize, numerics: Numerics) -> mp_runtime::Result<()>;
    /// Returns what communication needs of a device.
    fn accelerator(&self, index: usize) -> Arc<dyn Accelerator>;
    /// Opens NCCL.
    ///
    /// # Errors
    /// Why it cannot be used, with the way out.
    fn nccl(&self) -> mp_comm::Result<Box<dyn Joins>>;
    /// Says whether MPI takes device pointers; `None` where it does not say.
    fn cuda_aware(&self) -> Option<bool>;
}

/// NCCL, open.
pub trait Joins: std::fmt::Debug {
    /// Returns its version.
    fn version(&self) -> String;
    /// Joins the devices of all ranks of `host`. Collective.
    ///
    /// # Errors
    /// On all ranks alike: why NCCL does not start.
    fn join(
        &self,
        host: Arc<dyn Communicator>,
        accelerator: Arc<dyn Accelerator>,
    ) -> mp_comm::Result<Arc<dyn Communicator>>;
}

impl Joins for Arc<Library> {
    fn version(&self) -> String {
        Library::version(self)
    }

    fn join(
        &self,
        host: Arc<dyn Communicator>,
        accelerator: Arc<dyn Accelerator>,
    ) -> mp_comm::Result<Arc<dyn Communicator>> {
        let nccl = Nccl::new(host, Arc::clone(&accelerator), Arc::clone(self), nccl::PATIENCE)?;
        nccl.try_out(zeros(accelerator.index(), 1))?;
        Ok(Arc::new(nccl))
    }
}

/// The machine at hand.
#[derive(Debug)]
pub struct Here;

impl Machine for Here {
    fn devices(&self) -> Result<usize, String> {
        match (device::cuda_devices(), device::cuda_absence()) {
            (0, Some(why)) => Err(format!(
                "{why}; `cargo xtask setup --cuda` brings it where the program is built, and a bundle takes PyTorch's (docs/setup.md)"
            )),
            (0, None) => {
                Err("libtorch finds no device: see what `nvidia-smi` finds, and whether CUDA_VISIBLE_DEVICES \
                              hides it"
                    .into())
            }
            (count, _) => Ok(count),
        }
    }

    fn has_driver(&self) -> bool {
        Path::new("/dev/nvidiactl").exists()
    }

    fn number(&self, index: usize) -> mp_runtime::Result<Number> {
        device::identity(index)
    }

    fn prepare(&self, index: usize, numerics: Numerics) -> mp_runtime::Result<()> {
        device::select(index)?;
        device::set_numerics(numerics)
    }

    fn accelerator(&self, index: usize) -> Arc<dyn Accelerator> {
        Arc::new(Cuda::new(index))
    }

    fn nccl(&self) -> mp_comm::Result<Box<dyn Joins>> {
        Ok(Box::new(Library::open()?))
    }

    fn cuda_aware(&self) -> Option<bool> {
        mp_comm::mpi::library().cuda_aware
    }
}
