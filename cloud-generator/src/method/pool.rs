use candle_core::{Result, Tensor};
use edgeweld::lora::Target;
use serde::{Deserialize, Serialize};

use super::Gates;

/// How experts become one LoRA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Composition {
    /// `a = Σ G_j a_j`, `b = Σ G_j b_j`: the rank stays that of one expert.
    #[default]
    Average,
    /// `b·a = Σ G_j b_j·a_j` exactly, as one pair of rank `top_k · rank`.
    ProductSum,
}

/// Sizes of an expert pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolShape {
    /// Experts.
    pub expert_count: usize,
    /// Rank of each expert's pairs.
    pub rank: usize,
    /// Width of the edge model's residual stream.
    pub hidden_size: usize,
    /// Width of its FFN.
    pub ffn_size: usize,
}

impl PoolShape {
    /// `(in, out)` of a target.
    pub fn target_size(&self, target: Target) -> (usize, usize) {
        match target {
            Target::Gate | Target::Up => (self.hidden_size, self.ffn_size),
            Target::Down => (self.ffn_size, self.hidden_size),
        }
    }
}

/// The experts: a LoRA pair per expert and target, shared by all layers (Eq. 8).
pub struct ExpertPool {
    /// Its sizes.
    pub shape: PoolShape,
    /// `[expert, rank, in]` per target, in the order of [`Target::ALL`].
    pub a: [Tensor; 3],
    /// `[expert, out, rank]` per target.
    pub b: [Tensor; 3],
}

impl ExpertPool {
    /// The LoRA pairs of every row of `gates` for `target`: `a: [rows, rank', in]`, `b: [rows, out, rank']`.
    ///
    /// `rank'` is [`composed_rank`](Self::composed_rank).
    pub fn compose(&self, gates: &Gates, target: Target, composition: Composition) -> Result<(Tensor, Tensor)> {
        let (a, b) = (&self.a[target as usize], &self.b[target as usize]);
        match composition {
            Composition::Average => Ok((average(&gates.values, a)?, average(&gates.values, b)?)),
            Composition::ProductSum => product_sum(gates, a, b),
        }
    }

    /// Rank of the pairs that [`compose`](Self::compose) returns.
    pub fn composed_rank(&self, composition: Composition, top_k: usize) -> usize {
        match composition {
            Composition::Average => self.shape.rank,
            Composition::ProductSum => self.shape.rank * top_k,
        }
    }
}

// Σ_j G_j E_j: [rows, expert] × [expert, m, n] -> [rows, m, n]
fn average(gates: &Tensor, experts: &Tensor) -> Result<Tensor> {
    let (_, m, n) = experts.dims3()?;
    gates.matmul(&experts.flatten_from(1)?)?.reshape((gates.dim(0)?, m, n))
}

// Stacks the kept experts along the rank; the gate goes into b, so that b·a = Σ G_j b_j·a_j.
fn product_sum(gates: &Gates, a: &Tensor, b: &Tensor) -> Result<(Tensor, Tensor)> {
    let rows = gates.experts.len();
    let top_k = gates.experts.first().map_or(0, Vec::len);
    let (_, rank, input) = a.dims3()?;
    let output = b.dim(1)?;
    let index = Tensor::from_vec(gates.experts.concat(), rows * top_k, a.device())?;
    let kept = gates.values.gather(&index.reshape((rows, top_k))?, 1)?;

    let a = a.index_select(&index, 0)?.reshape((rows, top_k * rank, input))?;
    let b = b.index_select(&index, 0)?.reshape((rows, top_k, output, rank))?;
    let b = b.broadcast_mul(&kept.reshape((rows, top_k, 1, 1))?)?;
    let b = b.transpose(1, 2)?.reshape((rows, output, top_k * rank))?;
    Ok((a, b))
}
