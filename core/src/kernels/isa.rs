use std::fmt;

use super::{Ops, scalar};

/// An instruction set with kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isa {
    /// x86-64 with AVX-512 F, BW, VL, DQ and VNNI.
    Avx512Vnni,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// Any CPU.
    Scalar,
}

impl Isa {
    /// Every instruction set that this build has kernels for, the best first.
    pub const ALL: &[Self] = &[Self::Avx512Vnni, Self::Avx2, Self::Scalar];
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Avx512Vnni => "avx512-vnni",
            Self::Avx2 => "avx2",
            Self::Scalar => "scalar",
        })
    }
}

/// The kernels of one instruction set. A value proves that this CPU has it.
#[derive(Clone, Copy)]
pub struct Kernels {
    isa: Isa,
    pub(super) ops: &'static Ops,
}

impl Kernels {
    /// The best kernels that this CPU can run.
    pub fn detect() -> Self {
        let kernels = Isa::ALL.iter().find_map(|isa| Self::new(*isa)).expect("scalar kernels run anywhere");
        log::info!("CPU kernels: {}", kernels.isa);
        kernels
    }

    /// The kernels of `isa`; `None` if this CPU lacks it.
    pub fn new(isa: Isa) -> Option<Self> {
        let ops = match isa {
            Isa::Scalar => &scalar::OPS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni if super::x86::avx512::available() => &super::x86::avx512::OPS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if super::x86::avx2::available() => &super::x86::avx2::OPS,
            Isa::Avx512Vnni | Isa::Avx2 => return None,
        };
        Some(Self { isa, ops })
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernels").field("isa", &self.isa).finish()
    }
}
