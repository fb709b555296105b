//! Kernels for x86-64.

pub(super) mod avx2;
pub(super) mod avx512;
mod floats;
mod formats;
mod gemv;
mod unpack;

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
use by_format;
