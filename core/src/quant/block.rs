use super::BlockType;

/// One stored block: codes, and for each group of [`GROUP`](Self::GROUP) weights a step and a min, so that
/// `weight = step · (code − ZERO) + min`.
///
/// # Safety
/// The type is `repr(C)`, has alignment 1 and no padding, and every bit pattern is a valid value, so that file bytes
/// can be viewed as blocks.
pub(crate) unsafe trait Block: Copy + Send + Sync + 'static {
    const TYPE: BlockType;
    /// Weights per block.
    const LEN: usize = Self::TYPE.block_len();
    /// Weights that share one step and min.
    const GROUP: usize;
    /// Codes that a writer may use; a hostile file can hold others, which read without harm.
    const CODES: std::ops::RangeInclusive<u8>;
    /// The code of weight `min`.
    const ZERO: u8;

    /// Unpacks the codes; `codes.len() == LEN`.
    fn codes(&self, codes: &mut [u8]);

    /// Packs codes within [`CODES`](Self::CODES) and updates whatever the format derives from them.
    fn set_codes(&mut self, codes: &[u8]);

    /// Steps and mins, one per group. Types without a min write [`NO_MIN`].
    fn steps(&self, steps: &mut [f32], mins: &mut [f32]);

    /// ggml's reference quantiser: nearest rounding, the same bytes.
    fn quantize(x: &[f32]) -> Self;
}

/// Adding it changes no number, not even the sign of a zero.
pub(crate) const NO_MIN: f32 = -0.0;

/// Most groups in a block.
pub(crate) const GROUPS_MAX: usize = 16;

/// Views file bytes as blocks; a rest shorter than a block is left out.
pub(crate) fn blocks<B: Block>(bytes: &[u8]) -> &[B] {
    const { assert!(size_of::<B>() == B::TYPE.block_size_bytes() && align_of::<B>() == 1) };
    // SAFETY: `Block` promises alignment 1, no padding and no invalid bit pattern; the length is rounded down.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<B>()) }
}

/// Views writable bytes as blocks; a rest shorter than a block is left out.
pub(crate) fn blocks_mut<B: Block>(bytes: &mut [u8]) -> &mut [B] {
    const { assert!(size_of::<B>() == B::TYPE.block_size_bytes() && align_of::<B>() == 1) };
    // SAFETY: as in `blocks`; blocks hold no padding, so every byte stays initialised.
    unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / size_of::<B>()) }
}

/// A little-endian half-precision number as blocks store it.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
pub(crate) struct F16([u8; 2]);

impl F16 {
    /// Rounds to nearest, ties to even.
    pub(crate) fn new(value: f32) -> Self {
        Self(half::f16::from_f32(value).to_le_bytes())
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn from_bits(bits: u16) -> Self {
        Self(bits.to_le_bytes())
    }

    #[inline(always)]
    pub(crate) fn get(self) -> f32 {
        f16_to_f32(u16::from_le_bytes(self.0))
    }
}

/// Widens a half without a branch, so that loops over it vectorise. NaN stays NaN.
#[inline(always)]
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let sign = u32::from(bits & 0x8000) << 16;
    // Moves the exponent from half's bias to single's; exact for subnormals too.
    let finite = f32::from_bits(magnitude) * f32::from_bits(0x7780_0000);
    let special = if magnitude >= 0x0f80_0000 { 0x7f80_0000 } else { 0 };
    f32::from_bits(finite.to_bits() | special | sign)
}

/// Rounds to the nearest integer, ties to even, for magnitudes below 2^22; anything else gives some integer, as in ggml.
#[inline(always)]
pub(crate) fn nearest_int(x: f32) -> i32 {
    ((x + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widens_every_half_as_the_half_crate_does() {
        for bits in 0..=u16::MAX {
            let expected = half::f16::from_bits(bits).to_f32();
            let actual = f16_to_f32(bits);
            assert!(actual.to_bits() == expected.to_bits() || actual.is_nan() && expected.is_nan(), "{bits:#06x}");
        }
    }
}
