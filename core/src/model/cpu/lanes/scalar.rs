use half::f16;

use super::Lanes;

/// The meaning of every vector operation.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

impl Scalar {
    #[inline(always)]
    fn zip(a: [f32; 4], b: [f32; 4], f: impl Fn(f32, f32) -> f32) -> [f32; 4] {
        std::array::from_fn(|i| f(a[i], b[i]))
    }
}

impl Lanes for Scalar {
    type F32 = [f32; 4];
    const COUNT: usize = 4;
    const TILE_ROWS: usize = 4;

    fn splat(self, value: f32) -> [f32; 4] {
        [value; 4]
    }
    fn load(self, values: &[f32]) -> [f32; 4] {
        std::array::from_fn(|i| values[i])
    }
    fn load_f16(self, values: &[f16]) -> [f32; 4] {
        std::array::from_fn(|i| values[i].to_f32())
    }
    fn load_i8(self, values: &[i8]) -> [f32; 4] {
        std::array::from_fn(|i| f32::from(values[i]))
    }
    fn store(self, vector: [f32; 4], out: &mut [f32]) {
        out[..4].copy_from_slice(&vector);
    }
    fn add(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        Self::zip(a, b, |a, b| a + b)
    }
    fn sub(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        Self::zip(a, b, |a, b| a - b)
    }
    fn mul(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        Self::zip(a, b, |a, b| a * b)
    }
    fn max(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        Self::zip(a, b, f32::max)
    }
    fn min(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        Self::zip(a, b, f32::min)
    }
    fn fma(self, a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    fn exp2_of_magic(self, n: [f32; 4]) -> [f32; 4] {
        n.map(|n| f32::from_bits((n.to_bits() << 23).wrapping_add(1.0f32.to_bits())))
    }
}
