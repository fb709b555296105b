//! The router, the gates and both compositions against an independent float64 implementation.
//!
//! The fixtures are cut out of `shared/golden/loragen-math` by `tests/fixtures/reduce_golden.py`.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};
use edgeweld::lora::Target;
use edgeweld_cloud::method::{BatchNorm, Composition, ExpertPool, Gates, PoolShape, Router, load_balance};

struct Golden {
    tensors: HashMap<String, Tensor>,
    top_k: usize,
    scale: f64,
}

impl Golden {
    fn load(name: &str, dtype: DType) -> Self {
        let path = format!("{}/tests/fixtures/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
        let bytes = std::fs::read(&path).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().clone().unwrap();
        let number = |key: &str| metadata[key].parse::<f64>().unwrap();
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
        let tensors = tensors.into_iter().map(|(name, t)| (name, t.to_dtype(dtype).unwrap())).collect();
        Self { tensors, top_k: number("top_k") as usize, scale: number("alpha") / number("rank") }
    }

    fn tensor(&self, name: &str) -> Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("fixture lacks {name}")).clone()
    }

    fn router(&self) -> Router {
        Router {
            f1_weight: self.tensor("router.f1.weight"),
            f1_bias: self.tensor("router.f1.bias"),
            f2_weight: self.tensor("router.f2.weight"),
            f2_bias: self.tensor("router.f2.bias"),
            norm: BatchNorm {
                weight: self.tensor("router.bn.weight"),
                bias: self.tensor("router.bn.bias"),
                running_mean: self.tensor("router.bn.running_mean"),
                running_var: self.tensor("router.bn.running_var"),
            },
        }
    }

    fn pool(&self) -> ExpertPool {
        let pair = |target: Target, side| self.tensor(&format!("pool.{}.{side}", target.name()));
        let (expert_count, rank, hidden_size) = pair(Target::Gate, "a").dims3().unwrap();
        let ffn_size = pair(Target::Gate, "b").dim(1).unwrap();
        ExpertPool {
            shape: PoolShape { expert_count, rank, hidden_size, ffn_size },
            a: Target::ALL.map(|target| pair(target, "a")),
            b: Target::ALL.map(|target| pair(target, "b")),
        }
    }

    // [batch, layer, cloud_hidden] -> [batch · layer, cloud_hidden]
    fn meta(&self) -> Tensor {
        self.tensor("meta").flatten(0, 1).unwrap()
    }
}

fn difference(actual: &Tensor, expected: &Tensor) -> f64 {
    let actual = actual.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
    let expected = expected.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
    actual.sub(&expected).unwrap().abs().unwrap().max(0).unwrap().to_scalar().unwrap()
}

const FILES: [&str; 2] = ["loragen-n8-k2", "loragen-n32-k4"];
const TOLERANCE: f64 = 1e-5;

#[test]
fn inference_router_and_gates_agree_with_float64_reference() {
    for (name, dtype) in FILES.into_iter().flat_map(|name| [(name, DType::F32), (name, DType::F64)]) {
        let golden = Golden::load(name, dtype);
        let logits = golden.router().forward(&golden.meta()).unwrap();
        assert!(difference(&logits, &golden.tensor("out.router_logits")) < TOLERANCE, "{name} {dtype:?}");
        let gates = Gates::from_logits(&logits, golden.top_k).unwrap();
        assert!(difference(&gates.values, &golden.tensor("out.gates")) < TOLERANCE, "{name} {dtype:?}");
        assert!(gates.experts.iter().all(|experts| experts.len() == golden.top_k));
    }
}

#[test]
fn training_router_gates_and_load_balance_agree_with_float64_reference() {
    for (name, dtype) in FILES.into_iter().flat_map(|name| [(name, DType::F32), (name, DType::F64)]) {
        let golden = Golden::load(name, dtype);
        let (logits, _) = golden.router().forward_train(&golden.meta()).unwrap();
        assert!(difference(&logits, &golden.tensor("out.train.router_logits")) < TOLERANCE, "{name} {dtype:?}");
        let gates = Gates::from_logits(&logits, golden.top_k).unwrap();
        assert!(difference(&gates.values, &golden.tensor("out.train.gates")) < TOLERANCE, "{name} {dtype:?}");
        let balance = load_balance(&gates.values).unwrap();
        assert!(difference(&balance, &golden.tensor("out.train.cv2")) < TOLERANCE, "{name} {dtype:?}");
    }
}

#[test]
fn running_statistics_blend_a_tenth_of_the_batch() -> Result<()> {
    let golden = Golden::load(FILES[0], DType::F64);
    let router = golden.router();
    let (_, batch) = router.forward_train(&golden.meta())?;
    let (mean, var) = router.norm.updated(&batch)?;

    // The same from the definition: linear part of the router, then mean and n−1 variance per expert.
    let x = golden.meta().matmul(&router.f1_weight.t()?)?.broadcast_add(&router.f1_bias)?.silu()?;
    let x = x.matmul(&router.f2_weight.t()?)?.broadcast_add(&router.f2_bias)?;
    let expected_mean = ((x.mean(0)? * 0.1)? + (golden.tensor("router.bn.running_mean") * 0.9)?)?;
    let expected_var = ((x.var(0)? * 0.1)? + (golden.tensor("router.bn.running_var") * 0.9)?)?;
    assert!(difference(&mean, &expected_mean) < 1e-12);
    assert!(difference(&var, &expected_var) < 1e-12);
    Ok(())
}

#[test]
fn composed_deltas_agree_with_float64_reference() {
    for (name, dtype) in FILES.into_iter().flat_map(|name| [(name, DType::F32), (name, DType::F64)]) {
        let golden = Golden::load(name, dtype);
        let logits = golden.router().forward(&golden.meta()).unwrap();
        let gates = Gates::from_logits(&logits, golden.top_k).unwrap();
        let pool = golden.pool();
        let mut compared = 0;
        for (composition, label) in [(Composition::Average, "average"), (Composition::ProductSum, "product_sum")] {
            for target in Target::ALL {
                let (a, b) = pool.compose(&gates, target, composition).unwrap();
                assert_eq!(a.dim(1).unwrap(), pool.composed_rank(composition, golden.top_k));
                let delta = (b.matmul(&a).unwrap() * golden.scale).unwrap();
                let layer_count = golden.tensor("meta").dim(1).unwrap();
                for row in 0..delta.dim(0).unwrap() {
                    let key =
                        format!("out.{label}.{}.{}.{}.delta", row / layer_count, row % layer_count, target.name());
                    let Some(expected) = golden.tensors.get(&key) else { continue };
                    assert!(difference(&delta.get(row).unwrap(), expected) < TOLERANCE, "{name} {dtype:?} {key}");
                    compared += 1;
                }
            }
        }
        assert_eq!(compared, 6, "{name}: one delta per target and composition");
    }
}
