use half::f16;

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
        let mut a = Vec::new();
        let mut targets = Vec::with_capacity(pairs.len());
        for pair in pairs {
            targets.push(pair.map(|pair| {
                assert_eq!(pair.a.ncols(), cols, "pairs of one side path share their input");
                let target = SideTarget::new(pair, rows, scale);
                rows += target.rank;
                a.extend(pair.a.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()));
                target
            }));
        }
        let a = QMatrix::new(WeightBytes::Owned(a.into()), BlockType::F16, rows, cols).expect("sized by construction");
        Some(Self { a, targets })
    }
}

impl SideTarget {
    fn new(pair: &LoraPair, start: usize, scale: f32) -> Self {
        let (out, rank) = pair.b.dim();
        let mut b = vec![f16::ZERO; out.next_multiple_of(TILE) * rank];
        for ((feature, index), value) in pair.b.indexed_iter() {
            b[(feature / TILE * rank + index) * TILE + feature % TILE] = f16::from_f32(scale * value);
        }
        Self { start, rank, out, b }
    }

    /// `[rank, 16]` of the 16 outputs from `16 · tile`.
    pub(super) fn tile(&self, tile: usize) -> &[f16] {
        &self.b[tile * self.rank * TILE..][..self.rank * TILE]
    }
}
