//! What the instruction sets share: how block types unpack, and the one-row product. Each is written once over the
//! vectors of [`Bytes`], [`Eight`] and [`Dot`](gemv::Dot), and compiled once per instruction set.

pub(super) mod formats;
pub(super) mod gemv;

/// 32 bytes in registers.
///
/// # Safety
/// Every function needs the instruction set of the implementation; those that take a pointer read there what they say.
pub(super) trait Bytes: Copy {
    /// 32 bytes.
    unsafe fn load(at: *const u8) -> Self;
    /// The low halves of 16 bytes, then their high halves.
    unsafe fn nibbles(at: *const u8) -> Self;
    /// Bit `i` of the 32 bits at `at`, as 16 in byte `i`.
    unsafe fn fifth_bits(at: *const u8) -> Self;
    /// `(byte >> shift) & mask`, for shifts below 8.
    unsafe fn bits(self, shift: usize, mask: u8) -> Self;
    /// `byte << SHIFT`, for bytes that lose no bit.
    unsafe fn left<const SHIFT: i32>(self) -> Self;
    unsafe fn or(self, other: Self) -> Self;
    /// `byte ^ 0x80`: signed numbers offset by 128 and back.
    unsafe fn flip_signs(self) -> Self;
    /// One f16.
    unsafe fn half(at: *const u8) -> f32;
}

/// Eight f32 in registers.
///
/// # Safety
/// As of [`Bytes`].
pub(super) trait Eight: Copy {
    unsafe fn zero() -> Self;
    unsafe fn load(at: *const f32) -> Self;
    unsafe fn store(self, at: *mut f32);
    /// Eight f16, `stride` bytes apart.
    unsafe fn halves(at: *const u8, stride: usize) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn scale(self, factor: f32) -> Self;
    /// `self · factor + sum`
    unsafe fn fma(self, factor: Self, sum: Self) -> Self;
    /// Sum of the eight.
    unsafe fn sum(self) -> f32;
}

/// `$function::<Format $(, $more)*>` of a quantised block type.
macro_rules! by_format {
    ($block_type:expr, $function:ident $(, $more:ty)*) => {
        match $block_type {
            BlockType::Q4_0 => $function::<formats::Q4_0 $(, $more)*>,
            BlockType::Q4_1 => $function::<formats::Q4_1 $(, $more)*>,
            BlockType::Q5_0 => $function::<formats::Q5_0 $(, $more)*>,
            BlockType::Q5_1 => $function::<formats::Q5_1 $(, $more)*>,
            BlockType::Q8_0 => $function::<formats::Q8_0 $(, $more)*>,
            BlockType::Q8_1 => $function::<formats::Q8_1 $(, $more)*>,
            BlockType::Q2_K => $function::<formats::Q2_K $(, $more)*>,
            BlockType::Q3_K => $function::<formats::Q3_K $(, $more)*>,
            BlockType::Q4_K => $function::<formats::Q4_K $(, $more)*>,
            BlockType::Q5_K => $function::<formats::Q5_K $(, $more)*>,
            BlockType::Q6_K => $function::<formats::Q6_K $(, $more)*>,
            BlockType::Q8_K => $function::<formats::Q8_K $(, $more)*>,
            BlockType::F32 | BlockType::F16 | BlockType::BF16 => unreachable!("{} has no codes", $block_type),
        }
    };
}
pub(super) use by_format;
