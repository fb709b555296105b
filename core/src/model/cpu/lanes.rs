//! Vectors of f32 for attention. An algorithm is written once over [`Lanes`];
//! [`dispatch`] compiles it for each instruction set.

#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

use half::f16;
use scalar::Scalar;

use crate::kernels::Isa;

/// Every vector width divides it, and so does the padding of everything that is walked in whole vectors.
pub(super) const LANES_MAX: usize = 16;

/// The f32 vectors of one instruction set. A value proves that the CPU has it.
pub(super) trait Lanes: Copy {
    type F32: Copy;
    /// Values per vector.
    const COUNT: usize;
    /// Rows of a register tile two vectors wide: its sums and operands fit the register file.
    const TILE_ROWS: usize;

    fn splat(self, value: f32) -> Self::F32;
    /// The first `COUNT` values.
    fn load(self, values: &[f32]) -> Self::F32;
    /// The first `COUNT` values, widened.
    fn load_f16(self, values: &[f16]) -> Self::F32;
    /// The first `COUNT` values, widened.
    fn load_i8(self, values: &[i8]) -> Self::F32;
    /// To the first `COUNT` places.
    fn store(self, vector: Self::F32, out: &mut [f32]);
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a · b + c`
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// `2^n` from `MAGIC + n`, for whole `n` from -126 to 127.
    fn exp2_of_magic(self, n: Self::F32) -> Self::F32;

    fn sum(self, a: Self::F32) -> f32 {
        self.to_array(a)[..Self::COUNT].iter().sum()
    }

    fn largest(self, a: Self::F32) -> f32 {
        self.to_array(a)[..Self::COUNT].iter().fold(f32::NEG_INFINITY, |largest, value| largest.max(*value))
    }

    #[inline(always)]
    fn to_array(self, a: Self::F32) -> [f32; LANES_MAX] {
        let mut values = [0.0; LANES_MAX];
        self.store(a, &mut values);
        values
    }

    /// `e^x` to 2 units in the last place; below -87 it gives at most 1.2e-38 instead of denormals.
    #[inline(always)]
    fn exp(self, x: Self::F32) -> Self::F32 {
        let x = self.min(self.max(x, self.splat(-87.3)), self.splat(88.0));
        // e^x = 2^n · e^r with |r| <= ln 2 / 2; adding MAGIC leaves n in the low bits of the mantissa.
        let magic = self.fma(x, self.splat(std::f32::consts::LOG2_E), self.splat(MAGIC));
        let n = self.sub(magic, self.splat(MAGIC));
        let r = self.fma(n, self.splat(-0.693_359_4), x);
        let r = self.fma(n, self.splat(2.121_944_4e-4), r);
        let mut y = self.splat(1.987_569_2e-4);
        for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            y = self.fma(y, r, self.splat(coefficient));
        }
        let y = self.fma(self.mul(y, r), r, self.add(r, self.splat(1.0)));
        self.mul(y, self.exp2_of_magic(magic))
    }
}

/// `1.5 · 2^23`: a float in whose neighbourhood the spacing is 1.
const MAGIC: f32 = 12_582_912.0;

/// An algorithm written over any [`Lanes`].
pub(super) trait Kernel {
    type Output;
    /// Must be `#[inline(always)]`, to be compiled for the instruction set of `lanes`.
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// Runs `kernel` with the vectors of `isa`, or narrower ones if the CPU lacks it.
pub(super) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni if x86::Avx512::is_available() => {
            // SAFETY: the CPU has the instruction set.
            unsafe { x86::run_avx512(kernel) }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni | Isa::Avx2 if x86::Avx2::is_available() => {
            // SAFETY: as above.
            unsafe { x86::run_avx2(kernel) }
        }
        #[cfg(target_arch = "aarch64")]
        Isa::NeonI8mm | Isa::NeonDotprod | Isa::Neon if std::arch::is_aarch64_feature_detected!("neon") => {
            // SAFETY: the CPU has NEON.
            unsafe { neon::run(kernel) }
        }
        _ => kernel.run(Scalar),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp<'a>(&'a [f32], &'a mut [f32]);

    impl Kernel for Exp<'_> {
        type Output = ();
        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) {
            for (x, y) in self.0.chunks_exact(L::COUNT).zip(self.1.chunks_exact_mut(L::COUNT)) {
                lanes.store(lanes.exp(lanes.load(x)), y);
            }
        }
    }

    #[test]
    fn exp_agrees_with_the_standard_library_on_every_instruction_set() {
        let x: Vec<f32> = (0..16_000).map(|i| (i as f32 - 8_000.0) / 95.0).collect();
        let mut y = vec![0.0; x.len()];
        let check = |y: &[f32]| {
            for (x, y) in x.iter().zip(y) {
                let expected = f64::from(x.clamp(-87.3, 88.0)).exp();
                assert!((f64::from(*y) / expected - 1.0).abs() < 3e-7, "exp({x}) = {y}, expected {expected}");
            }
        };
        for isa in Isa::ALL {
            dispatch(*isa, Exp(&x, &mut y));
            check(&y);
        }
    }
}
