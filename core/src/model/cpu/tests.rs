use std::sync::Arc;

use half::f16;

use super::*;
use crate::kernels::Isa;
use crate::model::config::Rope;

/// What rounding keys and values to f16 costs, half a step of 2⁻¹⁰, and to 8 bits, half of 1/127 of a group's largest.
fn cache_tolerance(kv_type: KvType) -> f32 {
    match kv_type {
        KvType::F16 => 5e-3,
        KvType::Q8 => 4e-2,
    }
}
/// The same rounding on both sides; only the order of the sums differs.
const TWIN_TOLERANCE: f32 = 2e-5;

fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..len).map(|_| next() + next() + next()).collect()
}

struct Case {
    params: AttentionParams,
    /// Rows of each call; they continue one sequence.
    steps: &'static [usize],
}

impl Case {
    fn new(heads: [usize; 2], head_dim: usize, steps: &'static [usize]) -> Self {
        // Frequencies of zero: no rotation, so that the reference needs none.
        let rope = Arc::new(Rope { inverse_frequencies: vec![0.0; head_dim / 2], interleaved: false });
        let [head_count, kv_head_count] = heads;
        let scale = (head_dim as f32).powf(-0.5) * 4.0;
        let (softcap, window, norm_epsilon) = (None, None, 1e-6);
        let params =
            AttentionParams { head_count, kv_head_count, head_dim, scale, softcap, window, rope, norm_epsilon };
        Self { params, steps }
    }

    fn rows(&self) -> usize {
        self.steps.iter().sum()
    }

    /// `[q, k, v]` of all rows.
    fn inputs(&self) -> [Vec<f32>; 3] {
        let AttentionParams { head_count, kv_head_count, head_dim, .. } = self.params;
        let widths = [head_count, kv_head_count, kv_head_count].map(|heads| heads * head_dim);
        let mut seed = 0;
        widths.map(|width| {
            seed += 1;
            noise(seed, self.rows() * width)
        })
    }

    /// What the backend computes, step after step.
    fn run(&self, isa: Isa, threads: usize, kv_type: KvType) -> Option<Vec<f32>> {
        let options = CpuOptions { threads: Some(threads), kv_type };
        let cpu = Cpu::with_kernels(&options, Kernels::new(isa)?).unwrap();
        let mut sequence = cpu.sequence(std::slice::from_ref(&self.params), self.rows()).unwrap();
        let inputs = self.inputs();
        let (mut done, mut out) = (0, Vec::new());
        for rows in self.steps.iter().copied() {
            let qkv = inputs.each_ref().map(|values| {
                let cols = values.len() / self.rows();
                let mut buffer = cpu.arena.take(rows, cols);
                buffer.copy_from_slice(&values[done * cols..][..rows * cols]);
                buffer
            });
            out.extend_from_slice(&cpu.attend(0, qkv, None, None, &self.params, &mut sequence).unwrap());
            sequence.advance(rows);
            done += rows;
        }
        Some(out)
    }

    /// softmax(q · kᵀ) · v in f64.
    fn expected(&self) -> Vec<f32> {
        let AttentionParams { head_count, kv_head_count, head_dim, scale, softcap, window, .. } = self.params;
        let [q, k, v] = self.inputs();
        let half = |x: f32| f64::from(f16::from_f32(x).to_f32());
        let mut out = Vec::new();
        for row in 0..self.rows() {
            for head in 0..head_count {
                let q = &q[(row * head_count + head) * head_dim..][..head_dim];
                let place = |key: usize| (key * kv_head_count + head / (head_count / kv_head_count)) * head_dim;
                let first = window.map_or(0, |window| (row + 1).saturating_sub(window));
                let scores: Vec<f64> = (first..=row)
                    .map(|key| {
                        let k = &k[place(key)..][..head_dim];
                        let score: f64 = q.iter().zip(k).map(|(q, k)| f64::from(q * scale) * half(*k)).sum();
                        softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                    })
                    .collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                out.extend((0..head_dim).map(|dim| {
                    let values = (first..=row).zip(&weights).map(|(key, weight)| weight * half(v[place(key) + dim]));
                    (values.sum::<f64>() / total) as f32
                }));
            }
        }
        out
    }
}

#[test]
fn attention_of_every_kernel_is_its_scalar_twins_and_the_float_references() {
    let window = |mut case: Case, window| {
        case.params.window = Some(window);
        case
    };
    let softcap = |mut case: Case, cap| {
        case.params.softcap = Some(cap);
        case
    };
    let cases = [
        // SmolLM2's heads and Gemma's, prefill and decode, within a block of keys and beyond.
        Case::new([9, 3], 64, &[1, 1, 40, 1, 300, 1, 1]),
        window(Case::new([4, 1], 256, &[70, 1, 90, 1]), 33),
        softcap(Case::new([4, 2], 48, &[5, 33, 1]), 3.0),
        // One query head per key/value head, a width that is no multiple of a vector, decode over several splits.
        Case::new([2, 2], 40, &[600, 1]),
    ];
    let largest = |a: &[f32], b: &[f32]| {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    let cases = cases.iter().enumerate().flat_map(|case| [KvType::F16, KvType::Q8].map(|kv_type| (case, kv_type)));
    for ((index, case), kv_type) in cases {
        let expected = case.expected();
        let twin = case.run(Isa::Scalar, 1, kv_type).unwrap();
        for (isa, threads) in Isa::ALL.iter().flat_map(|isa| [1, 2].map(|threads| (isa, threads))) {
            let Some(actual) = case.run(*isa, threads, kv_type) else { continue };
            let name = format!("case {index}, {kv_type:?}, {isa}, {threads} threads");
            let error = largest(&actual, &expected);
            assert!(error < cache_tolerance(kv_type), "{name}: {error} from the reference");
            let error = largest(&actual, &twin);
            assert!(error < TWIN_TOLERANCE, "{name}: {error} from the twin");
        }
    }
}

#[test]
fn rope_rotates_both_kinds_of_pairs_on_every_instruction_set() {
    let angles: Vec<f32> = noise(5, 20);
    let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|angle| (angle.cos(), angle.sin())).unzip();
    for kernels in Isa::ALL.iter().filter_map(|isa| Kernels::new(*isa)) {
        for interleaved in [false, true] {
            let x = noise(6, 40);
            let mut rotated = x.clone();
            kernels.rope(&mut rotated, &cos, &sin, interleaved);
            for i in 0..20 {
                let (a, b) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + 20) };
                assert!((rotated[a] - (x[a] * cos[i] - x[b] * sin[i])).abs() < 1e-6);
                assert!((rotated[b] - (x[a] * sin[i] + x[b] * cos[i])).abs() < 1e-6);
            }
        }
    }
}
