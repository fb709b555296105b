use super::Kernels;

/// Row operators. All panic if slices that are walked together differ in length.
impl Kernels {
    /// `out = x / sqrt(mean(x²) + epsilon) · weight`
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
        assert!(x.len() == weight.len() && x.len() == out.len());
        // SAFETY: `self` proves the instruction set.
        unsafe { (self.ops.rows.rms_norm)(x, weight, epsilon, out) }
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
