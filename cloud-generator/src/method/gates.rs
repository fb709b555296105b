use candle_core::{D, DType, Device, Result, Tensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Expert weights per row: softmax over experts, the `top_k` largest kept and renormalised, the rest zero (Eq. 6–7).
pub struct Gates {
    /// `[rows, expert]`; each row sums to 1, unless they are [`direct`](Self::direct).
    pub values: Tensor,
    /// Kept experts per row, largest first: `[rows][top_k]`.
    pub experts: Vec<Vec<u32>>,
}

impl Gates {
    /// Gates of router logits `[rows, expert]`. Gradients reach the kept experts only.
    pub fn from_logits(logits: &Tensor, top_k: usize) -> Result<Self> {
        let max = logits.max_keepdim(D::Minus1)?.detach();
        let exp = logits.broadcast_sub(&max)?.exp()?;
        let softmax = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;

        let rows: Vec<Vec<f64>> = softmax.detach().to_dtype(DType::F64)?.to_vec2()?;
        let experts: Vec<Vec<u32>> = rows.iter().map(|row| largest(row, top_k)).collect();
        let mut mask = vec![0f64; softmax.elem_count()];
        for (row, experts) in experts.iter().enumerate() {
            for &expert in experts {
                mask[row * softmax.dim(1)? + expert as usize] = 1.0;
            }
        }
        let mask = Tensor::from_vec(mask, softmax.shape(), softmax.device())?.to_dtype(softmax.dtype())?;
        let kept = softmax.mul(&mask)?;
        let values = kept.broadcast_div(&kept.sum_keepdim(D::Minus1)?)?;
        Ok(Self { values, experts })
    }

    /// Router logits `[rows, expert]` as gates of all experts, whose variance over the experts' sum is that of one logit.
    pub fn direct(logits: &Tensor) -> Result<Self> {
        let (rows, count) = logits.dims2()?;
        let values = (logits / (count as f64).sqrt())?;
        Ok(Self { values, experts: vec![(0..count as u32).collect(); rows] })
    }

    /// The same rows with more experts, whose indices continue this one's.
    pub fn beside(&self, more: &Self) -> Result<Self> {
        let values = Tensor::cat(&[&self.values, &more.values], 1)?;
        let rows = self.experts.iter().zip(&more.experts);
        Ok(Self { values, experts: rows.map(|(first, then)| [first.as_slice(), then].concat()).collect() })
    }

    /// `rows` gates from row `start` on.
    pub fn narrow(&self, start: usize, rows: usize) -> Result<Self> {
        Ok(Self { values: self.values.narrow(0, start, rows)?, experts: self.experts[start..start + rows].to_vec() })
    }
}

/// Standard Gumbel noise `[rows, experts]` in f32, to be added to logits (the paper's Table 8).
pub fn gumbel_noise(shape: (usize, usize), seed: u64, device: &Device) -> Result<Tensor> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut value = || {
        let u: f64 = rng.random_range(f64::MIN_POSITIVE..1.0);
        -(-u.ln()).ln() as f32
    };
    let values: Vec<f32> = (0..shape.0 * shape.1).map(|_| value()).collect();
    Tensor::from_vec(values, shape, device)
}

/// Eq. 9 without α: `(σ(load)/μ(load))²` over experts, where an expert's load is its gates summed over the rows.
pub fn load_balance(gates: &Tensor) -> Result<Tensor> {
    let load = gates.sum(0)?;
    let mean = load.mean(0)?;
    let var = load.broadcast_sub(&mean)?.sqr()?.mean(0)?;
    var.div(&mean.sqr()?)
}

// Ties go to the lower index, so that gates do not depend on the sort.
fn largest(row: &[f64], count: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..row.len() as u32).collect();
    order.sort_by(|&i, &j| row[j as usize].total_cmp(&row[i as usize]).then(i.cmp(&j)));
    order.truncate(count);
    order
}
