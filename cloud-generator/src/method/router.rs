use candle_core::{D, Result, Tensor};

/// Epsilon under the root of the batch norm.
const EPSILON: f64 = 1e-5;
/// Weight of a batch in the running statistics.
const MOMENTUM: f64 = 0.1;

/// `BN(f2(SiLU(f1(T))))` (Eq. 3): meta tokens `[rows, cloud_hidden]` to logits `[rows, expert]`.
pub struct Router {
    /// `[router_hidden, cloud_hidden]`
    pub f1_weight: Tensor,
    /// `[router_hidden]`
    pub f1_bias: Tensor,
    /// `[expert, router_hidden]`
    pub f2_weight: Tensor,
    /// `[expert]`
    pub f2_bias: Tensor,
    /// Normalises each expert's logit over the rows.
    pub norm: BatchNorm,
}

/// Batch norm over rows; all vectors are `[expert]`.
pub struct BatchNorm {
    /// Factor on the normalised logit.
    pub weight: Tensor,
    /// Added to it.
    pub bias: Tensor,
    /// Mean used at inference.
    pub running_mean: Tensor,
    /// Variance used at inference.
    pub running_var: Tensor,
}

/// What a training batch adds to the running statistics.
pub struct BatchStatistics {
    mean: Tensor,
    unbiased_var: Tensor,
}

impl Router {
    /// Inference: the batch norm uses its running statistics, so a prompt's pack does not depend on its batch.
    pub fn forward(&self, meta: &Tensor) -> Result<Tensor> {
        let norm = &self.norm;
        norm.apply(&self.linear(meta)?, &norm.running_mean, &norm.running_var)
    }

    /// Training: the batch norm uses the rows' own statistics (biased variance), which it also returns.
    pub fn forward_train(&self, meta: &Tensor) -> Result<(Tensor, BatchStatistics)> {
        let x = self.linear(meta)?;
        let rows = x.dim(0)? as f64;
        let mean = x.mean(0)?;
        let var = x.broadcast_sub(&mean)?.sqr()?.mean(0)?;
        let y = self.norm.apply(&x, &mean, &var)?;
        let unbiased_var = (var.detach() * (rows / (rows - 1.0).max(1.0)))?;
        Ok((y, BatchStatistics { mean: mean.detach(), unbiased_var }))
    }

    fn linear(&self, meta: &Tensor) -> Result<Tensor> {
        let x = meta.matmul(&self.f1_weight.t()?)?.broadcast_add(&self.f1_bias)?;
        x.silu()?.matmul(&self.f2_weight.t()?)?.broadcast_add(&self.f2_bias)
    }
}

impl BatchNorm {
    fn apply(&self, x: &Tensor, mean: &Tensor, var: &Tensor) -> Result<Tensor> {
        debug_assert_eq!(x.dim(D::Minus1)?, self.weight.elem_count());
        let scale = self.weight.div(&(var + EPSILON)?.sqrt()?)?;
        x.broadcast_sub(mean)?.broadcast_mul(&scale)?.broadcast_add(&self.bias)
    }

    /// The running mean and variance after a training batch.
    pub fn updated(&self, batch: &BatchStatistics) -> Result<(Tensor, Tensor)> {
        let blend = |old: &Tensor, new: &Tensor| (old.detach() * (1.0 - MOMENTUM))? + (new * MOMENTUM)?;
        Ok((blend(&self.running_mean, &batch.mean)?, blend(&self.running_var, &batch.unbiased_var)?))
    }
}
