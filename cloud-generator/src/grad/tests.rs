//! Every fused operator against its twin from tensor primitives: value and gradients.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, Var};
use edgeweld::lora::Target;
use edgeweld::model::{Activation, AttentionParams, Rope};

use super::attention::Attend;
use super::batch::Prefix;
use super::{Dropout, GroupedLora, TokenExperts, glu, head, linear, norm, primitive};

fn random(seed: u64, shape: &[usize]) -> Tensor {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn close(actual: &Tensor, expected: &Tensor, what: &str) {
    let difference = actual.sub(expected).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
    let largest = expected.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    let difference = difference.to_scalar::<f32>().unwrap();
    assert!(largest > 1e-3, "{what}: nothing to compare");
    assert!(difference < 2e-5 * largest.max(1.0), "{what}: differs by {difference} of {largest}");
}

/// Value and input gradients of `fused` and `twin` agree, for a random gradient of the output.
fn agree(inputs: &[Tensor], fused: impl Fn(&[Tensor]) -> Result<Tensor>, twin: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let vars: Vec<Var> = inputs.iter().map(|input| Var::from_tensor(input).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let run = |f: &dyn Fn(&[Tensor]) -> Result<Tensor>| {
        let y = f(&tensors).unwrap();
        let weights = random(99, y.dims());
        (y.clone(), y.mul(&weights).unwrap().sum_all().unwrap().backward().unwrap())
    };
    let ((y, grads), (y_twin, grads_twin)) = (run(&fused), run(&twin));
    close(&y, &y_twin, "value");
    for (index, var) in vars.iter().enumerate() {
        let grad = grads.get(var).unwrap_or_else(|| panic!("input {index} gets no gradient"));
        close(grad, grads_twin.get(var).unwrap(), &format!("gradient of input {index}"));
    }
}

#[test]
fn frozen_linear_agrees_with_primitives() {
    let weight = random(1, &[7, 5]);
    agree(&[random(2, &[9, 5])], |x| linear::linear(&x[0], &weight, None), |x| primitive::linear(&x[0], &weight, None));
}

#[test]
fn grouped_lora_agrees_with_primitives() {
    let weight = random(1, &[7, 5]);
    let lora = |theta: &Tensor| GroupedLora {
        theta: theta.clone(),
        groups: Arc::new([0..4, 4..9]),
        rank: 3,
        scale: 0.7,
        dropout: None,
    };
    agree(
        &[random(2, &[9, 5]), random(3, &[2, 3 * 12])],
        |x| linear::linear(&x[0], &weight, Some(&lora(&x[1]))),
        |x| primitive::linear(&x[0], &weight, Some(&lora(&x[1]))),
    );
}

#[test]
fn token_routed_experts_agree_with_one_lora_after_the_other() {
    let (experts, rank, input, out) = (3, 2, 5, 7);
    let inputs = [
        random(1, &[9, input]),
        random(2, &[experts, input]),
        random(3, &[experts, rank, input]),
        random(4, &[experts, out, rank]),
    ];
    for top_k in [3, 2] {
        let routed = |x: &[Tensor]| {
            let [a, b] = [&x[2], &x[3]].map(|pool| [0; 3].map(|_| pool.clone()));
            let experts = TokenExperts::new(x[1].clone(), top_k, a, b, 0.7, None);
            experts.route(&x[0])?;
            experts.delta(&x[0], Target::Up)
        };
        let twin = |x: &[Tensor]| {
            let exp = x[0].matmul(&x[1].t()?)?.exp()?;
            let least = exp.min_keepdim(1)?;
            let kept = if top_k == 3 { exp } else { exp.mul(&exp.broadcast_gt(&least)?.to_dtype(exp.dtype())?)? };
            let gates = kept.broadcast_div(&kept.sum_keepdim(1)?)?;
            let mut sum = Tensor::zeros((9, out), DType::F32, &Device::Cpu)?;
            for expert in 0..experts {
                let delta = x[0].matmul(&x[2].get(expert)?.t()?)?.matmul(&x[3].get(expert)?.t()?)?;
                sum = sum.add(&delta.broadcast_mul(&gates.narrow(1, expert, 1)?)?)?;
            }
            sum * 0.7
        };
        agree(&inputs, routed, twin);
    }
}

#[test]
fn dropout_on_a_loras_input_equals_a_masked_input_and_keeps_its_mean() {
    let dropout = Dropout { probability: 0.25, seed: 7 };
    let mut mask = vec![1f32; 40_000];
    dropout.apply(&mut mask);
    let kept = mask.iter().filter(|x| **x > 0.0).count() as f32 / mask.len() as f32;
    assert!((kept - 0.75).abs() < 0.01, "{kept} kept");
    assert!(mask.iter().all(|x| *x == 0.0 || (*x - 1.0 / 0.75).abs() < 1e-6));

    let weight = random(1, &[7, 5]).affine(0.0, 0.0).unwrap();
    let mask = Tensor::from_slice(&mask[..45], (9, 5), &Device::Cpu).unwrap();
    let lora = |theta: &Tensor, dropout| GroupedLora {
        theta: theta.clone(),
        groups: Arc::new([0..9]),
        rank: 3,
        scale: 0.7,
        dropout,
    };
    agree(
        &[random(2, &[9, 5]), random(3, &[1, 3 * 12])],
        |x| linear::linear(&x[0], &weight, Some(&lora(&x[1], Some(dropout)))),
        |x| primitive::linear(&x[0].mul(&mask)?, &weight, Some(&lora(&x[1], None))),
    );
}

#[test]
fn rms_norm_agrees_with_primitives() {
    let weight = random(1, &[6]);
    agree(
        &[random(2, &[4, 6])],
        |x| norm::rms_norm(&x[0], &weight, 1e-5),
        |x| primitive::rms_norm(&x[0], &weight, 1e-5),
    );
}

#[test]
fn gated_activations_agree_with_primitives() {
    for activation in [Activation::Silu, Activation::GeluTanh] {
        agree(
            &[random(1, &[5, 8]), random(2, &[5, 8])],
            |x| glu::glu(&x[0], &x[1], activation),
            |x| primitive::glu(&x[0], &x[1], activation),
        );
    }
}

#[test]
fn head_loss_agrees_with_primitives_for_labels_and_distributions() {
    let table = random(1, &[33, 6]);
    let targets = vec![vec![(3, 1.0)], vec![(0, 0.25), (32, 0.75)], vec![(7, 1.0)]];
    for softcap in [None, Some(1.5)] {
        agree(
            &[random(2, &[3, 6])],
            |x| head::head_loss(&x[0], &table, softcap, targets.clone()),
            |x| primitive::head_loss(&x[0], &table, softcap, &targets),
        );
    }
}

#[test]
fn attention_agrees_with_primitives_for_every_variant() {
    let (heads, kv_heads, dim) = (4, 2, 6);
    let prefix = Prefix { len: 3, layers: vec![(random(5, &[3, kv_heads * dim]), random(6, &[3, kv_heads * dim]))] };
    let prefix = Arc::new(prefix);
    for (interleaved, normed, softcap, window, past) in [
        (false, false, None, None, false),
        (true, false, None, None, true),
        (false, true, Some(0.8), None, true),
        (true, true, None, Some(3), true),
    ] {
        let rope = Rope { inverse_frequencies: vec![1.0, 0.3, 0.1], interleaved };
        let op = Attend {
            params: AttentionParams {
                head_count: heads,
                kv_head_count: kv_heads,
                head_dim: dim,
                scale: 0.9,
                softcap,
                window,
                rope: Arc::new(rope),
                norm_epsilon: 1e-6,
            },
            layer: 0,
            q_norm: normed.then(|| random(7, &[dim])),
            k_norm: normed.then(|| random(8, &[dim])),
            ranges: vec![0..5, 5..7],
            prefixes: vec![None, past.then(|| prefix.clone())],
        };
        let inputs = [random(1, &[7, heads * dim]), random(2, &[7, kv_heads * dim]), random(3, &[7, kv_heads * dim])];
        agree(
            &inputs,
            |x| x[0].apply_op3(&x[1], &x[2], op.clone()),
            |x| Ok(primitive::attend(&op, &x[0], &x[1], &x[2])?.0),
        );
        let keys = primitive::attend(&op, &inputs[0], &inputs[1], &inputs[2]).unwrap().1;
        close(&op.cached_keys(&inputs[1]).unwrap(), &keys, "cached keys");
    }
}
