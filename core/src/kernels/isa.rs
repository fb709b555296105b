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
    /// 64-bit ARM with NEON and the instructions `dotprod` and `i8mm`.
    NeonI8mm,
    /// 64-bit ARM with NEON and `dotprod`.
    NeonDotprod,
    /// 64-bit ARM with NEON.
    Neon,
    /// Any CPU.
    Scalar,
}

impl Isa {
    /// Every instruction set with kernels, the best of each architecture first.
    pub const ALL: &[Self] =
        &[Self::Avx512Vnni, Self::Avx2, Self::NeonI8mm, Self::NeonDotprod, Self::Neon, Self::Scalar];
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Avx512Vnni => "avx512-vnni",
            Self::Avx2 => "avx2",
            Self::NeonI8mm => "neon-i8mm",
            Self::NeonDotprod => "neon-dotprod",
            Self::Neon => "neon",
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
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm if super::neon::i8mm_available() => &super::neon::I8MM,
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDotprod if super::neon::dotprod_available() => &super::neon::DOTPROD,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon if super::neon::plain_available() => &super::neon::PLAIN,
            Isa::Avx512Vnni | Isa::Avx2 | Isa::NeonI8mm | Isa::NeonDotprod | Isa::Neon => return None,
        };
        Some(Self { isa, ops })
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}

impl std::str::FromStr for Isa {
    type Err = String;

    /// Reads what [`Display`](fmt::Display) writes.
    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.iter().copied().find(|isa| isa.to_string() == name).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(Self::to_string).collect();
            format!("{name:?} is none of {}", known.join(", "))
        })
    }
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernels").field("isa", &self.isa).finish()
    }
}
