use super::block::{Block, GROUPS_MAX, blocks, blocks_mut};
use super::{BlockType, float};

/// Calls `$call::<B>(…)` with the block struct of a quantised type, or `$float` for F32, F16 and BF16.
macro_rules! with_block {
    ($block_type:expr, $B:ident => $call:expr, $float:expr) => {
        match $block_type {
            $crate::quant::BlockType::F32 | $crate::quant::BlockType::F16 | $crate::quant::BlockType::BF16 => $float,
            $crate::quant::BlockType::Q4_0 => {
                type $B = $crate::quant::legacy::BlockQ4_0;
                $call
            }
            $crate::quant::BlockType::Q4_1 => {
                type $B = $crate::quant::legacy::BlockQ4_1;
                $call
            }
            $crate::quant::BlockType::Q5_0 => {
                type $B = $crate::quant::legacy::BlockQ5_0;
                $call
            }
            $crate::quant::BlockType::Q5_1 => {
                type $B = $crate::quant::legacy::BlockQ5_1;
                $call
            }
            $crate::quant::BlockType::Q8_0 => {
                type $B = $crate::quant::legacy::BlockQ8_0;
                $call
            }
            $crate::quant::BlockType::Q8_1 => {
                type $B = $crate::quant::legacy::BlockQ8_1;
                $call
            }
            $crate::quant::BlockType::Q2_K => {
                type $B = $crate::quant::k::BlockQ2K;
                $call
            }
            $crate::quant::BlockType::Q3_K => {
                type $B = $crate::quant::k::BlockQ3K;
                $call
            }
            $crate::quant::BlockType::Q4_K => {
                type $B = $crate::quant::k::BlockQ4K;
                $call
            }
            $crate::quant::BlockType::Q5_K => {
                type $B = $crate::quant::k::BlockQ5K;
                $call
            }
            $crate::quant::BlockType::Q6_K => {
                type $B = $crate::quant::k::BlockQ6K;
                $call
            }
            $crate::quant::BlockType::Q8_K => {
                type $B = $crate::quant::k::BlockQ8K;
                $call
            }
        }
    };
}
pub(crate) use with_block;

/// Reads blocks as f32, the same values as ggml's `dequantize_row_*`.
///
/// Any bytes are accepted: hostile ones give NaN or infinite weights, never a panic. It uses the calling thread only.
///
/// # Panics
/// If `dst` is not a whole number of blocks or `src` has another number of them.
pub fn dequantize(block_type: BlockType, src: &[u8], dst: &mut [f32]) {
    assert_eq!(block_type.row_size_bytes(dst.len()), Some(src.len()), "{block_type}: lengths differ");
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has AVX2.
        return unsafe { dequantize_avx2(block_type, src, dst) };
    }
    dequantize_blocks(block_type, src, dst);
}

/// Stores f32 weights as blocks by nearest rounding, the same bytes as ggml's `quantize_row_*_ref`.
///
/// NaN and infinite weights give some block, never a panic. It uses the calling thread only.
///
/// # Panics
/// If `src` is not a whole number of blocks or `dst` has another number of them.
pub fn quantize(block_type: BlockType, src: &[f32], dst: &mut [u8]) {
    assert_eq!(block_type.row_size_bytes(src.len()), Some(dst.len()), "{block_type}: lengths differ");
    fn run<B: Block>(src: &[f32], dst: &mut [u8]) {
        for (block, x) in blocks_mut::<B>(dst).iter_mut().zip(src.chunks_exact(B::LEN)) {
            *block = B::quantize(x);
        }
    }
    with_block!(block_type, B => run::<B>(src, dst), match block_type {
        BlockType::F16 => float::write_f16(src, dst),
        BlockType::BF16 => float::write_bf16(src, dst),
        _ => float::write_f32(src, dst),
    });
}

// The same code, compiled for wider registers; it vectorises by itself.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn dequantize_avx2(block_type: BlockType, src: &[u8], dst: &mut [f32]) {
    dequantize_blocks(block_type, src, dst);
}

#[inline(always)]
fn dequantize_blocks(block_type: BlockType, src: &[u8], dst: &mut [f32]) {
    with_block!(block_type, B => run::<B>(src, dst), match block_type {
        BlockType::F16 => float::read_f16(src, dst),
        BlockType::BF16 => float::read_bf16(src, dst),
        _ => float::read_f32(src, dst),
    });

    #[inline(always)]
    fn run<B: Block>(src: &[u8], dst: &mut [f32]) {
        let (mut codes, mut steps, mut mins) = ([0; 256], [0.0; GROUPS_MAX], [0.0; GROUPS_MAX]);
        for (block, values) in blocks::<B>(src).iter().zip(dst.chunks_exact_mut(B::LEN)) {
            block.codes(&mut codes);
            block.steps(&mut steps, &mut mins);
            let groups = values.chunks_exact_mut(B::GROUP).zip(codes.chunks_exact(B::GROUP));
            for ((values, codes), (step, min)) in groups.zip(steps.iter().zip(&mins)) {
                for (value, &code) in values.iter_mut().zip(codes) {
                    *value = step * (i32::from(code) - i32::from(B::ZERO)) as f32 + min;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GGML_BLOCKS: &[u8] = include_bytes!("../../tests/data/ggml_blocks/blocks.bin");

    struct Case {
        block_type: BlockType,
        blocks: &'static [u8],
        dequantized_hash: u64,
    }

    /// The weights and cases of the fixture; its layout is in `make.c` beside it.
    fn ggml() -> (Vec<f32>, Vec<Case>) {
        let mut rest = GGML_BLOCKS;
        let mut take = |len: usize| rest.split_off(..len).unwrap();
        let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
        let count = number(take(4)) as usize;
        let mut weights = vec![0.0; count];
        float::read_f32(take(4 * count), &mut weights);
        let cases = (0..14).map(|_| {
            let block_type = BlockType::from_ggml(number(take(4))).unwrap();
            let size = number(take(4)) as usize;
            let blocks = take(size);
            Case { block_type, blocks, dequantized_hash: u64::from_le_bytes(take(8).try_into().unwrap()) }
        });
        (weights, cases.collect())
    }

    fn fnv(values: &[f32]) -> u64 {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
    }

    #[test]
    fn quantizes_to_the_bytes_of_ggml() {
        let (weights, cases) = ggml();
        for Case { block_type, blocks, .. } in cases {
            let mut bytes = vec![0; blocks.len()];
            quantize(block_type, &weights, &mut bytes);
            let size = block_type.block_size_bytes();
            let differing = (0..bytes.len() / size).find(|i| bytes[i * size..][..size] != blocks[i * size..][..size]);
            assert_eq!(differing, None, "{block_type}: first differing block");
        }
    }

    #[test]
    fn dequantizes_to_the_bits_of_ggml() {
        let (weights, cases) = ggml();
        for Case { block_type, blocks, dequantized_hash } in cases {
            let mut values = vec![f32::NAN; weights.len()];
            dequantize(block_type, blocks, &mut values);
            assert_eq!(fnv(&values), dequantized_hash, "{block_type}");
            dequantize_blocks(block_type, blocks, &mut values);
            assert_eq!(fnv(&values), dequantized_hash, "{block_type}, portable");
        }
    }

    #[test]
    fn packing_unpacked_codes_gives_the_block_back() {
        fn check<B: Block>(bytes: &[u8]) {
            for block in blocks::<B>(bytes) {
                let (mut codes, mut again) = (vec![0; B::LEN], vec![0; B::LEN]);
                block.codes(&mut codes);
                let mut packed = *block;
                packed.set_codes(&vec![*B::CODES.end(); B::LEN]);
                packed.set_codes(&codes);
                packed.codes(&mut again);
                assert_eq!(codes, again, "{}", B::TYPE);
                // Q8_1's sum is rounded twice here, once in ggml; all else is the same bytes.
                if B::TYPE != BlockType::Q8_1 {
                    let (a, b) = ([*block], [packed]);
                    assert_eq!(bytes_of(&a), bytes_of(&b), "{}", B::TYPE);
                }
            }
        }
        fn bytes_of<B: Block>(blocks: &[B; 1]) -> &[u8] {
            // SAFETY: blocks have no padding (`Block`'s contract).
            unsafe { std::slice::from_raw_parts(blocks.as_ptr().cast(), size_of::<B>()) }
        }
        for Case { block_type, blocks, .. } in ggml().1 {
            with_block!(block_type, B => check::<B>(blocks), ());
        }
    }

    #[test]
    fn hostile_blocks_and_weights_do_not_panic() {
        let weights = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 1e-40, -0.0, 1.0];
        let mut state = 7_u64;
        for block_type in BlockType::ALL {
            for round in 0..64 {
                let mut bytes = vec![0; block_type.row_size_bytes(512).unwrap()];
                for byte in &mut bytes {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    *byte = if round % 2 == 0 { (state >> 56) as u8 } else { 0xff };
                }
                let mut values = vec![0.0; 512];
                dequantize(block_type, &bytes, &mut values);
                quantize(block_type, &values, &mut bytes);
                let mixed: Vec<f32> = (0..512).map(|i| weights[(i * (round + 1) + i / 8) % weights.len()]).collect();
                quantize(block_type, &mixed, &mut bytes);
            }
        }
    }
}
