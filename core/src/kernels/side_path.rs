use half::f16;
use half::slice::HalfFloatSliceExt;

use super::activations::TILE;
use crate::lora::LoraPair;
use crate::quant::{BlockType, QMatrix, WeightBytes};

/// LoRA pairs whose targets share one input, ready to run beside the matrix product: `y += scale · b·(a·x)`.
///
/// The `a` of all pairs are one matrix, so that `a·x` is computed once; `b` is stored in the order in which the
/// products write their outputs. Both are f16, which keeps the delta to within 0.1%.
pub struct SidePath {
    /// `[Σ rank, in]`
    pub(super) a: QMatrix,
    /// One per product, in its order.
    pub(super) targets: Vec<Option<SideTarget>>,
}

/// One target's part of a [`SidePath`].
pub(super) struct SideTarget {
    /// Where this target's part of `a·x` starts.
    pub(super) start: usize,
    pub(super) rank: usize,
    pub(super) out: usize,
    /// `scale · b` as `[out / 16, rank, 16]`, the last tile filled with zeros.
    b: Vec<f16>,
}

impl SidePath {
    /// One entry per product, in the order of the products' call; `None` if no product has a pair.
    ///
    /// # Panics
    /// If the pairs do not have the same input width.
    pub fn new(pairs: &[Option<&LoraPair>], scale: f32) -> Option<Self> {
        let cols = pairs.iter().flatten().next()?.a.ncols();
        let mut rows = 0;
        let mut a: Vec<f16> = Vec::new();
        let mut targets = Vec::with_capacity(pairs.len());
        for pair in pairs {
            targets.push(pair.map(|pair| {
                assert_eq!(pair.a.ncols(), cols, "pairs of one side path share their input");
                let target = SideTarget::new(pair, rows, scale);
                rows += target.rank;
                let values = pair.a.as_standard_layout();
                let values = values.as_slice().expect("standard layout");
                let start = a.len();
                a.resize(start + values.len(), f16::ZERO);
                a[start..].convert_from_f32_slice(values);
                target
            }));
        }
        let mut bytes = vec![0; a.len() * 2];
        bytes.chunks_exact_mut(2).zip(&a).for_each(|(bytes, half)| bytes.copy_from_slice(&half.to_le_bytes()));
        let a =
            QMatrix::new(WeightBytes::Owned(bytes.into()), BlockType::F16, rows, cols).expect("sized by construction");
        Some(Self { a, targets })
    }
}

impl SideTarget {
    fn new(pair: &LoraPair, start: usize, scale: f32) -> Self {
        let (out, rank) = pair.b.dim();
        let mut b = vec![f16::ZERO; out.next_multiple_of(TILE) * rank];
        let values = pair.b.as_standard_layout();
        let values = values.as_slice().expect("standard layout");
        let mut transposed = vec![0.0; rank * TILE];
        // Whole tiles are converted at once: a swap of packs waits for this.
        for (tile, rows) in b.chunks_exact_mut((rank * TILE).max(1)).zip(values.chunks((rank * TILE).max(1))) {
            if rows.len() < tile.len() {
                transposed.fill(0.0);
            }
            for (lane, row) in rows.chunks_exact(rank).enumerate() {
                for (index, value) in row.iter().enumerate() {
                    transposed[index * TILE + lane] = scale * value;
                }
            }
            tile.convert_from_f32_slice(&transposed);
        }
        Self { start, rank, out, b }
    }

    /// `[rank, 16]` of the 16 outputs from `16 · tile`.
    pub(super) fn tile(&self, tile: usize) -> &[f16] {
        &self.b[tile * self.rank * TILE..][..self.rank * TILE]
    }
}
