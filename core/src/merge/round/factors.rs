use crate::quant::nearest_int;

/// Columns of one [`Tile`].
pub(super) const TILE: usize = 16;

/// Sixteen columns of two neighbouring rows of `a`.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Tile(pub(super) [[i16; 2]; TILE]);

/// A LoRA pair as 16-bit integers, so that its product is exact in 32 bits and the same on every machine.
///
/// Every row of `a` has its own scale, folded into `b`, and every row of `b` too: what is lost is some 0.01% of the
/// delta, less than the f16 of a pack loses.
pub(in crate::merge) struct Factors {
    /// Width of a row of sums: whole pairs of tiles.
    pub(super) padded_cols: usize,
    /// `rank / 2`, rounded up.
    pub(super) pairs: usize,
    /// `[padded_cols / 16, pairs]`
    pub(super) a: Vec<Tile>,
    /// `[rows, pairs]`
    pub(super) b: Vec<[i16; 2]>,
    pub(super) rows: Vec<RowScale>,
}

/// How the sums of one row read as weights.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowScale {
    /// `‖Δ‖²` of the row, from the factors as they came.
    pub(super) norm: f32,
    /// `Δ = unit · sum`
    pub(super) unit: f32,
    /// `sum / 2^shift` has at most [`SHIFTED_BITS`] bits and a sign.
    pub(super) shift: u32,
}

impl RowScale {
    /// What one of a shifted sum stands for.
    #[inline(always)]
    pub(super) fn shifted_unit(&self) -> f32 {
        self.unit * (1_u64 << self.shift) as f32
    }
}

/// Bits of a shifted sum: room for one more in 16 bits with a sign.
pub(super) const SHIFTED_BITS: u32 = 14;

impl Factors {
    /// `a: [rank, cols]`, `b: [rows, rank]`; the delta is `scale · b·a`.
    pub(in crate::merge) fn new(a: &[f32], b: &[f32], cols: usize, scale: f32) -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the CPU has AVX2 and FMA.
            return unsafe { factors_avx2(a, b, cols, scale) };
        }
        factors(a, b, cols, scale)
    }
}

// The same code for wider registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn factors_avx2(a: &[f32], b: &[f32], cols: usize, scale: f32) -> Factors {
    factors(a, b, cols, scale)
}

#[inline(always)]
fn factors(a: &[f32], b: &[f32], cols: usize, scale: f32) -> Factors {
    let rank = a.len() / cols;
    let pairs = rank.div_ceil(2);
    let padded_cols = cols.next_multiple_of(2 * TILE);
    // The sum of `rank` products of two such numbers fits into 31 bits.
    let largest = f64::from(i32::MAX / (2 * pairs as i32)).sqrt().min(f64::from(i16::MAX)).floor() as f32;

    let a_max: Vec<f32> = a.chunks_exact(cols).map(absolute_max).collect();
    let mut tiles = vec![Tile([[0; 2]; TILE]); padded_cols / TILE * pairs];
    for (rank, (row, max)) in a.chunks_exact(cols).zip(&a_max).enumerate() {
        let factor = inverse(*max, largest);
        for (index, values) in row.chunks(TILE).enumerate() {
            let Tile(tile) = &mut tiles[index * pairs + rank / 2];
            for (place, value) in tile.iter_mut().zip(values) {
                place[rank % 2] = nearest_int(value * factor) as i16;
            }
        }
    }

    let gram = Gram::new(a, cols);
    let count = b.len() / rank;
    let mut integers = vec![[0; 2]; count * pairs];
    let mut rows = Vec::with_capacity(count);
    let mut scaled = vec![0.0; rank];
    for (row, integers) in b.chunks_exact(rank).zip(integers.chunks_exact_mut(pairs)) {
        scaled.iter_mut().zip(row.iter().zip(&a_max)).for_each(|(scaled, (value, max))| *scaled = value * max);
        let max = absolute_max(&scaled);
        let factor = inverse(max, largest);
        let mut total = 0;
        for (place, value) in integers.as_flattened_mut().iter_mut().zip(&scaled) {
            let integer = nearest_int(value * factor);
            *place = integer as i16;
            total += integer.unsigned_abs();
        }
        // No sum is larger, as no value of `a` is.
        let bits = u64::BITS - (u64::from(total) * largest as u64).leading_zeros();
        rows.push(RowScale {
            norm: scale * scale * gram.square(row),
            unit: scale * max / largest / largest,
            shift: bits.saturating_sub(SHIFTED_BITS).min(31),
        });
    }
    Factors { padded_cols, pairs, a: tiles, b: integers, rows }
}

/// `a·aᵀ`, which gives `‖b·a‖²` of a row without the product.
struct Gram {
    /// `[rank, padded]`
    products: Vec<f32>,
    padded: usize,
}

impl Gram {
    #[inline(always)]
    fn new(a: &[f32], cols: usize) -> Self {
        let rank = a.len() / cols;
        let padded = rank.next_multiple_of(TILE);
        let mut products = vec![0.0; rank * padded];
        for (i, x) in a.chunks_exact(cols).enumerate() {
            for (j, y) in a.chunks_exact(cols).enumerate().take(i + 1) {
                let product = super::dot(x, y) as f32;
                (products[i * padded + j], products[j * padded + i]) = (product, product);
            }
        }
        Self { products, padded }
    }

    /// `‖bᵀ·a‖²`
    #[inline(always)]
    fn square(&self, b: &[f32]) -> f32 {
        let mut sum = 0.0;
        for lane in (0..self.padded).step_by(TILE) {
            let mut sums = [0.0_f32; TILE];
            for (b, row) in b.iter().zip(self.products.chunks_exact(self.padded)) {
                let row: &[f32; TILE] = row[lane..lane + TILE].try_into().expect("TILE values");
                sums.iter_mut().zip(row).for_each(|(sum, product)| *sum = b.mul_add(*product, *sum));
            }
            sum = b[lane.min(b.len())..].iter().zip(&sums).fold(sum, |sum, (b, s)| b.mul_add(*s, sum));
        }
        sum
    }
}

/// NaN counts as nothing here; the norms carry it.
#[inline(always)]
fn absolute_max(values: &[f32]) -> f32 {
    let mut max = [0.0_f32; TILE];
    let (chunks, rest) = values.as_chunks::<TILE>();
    for chunk in chunks {
        for lane in 0..TILE {
            let value = chunk[lane].abs();
            max[lane] = if value > max[lane] { value } else { max[lane] };
        }
    }
    rest.iter().chain(&max).fold(0.0, |max, value| if value.abs() > max { value.abs() } else { max })
}

#[inline(always)]
fn inverse(max: f32, largest: f32) -> f32 {
    if max > 0.0 { largest / max } else { 0.0 }
}
