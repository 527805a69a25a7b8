//! Ranks as threads, on machines that are made up: fake devices, and no NCCL, or one that starts or does not.

use mp_comm::fake::{FakeDevice, Pace};
use mp_comm::nccl::Library;
use mp_comm::{threads, Accelerator, Kind, Rank};
use mp_runtime::device::Numerics;
use std::path::Path;
use std::sync::Mutex;

use super::*;

/// What a rank's machine is to be.
#[derive(Debug, Default)]
struct Pretend {
    devices: usize,
    driver: bool,
    /// What opening NCCL finds.
    nccl: Found,
    cuda_aware: Option<bool>,
    /// What this rank was prepared with.
    prepared: Mutex<Option<(usize, Numerics)>>,
    /// The device that was handed out.
    handed_out: Mutex<Option<Arc<FakeDevice>>>,
}

/// An NCCL.
#[derive(Debug, Default, Clone, Copy)]
enum Found {
    /// No file.
    #[default]
    Nothing,
    /// One that carries tensors.
    Sound,
    /// One that can be opened, and does not start.
    Mute,
}

impl Joins for Found {
    fn version(&self) -> String {
        "2.28.9".into()
    }
    fn join(
        &self,
        host: Arc<dyn Communicator>,
        accelerator: Arc<dyn Accelerator>,
    ) -> mp_comm::Result<Arc<dyn Communicator>> {
        match self {
            Found::Mute => Err(mp_comm::Error::NcclStart {
                group: host.name().into(),
                rank: Rank(1),
                reason: "unhandled system error".into(),
            }),
            _ => Ok(Arc::new(Staged::new(host, accelerator)?)),
        }
    }
}

impl Machine for Pretend {
    fn devices(&self) -> std::result::Result<usize, String> {
        match self.devices {
            0 => Err("libtorch_cuda.so cannot be opened: no such file".into()),
            count => Ok(count),
        }
    }
    fn has_driver(&self) -> bool {
        self.driver
    }
    fn number(&self, index: usize) -> mp_runtime::Result<Number> {
        Ok([index as u8; 16])
    }
    fn prepare(&self, index: usize, numerics: Numerics) -> mp_runtime::Result<()> {
        *self.prepared.lock().unwrap() = Some((index, numerics));
        Ok(())
    }
    fn accelerator(&self, index: usize) -> Arc<dyn Accelerator> {
        let device = Arc::new(FakeDevice::new(index, Pace::Late));
        *self.handed_out.lock().unwrap() = Some(Arc::clone(&device));
        device
    }
    fn nccl(&self) -> mp_comm::Result<Box<dyn Joins>> {
        match self.nccl {
            Found::Nothing => Ok(Box::new(Library::open_at(Path::new("no-nccl.so"), Path::new("libcuda.so.1"))?)),
            found => Ok(Box::new(found)),
        }
    }
    fn cuda_aware(&self) -> Option<bool> {
        self.cuda_aware
    }
}

fn config(sets: &[&str]) -> Config {
    Config::load(None, None, &sets.iter().map(|set| set.to_string()).collect::<Vec<_>>()).unwrap()
}

/// Equips ranks, each on the machine that `machine` gives it, and says what each of them hears.
fn heard(ranks: usize, sets: &[&str], machine: impl Fn(usize) -> Pretend + Sync) -> Vec<Result<Equipment>> {
    let config = config(sets);
    threads::run(ranks, |world| Ok::<_, Error>(equip_on(&machine(world.rank().0), &world, &config)))
}

fn with(devices: usize) -> Pretend {
    Pretend { devices, driver: true, ..Pretend::default() }
}

fn words(equipment: &Result<Equipment>) -> &str {
    equipment.as_ref().unwrap().words.as_deref().unwrap_or("nothing")
}

/// The one message of ranks that fail together, all of them to be blamed on the input.
fn message(outcomes: &[Result<Equipment>], speaks: usize) -> String {
    for (rank, outcome) in outcomes.iter().enumerate() {
        let error = outcome.as_ref().unwrap_err();
        assert!(error.is_input(), "rank {rank}: {error}");
        assert_eq!(rank == speaks, !matches!(error, Error::Peer { .. }), "rank {rank}: {error}");
    }
    outcomes[speaks].as_ref().unwrap_err().to_string()
}

#[test]
fn without_a_device_all_is_as_ever_and_nothing_is_said() {
    for sets in [&[][..], &["train.device=cpu"], &["parallel.transport=mpi"]] {
        for equipment in heard(2, sets, |_| Pretend { driver: false, ..with(0) }) {
            let equipment = equipment.unwrap();
            assert_eq!((equipment.device, equipment.words, equipment.communicator.size()), (Device::Cpu, None, 2));
        }
    }
    // Asked for the CPU, a device is none of anybody's business.
    assert_eq!(words(&heard(2, &["train.device=cpu"], |_| with(2))[0]), "nothing");
}

#[test]
fn a_gpu_that_is_no_use_is_told() {
    let told = heard(1, &[], |_| with(0));
    assert_eq!(
        words(&told[0]),
        "device    the CPU: a GPU is here, but cannot be used (libtorch_cuda.so cannot be opened: no such file)"
    );
}

#[test]
fn all_ranks_compute_on_the_same_kind() {
    let outcomes = heard(3, &[], |rank| with(if rank == 1 { 0 } else { 2 }));
    for outcome in &outcomes {
        assert_eq!(outcome.as_ref().unwrap().device, Device::Cpu);
        assert_eq!(
            words(outcome),
            "device    the CPU: rank 1 sees no CUDA device, and all ranks compute on the same kind"
        );
    }
    let refused = message(&heard(3, &["train.device=cuda"], |rank| with(if rank == 1 { 0 } else { 2 })), 1);
    assert_eq!(
        refused,
        "`train.device` is \"cuda\", but CUDA cannot be used here (libtorch_cuda.so cannot be opened: no such file); set \
         it to \"cpu\" or \"auto\""
    );
}

#[test]
fn ranks_take_devices_in_turn_and_say_how_many_share_one() {
    let outcomes = heard(4, &["train.device=cuda"], |_| with(2));
    let devices: Vec<_> = outcomes.iter().map(|outcome| outcome.as_ref().unwrap().device).collect();
    assert_eq!(devices, [0, 1, 0, 1].map(Device::Cuda));
    let told = words(&outcomes[0]);
    assert!(
        told.starts_with("device    CUDA, up to 2 of 4 ranks on a device; MPI through host memory: NCCL"),
        "{told}"
    );
    assert!(told.ends_with("MPI does not say that it takes device pointers, so through host memory"), "{told}");
    assert_eq!(words(&heard(1, &[], |_| with(2))[0]), "device    CUDA device 0");
    let told = heard(1, &["train.tf32=true", "train.deterministic=true"], |_| with(2));
    assert_eq!(words(&told[0]), "device    CUDA device 0, deterministic, TF32 products");
}

#[test]
fn a_transport_is_had_or_refused_on_all_ranks() {
    let one_each = |sets: &[&str], cuda_aware| heard(2, sets, |_| Pretend { cuda_aware, ..with(2) });
    let told = one_each(&["parallel.transport=staged"], Some(true));
    assert_eq!(
        words(&told[0]),
        "device    a CUDA device for each of 2 ranks; MPI through host memory: as asked, through host memory"
    );
    let told = one_each(&["parallel.transport=mpi"], Some(true));
    assert_eq!(
        words(&told[1]),
        "device    a CUDA device for each of 2 ranks; MPI on device memory: as asked; MPI takes device pointers"
    );
    let refused = message(&one_each(&["parallel.transport=nccl"], None), 0);
    assert!(
        refused.starts_with("`parallel.transport` is \"nccl\", but NCCL cannot be used: no-nccl.so: "),
        "{refused}"
    );
    assert!(refused.contains("or set parallel.transport=mpi"), "{refused}");
    for transport in ["nccl", "staged"] {
        let set = format!("parallel.transport={transport}");
        assert_eq!(
            message(&heard(2, &[&set], |_| Pretend { driver: false, ..with(0) }), 0),
            format!(
                "`parallel.transport` is \"{transport}\", but tensors lie on the host: set train.device=cuda, or \
                 parallel.transport=auto"
            )
        );
    }
}

#[test]
fn an_nccl_that_does_not_start_is_done_without_or_refused_on_all_ranks() {
    let found = |sets: &[&str], nccl| heard(3, sets, move |_| Pretend { nccl, cuda_aware: Some(false), ..with(3) });
    let each = "device    a CUDA device for each of 3 ranks; ";
    assert_eq!(words(&found(&[], Found::Sound)[2]), format!("{each}NCCL: NCCL 2.28.9, with a device a rank"));
    for outcome in found(&[], Found::Mute) {
        let told = format!(
            "{each}MPI through host memory: NCCL does not start in group world: rank 1: unhandled system error; MPI takes no \
             device pointers, so through host memory"
        );
        assert_eq!(words(&outcome), told);
        assert_eq!(outcome.unwrap().communicator.size(), 3);
    }
    for outcome in found(&["parallel.transport=nccl"], Found::Mute) {
        let error = outcome.unwrap_err();
        assert!(error.is_input(), "{error}");
        assert_eq!(
            error.to_string(),
            "`parallel.transport` is \"nccl\", but NCCL does not start in group world: rank 1: unhandled system error; set \
             parallel.transport=mpi"
        );
    }
}

#[test]
fn who_asks_after_the_machine_hears_of_what_starts() {
    for (nccl, transport) in [(Found::Sound, "NCCL"), (Found::Mute, "MPI through host memory")] {
        let heard = threads::run(2, |world| {
            Survey::tried(&Pretend { nccl, ..with(2) }, &world).map(|survey| survey.transport())
        });
        assert_eq!(heard, [transport; 2]);
    }
    let alone = threads::run(1, |world| {
        Survey::tried(&Pretend { driver: false, ..with(0) }, &world).map(|survey| survey.transport())
    });
    assert_eq!(alone, ["memory of the host"]);
}

#[test]
fn what_the_host_cannot_choose_is_refused_on_all_ranks() {
    for key in ["train.deterministic", "train.tf32"] {
        let set = format!("{key}=true");
        let refused = message(&heard(2, &[&set], |_| Pretend { driver: false, ..with(0) }), 0);
        assert!(refused.starts_with(&format!("`{key}` is true, but ")), "{refused}");
    }
}

#[test]
fn what_carries_tensors_reaches_the_device_that_was_prepared() {
    let config = config(&["train.tf32=true"]);
    threads::run(2, |world| {
        let machine = with(2);
        let rank = world.rank().0;
        let equipment = equip_on(&machine, &world, &config)?;
        let numerics = Numerics { deterministic: false, tf32: true };
        assert_eq!(*machine.prepared.lock().unwrap(), Some((rank, numerics)));
        let device = machine.handed_out.lock().unwrap().clone().unwrap();
        assert_eq!(Device::Cuda(device.index()), equipment.device);
        let mut memory = device.allocate(8);
        equipment.communicator.all_reduce(BufferMut::on_device(Kind::I64, &mut *memory)?, ReduceOp::Sum)?;
        // Host memory goes the same way.
        let mut sum = [1i64 + rank as i64];
        equipment.communicator.all_reduce(BufferMut::new(&mut sum), ReduceOp::Sum)?;
        assert_eq!(sum, [3]);
        let part = equipment.communicator.split(Some(0), 0, "part")?;
        assert_eq!(part.map(|part| part.rank()), Some(Rank(rank)));
        Ok::<_, Error>(())
    });
}
