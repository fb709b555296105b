//! Causal attention over packed sequences, each with an optional constant prefix.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, Device, Layout, Result, Shape, Tensor};
use edgeweld::model::AttentionParams;
use rayon::prelude::*;

use super::batch::Prefix;
use super::exp::exp;
use super::matmul::{Into, Mat, elements, matmul_serial, with_elements};
use super::norm::{normalise, normalise_back};
use super::rope::{rotate, rotate_back};

/// What attention of one layer needs besides q, k and v.
#[derive(Clone)]
pub(super) struct Attend {
    pub(super) params: AttentionParams,
    pub(super) layer: usize,
    /// Norm weights per head, `[head_dim]`.
    pub(super) q_norm: Option<Tensor>,
    pub(super) k_norm: Option<Tensor>,
    /// Rows of each sequence.
    pub(super) ranges: Vec<Range<usize>>,
    /// What each sequence continues.
    pub(super) prefixes: Vec<Option<Arc<Prefix>>>,
}

// Everything about one (sequence, kv head) pair; buffers are [rows, head_dim] or [rows, keys].
struct Part<'a> {
    q: Mat<'a>,
    // Where `q` starts in the whole batch's queries.
    q_offset: usize,
    k: Mat<'a>,
    v: Mat<'a>,
    prefix_k: Mat<'a>,
    prefix_v: Mat<'a>,
    past: usize,
    rows: usize,
}

impl Attend {
    /// First position of sequence `index`.
    pub(super) fn past(&self, index: usize) -> usize {
        self.prefixes[index].as_ref().map_or(0, |prefix| prefix.len)
    }

    // Norm, then rotation, of every row of q or k.
    fn prepare(&self, x: &[f32], heads: usize, norm: Option<&[f32]>) -> Vec<f32> {
        let params = &self.params;
        let cols = heads * params.head_dim;
        let mut x = x.to_vec();
        for (index, range) in self.ranges.iter().enumerate() {
            let past = self.past(index);
            x[range.start * cols..range.end * cols].par_chunks_mut(cols).enumerate().for_each(|(i, row)| {
                if let Some(norm) = norm {
                    row.chunks_mut(params.head_dim).for_each(|head| normalise(head, norm, params.norm_epsilon));
                }
                rotate(row, params.head_dim, &params.rope, past + i);
            });
        }
        x
    }

    // The gradient of `prepare`'s input from that of its output, in place.
    fn prepare_back(&self, x: &[f32], dx: &mut [f32], heads: usize, norm: Option<&[f32]>) {
        let params = &self.params;
        let dim = params.head_dim;
        let cols = heads * dim;
        for (index, range) in self.ranges.iter().enumerate() {
            let past = self.past(index);
            let rows = dx[range.start * cols..range.end * cols].par_chunks_mut(cols);
            rows.zip(x[range.start * cols..].par_chunks(cols)).enumerate().for_each(|(i, (dx, x))| {
                rotate_back(dx, dim, &params.rope, past + i);
                if let Some(norm) = norm {
                    let heads = x.chunks(dim).zip(dx.chunks_mut(dim));
                    heads.for_each(|(x, dx)| normalise_back(x, norm, params.norm_epsilon, dx));
                }
            });
        }
    }

    // Probabilities of query head `q` of `part`, and the derivative factor of the softcap per score if there is one.
    fn probabilities(&self, part: &Part, q: Mat) -> (Vec<f32>, Option<Vec<f32>>) {
        let keys = part.past + part.rows;
        let mut scores = vec![0f32; part.rows * keys];
        let scale = self.params.scale;
        if part.past > 0 {
            matmul_serial(&mut scores, keys, Into::Overwrite, scale, q, part.prefix_k.t());
        }
        matmul_serial(&mut scores[part.past..], keys, Into::Overwrite, scale, q, part.k.t());
        let slopes = self.params.softcap.map(|cap| {
            let slope = |score: &mut f32| {
                let tanh = (*score / cap).tanh();
                *score = cap * tanh;
                1.0 - tanh * tanh
            };
            scores.iter_mut().map(slope).collect()
        });
        for (i, row) in scores.chunks_mut(keys).enumerate() {
            let end = part.past + i + 1;
            let start = self.params.window.map_or(0, |window| end.saturating_sub(window));
            softmax(&mut row[start..end]);
            row[..start].fill(0.0);
            row[end..].fill(0.0);
        }
        (scores, slopes)
    }

    fn part<'a>(
        &self,
        (sequence, kv_head): (usize, usize),
        [q, k, v]: [&'a [f32]; 3],
        prefix: Option<(&'a [f32], &'a [f32])>,
    ) -> Part<'a> {
        let params = &self.params;
        let (dim, range) = (params.head_dim, &self.ranges[sequence]);
        let (rows, past) = (range.len(), self.past(sequence));
        let kv_cols = params.kv_head_count * dim;
        let q_cols = params.head_count * dim;
        let group = params.head_count / params.kv_head_count;
        let kv = |x: &'a [f32], row: usize, rows: usize| {
            Mat::strided(x.get(row * kv_cols + kv_head * dim..).unwrap_or_default(), rows, dim, kv_cols)
        };
        let (prefix_k, prefix_v) = prefix.unwrap_or_default();
        let q_offset = range.start * q_cols + kv_head * group * dim;
        Part {
            q: Mat::strided(&q[q_offset..], rows, group * dim, q_cols),
            q_offset,
            k: kv(k, range.start, rows),
            v: kv(v, range.start, rows),
            prefix_k: kv(prefix_k, 0, past),
            prefix_v: kv(prefix_v, 0, past),
            past,
            rows,
        }
    }

    // Runs `f` for every (sequence, kv head), in parallel, on prepared q, k and v.
    fn for_each_part<R: Send>(&self, qkv: [&[f32]; 3], f: impl Fn(&Part) -> R + Sync) -> Result<Vec<Vec<R>>> {
        let sequences: Vec<usize> = (0..self.ranges.len()).filter(|&i| !self.ranges[i].is_empty()).collect();
        let results: Vec<Result<Vec<R>>> = sequences
            .into_par_iter()
            .map(|sequence| {
                let run = |prefix: Option<(&[f32], &[f32])>| {
                    let heads = (0..self.params.kv_head_count).into_par_iter();
                    Ok(heads.map(|head| f(&self.part((sequence, head), qkv, prefix))).collect())
                };
                match &self.prefixes[sequence] {
                    None => run(None),
                    Some(prefix) => {
                        let (k, v) = &prefix.layers[self.layer];
                        with_elements(k, |k| with_elements(v, |v| run(Some((k, v)))))
                    }
                }
            })
            .collect();
        results.into_iter().collect()
    }

    fn forward(&self, q: &[f32], k: &[f32], v: &[f32], norms: [Option<&[f32]>; 2]) -> Result<Vec<f32>> {
        let params = &self.params;
        let (dim, group) = (params.head_dim, params.head_count / params.kv_head_count);
        let q = self.prepare(q, params.head_count, norms[0]);
        let k = self.prepare(k, params.kv_head_count, norms[1]);
        let outputs = self.for_each_part([&q, &k, v], |part| {
            // [rows, group · head_dim]
            let mut out = vec![0f32; part.rows * group * dim];
            for head in 0..group {
                let (p, _) = self.probabilities(part, part.q.columns(head * dim, dim));
                let keys = part.past + part.rows;
                let out = &mut out[head * dim..];
                let own = Mat::strided(&p[part.past..], part.rows, part.rows, keys);
                matmul_serial(out, group * dim, Into::Overwrite, 1.0, own, part.v);
                if part.past > 0 {
                    let past = Mat::strided(&p, part.rows, part.past, keys);
                    matmul_serial(out, group * dim, Into::Accumulate, 1.0, past, part.prefix_v);
                }
            }
            out
        })?;
        let mut y = vec![0f32; q.len()];
        self.scatter(&mut y, outputs, group * dim);
        Ok(y)
    }

    fn backward(&self, [q0, k0, v]: [&[f32]; 3], dy: &[f32], norms: [Option<&[f32]>; 2]) -> Result<[Vec<f32>; 3]> {
        let params = &self.params;
        let (dim, group) = (params.head_dim, params.head_count / params.kv_head_count);
        let q = self.prepare(q0, params.head_count, norms[0]);
        let k = self.prepare(k0, params.kv_head_count, norms[1]);
        let grads = self.for_each_part([&q, &k, v], |part| {
            let dy = Mat::strided(&dy[part.q_offset..], part.rows, group * dim, params.head_count * dim);
            self.part_backward(part, dy, group)
        })?;
        let (mut dq, mut dk, mut dv) = (vec![0f32; q.len()], vec![0f32; k.len()], vec![0f32; v.len()]);
        let (mut dqs, mut dks, mut dvs) = (Vec::new(), Vec::new(), Vec::new());
        for heads in grads {
            let (mut q, (mut k, mut v)) = (Vec::new(), (Vec::new(), Vec::new()));
            for [dq, dk, dv] in heads {
                q.push(dq);
                k.push(dk);
                v.push(dv);
            }
            dqs.push(q);
            dks.push(k);
            dvs.push(v);
        }
        self.scatter(&mut dq, dqs, group * dim);
        self.scatter(&mut dk, dks, dim);
        self.scatter(&mut dv, dvs, dim);
        self.prepare_back(q0, &mut dq, params.head_count, norms[0]);
        self.prepare_back(k0, &mut dk, params.kv_head_count, norms[1]);
        Ok([dq, dk, dv])
    }

    // p = softmax(scale·q·kᵀ); dp = dy·vᵀ; ds = p ⊙ (dp − Σ dp⊙p); dq = scale·ds·k; dk = scale·dsᵀ·q; dv = pᵀ·dy
    fn part_backward(&self, part: &Part, dy: Mat, group: usize) -> [Vec<f32>; 3] {
        let (dim, rows, keys) = (self.params.head_dim, part.rows, part.past + part.rows);
        let scale = self.params.scale;
        let mut dq = vec![0f32; rows * group * dim];
        let (mut dk, mut dv) = (vec![0f32; rows * dim], vec![0f32; rows * dim]);
        let mut ds = vec![0f32; rows * keys];
        for head in 0..group {
            let (q, dy) = (part.q.columns(head * dim, dim), dy.columns(head * dim, dim));
            let (p, slopes) = self.probabilities(part, q);
            let own = Mat::strided(&p[part.past..], rows, rows, keys);
            matmul_serial(&mut dv, dim, Into::Accumulate, 1.0, own.t(), dy);
            if part.past > 0 {
                matmul_serial(&mut ds, keys, Into::Overwrite, 1.0, dy, part.prefix_v.t());
            }
            matmul_serial(&mut ds[part.past..], keys, Into::Overwrite, 1.0, dy, part.v.t());
            for (ds, p) in ds.chunks_mut(keys).zip(p.chunks(keys)) {
                let dot: f32 = ds.iter().zip(p).map(|(d, p)| d * p).sum();
                ds.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - dot));
            }
            if let Some(slopes) = slopes {
                ds.iter_mut().zip(slopes).for_each(|(d, slope)| *d *= slope);
            }
            let own = Mat::strided(&ds[part.past..], rows, rows, keys);
            matmul_serial(&mut dk, dim, Into::Accumulate, scale, own.t(), q);
            let dq = &mut dq[head * dim..];
            matmul_serial(dq, group * dim, Into::Overwrite, scale, own, part.k);
            if part.past > 0 {
                let past = Mat::strided(&ds, rows, part.past, keys);
                matmul_serial(dq, group * dim, Into::Accumulate, scale, past, part.prefix_k);
            }
        }
        [dq, dk, dv]
    }

    // Puts [rows, cols] blocks, one per sequence and kv head, side by side into the rows of `y`.
    fn scatter(&self, y: &mut [f32], blocks: Vec<Vec<Vec<f32>>>, cols: usize) {
        let row_size = cols * self.params.kv_head_count;
        let ranges = self.ranges.iter().filter(|range| !range.is_empty());
        for (range, heads) in ranges.zip(blocks) {
            for (head, block) in heads.iter().enumerate() {
                for (row, block) in range.clone().zip(block.chunks(cols)) {
                    y[row * row_size + head * cols..][..cols].copy_from_slice(block);
                }
            }
        }
    }

    /// Rotated (and normed) keys, as a cache holds them.
    pub(super) fn cached_keys(&self, k: &Tensor) -> Result<Tensor> {
        let keys =
            with_norm(&self.k_norm, |norm| with_elements(k, |x| Ok(self.prepare(x, self.params.kv_head_count, norm))))?;
        Tensor::from_vec(keys, k.shape(), &Device::Cpu)
    }
}

fn softmax(row: &mut [f32]) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|x| *x = exp(*x - max));
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|x| *x /= sum);
}

fn with_norm<R>(norm: &Option<Tensor>, f: impl FnOnce(Option<&[f32]>) -> Result<R>) -> Result<R> {
    match norm {
        None => f(None),
        Some(norm) => with_elements(norm, |norm| f(Some(norm))),
    }
}

impl CustomOp3 for Attend {
    fn name(&self) -> &'static str {
        "attend"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        ql: &Layout,
        k: &CpuStorage,
        kl: &Layout,
        v: &CpuStorage,
        vl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (elements(q, ql)?, elements(k, kl)?, elements(v, vl)?);
        let y = with_norm(&self.q_norm, |qn| with_norm(&self.k_norm, |kn| self.forward(q, k, v, [qn, kn])))?;
        Ok((CpuStorage::F32(y), ql.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grads = with_norm(&self.q_norm, |qn| {
            with_norm(&self.k_norm, |kn| {
                with_elements(q, |q| {
                    with_elements(k, |k| {
                        with_elements(v, |v| with_elements(dy, |dy| self.backward([q, k, v], dy, [qn, kn])))
                    })
                })
            })
        })?;
        let [dq, dk, dv] = grads;
        let tensor = |data: Vec<f32>, like: &Tensor| Tensor::from_vec(data, like.shape(), &Device::Cpu).map(Some);
        Ok((tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?))
    }
}
