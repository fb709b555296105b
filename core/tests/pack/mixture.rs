//! The mixture against reference figures of an independent float64 implementation: outputs 0–4 and inputs 0–3 of
//! one prompt, three layers, eight experts.

use edgeweld::lora::Target;
use edgeweld::pack::{Composition, ExpertPair, ExpertPool, Gates};
use ndarray::{Array2, Array3, Ix2, Ix3};
use safetensors::SafeTensors;

const REFERENCE: &[u8] = include_bytes!("../data/mixture-8-experts.safetensors");

fn tensor(file: &SafeTensors<'_>, name: &str) -> ndarray::ArrayD<f32> {
    let view = file.tensor(name).unwrap();
    let values = view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    ndarray::ArrayD::from_shape_vec(view.shape(), values).unwrap()
}

#[test]
fn both_compositions_agree_with_the_reference() {
    let file = SafeTensors::deserialize(REFERENCE).unwrap();
    let cube = |name: &str| -> Array3<f32> { tensor(&file, name).into_dimensionality::<Ix3>().unwrap() };
    let mut pool = ExpertPool { alpha: 4.0, gate: None, up: None, down: None };
    for target in Target::ALL {
        let (a, b) = (cube(&format!("pool.{}.a", target.name())), cube(&format!("pool.{}.b", target.name())));
        *pool.pair_mut(target) = Some(ExpertPair { a, b });
    }
    let gates = Gates { weights: tensor(&file, "gates").into_dimensionality::<Ix2>().unwrap() };
    for (composition, name) in [(Composition::Average, "average"), (Composition::ProductSum, "product_sum")] {
        let lora = pool.mix(&gates, composition).unwrap();
        for target in Target::ALL {
            let expected = cube(&format!("{name}.{}", target.name()));
            for (layer, expected) in lora.layers.iter().zip(expected.outer_iter()) {
                let pair = layer.pair(target).unwrap();
                let delta: Array2<f32> = pair.b.dot(&pair.a) * lora.scale;
                let error = (&delta - &expected).mapv(f32::abs).into_iter().fold(0.0, f32::max);
                assert!(error < 1e-5, "{name} {} is off by {error}", target.name());
            }
        }
    }
}

#[test]
fn rejects_gates_for_another_number_of_experts() {
    let gates = Gates { weights: Array2::ones((3, 5)) };
    let error = crate::builder::pool().mix(&gates, Composition::Average).unwrap_err();
    assert!(matches!(error, edgeweld::Error::ShapeMismatch { expected, .. } if expected == [3, 4]));
}

#[test]
fn a_layer_without_active_gates_gets_a_zero_delta() {
    let gates = Gates { weights: Array2::zeros((2, 4)) };
    for composition in [Composition::Average, Composition::ProductSum] {
        let lora = crate::builder::pool().mix(&gates, composition).unwrap();
        let pair = lora.layers[1].down.as_ref().unwrap();
        assert!(pair.b.dot(&pair.a).iter().all(|value| *value == 0.0));
    }
}
