use super::Kernels;
use crate::quant::BlockType;

/// Row operators. All panic if slices that are walked together differ in length.
impl Kernels {
    /// `out = x / sqrt(mean(x²) + epsilon) · weight`
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
        assert!(x.len() == weight.len() && x.len() == out.len());
        // SAFETY: `self` proves the instruction set.
        unsafe { (self.ops.rows.rms_norm)(x, weight, epsilon, out) }
    }

    /// `out = W · x`, with `weights` the rows of a float type.
    pub fn float_rows(&self, block_type: BlockType, weights: &[u8], x: &[f32], out: &mut [f32]) {
        let row_size_bytes = x.len() * block_type.block_size_bytes();
        assert!(block_type.block_len() == 1 && weights.len() == out.len() * row_size_bytes);
        // SAFETY: `self` proves the instruction set; every row is there.
        unsafe { (self.ops.float_gemv)(block_type)(weights.as_ptr(), row_size_bytes, x, out) }
    }

    /// `gate = activation(gate) · up`
    pub fn gate(&self, activation: crate::model::Activation, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len());
        // SAFETY: `self` proves the instruction set.
        unsafe { self.ops.gate(activation)(gate, up) }
    }

    /// `x = cap · tanh(x / cap)`
    pub fn softcap(&self, x: &mut [f32], cap: f32) {
        // SAFETY: `self` proves the instruction set.
        unsafe { (self.ops.rows.softcap)(x, cap) }
    }

    /// Rotates one head's `x` by its position: pair `i` by `(cos[i], sin[i])`; pairs are `(2i, 2i+1)` if
    /// `interleaved`, else `(i, i + len/2)`.
    pub fn rope(&self, x: &mut [f32], cos: &[f32], sin: &[f32], interleaved: bool) {
        assert!(x.len() == cos.len() * 2 && cos.len() == sin.len());
        if interleaved {
            for (pair, (cos, sin)) in x.as_chunks_mut::<2>().0.iter_mut().zip(cos.iter().zip(sin)) {
                *pair = [pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos];
            }
        } else {
            let (low, high) = x.split_at_mut(cos.len());
            for ((low, high), (cos, sin)) in low.iter_mut().zip(high).zip(cos.iter().zip(sin)) {
                (*low, *high) = (*low * cos - *high * sin, *low * sin + *high * cos);
            }
        }
    }
}
