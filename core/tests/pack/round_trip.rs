use edgeweld::Error;
use edgeweld::lora::Target;
use edgeweld::pack::*;
use edgeweld::verify::{Contents, TrustPolicy, inspect, verify_pool};
use half::f16;
use ndarray::Array2;
use proptest::prelude::*;

use crate::builder::{self, *};

#[test]
fn dense_pack_round_trips_to_the_same_values() {
    let verified = verify(dense_pack()).unwrap();
    assert_eq!(*verified.lora(), lora());
    assert_eq!(verified.signer(), Some(&secret().public_key()));
    assert_eq!(verified.digest(), edgeweld::Digest::of(&dense_pack()));
    let manifest = verified.manifest();
    assert_eq!(manifest.content, Content::Dense { composition: Some(Composition::Average) });
    assert_eq!((manifest.shape.rank, manifest.shape.alpha, manifest.shape.layer_count), (2, 2.0, 3));
    assert_eq!((&manifest.prompt, &manifest.residual_prompt), (&info().prompt, &info().residual_prompt));
    assert_eq!((&manifest.quality, &manifest.labels), (&info().quality, &info().labels));
}

#[test]
fn gates_pack_round_trips_and_expands_with_its_pool() {
    let verified = verify(gates_pack()).unwrap();
    assert_eq!(verified.gates(), Some(&gates()));
    assert_eq!(*verified.lora(), pool().mix(&gates(), Composition::ProductSum).unwrap());
    // Two gates are active in most layers, so every layer has twice the experts' rank.
    assert!(verified.lora().layers.iter().all(|layer| layer.gate.as_ref().unwrap().a.nrows() == 2 * RANK));
}

#[test]
fn pool_round_trips_to_the_same_values() {
    assert_eq!(*verified_pool().pool(), pool());
    assert_eq!(verified_pool().manifest().content, Content::Pool { expert_count: 4 });
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    assert_eq!(dense_pack(), dense_pack());
    assert_eq!(gates_pack(), gates_pack());
    assert_eq!(pool_file(), pool_file());
}

#[test]
fn writer_follows_the_documented_layout() {
    // `Parts` is a second implementation of the container.
    assert_eq!(Parts::of(dense_pack()).build(), dense_pack());
}

#[test]
fn any_zstd_decoder_gives_a_safetensors_file_with_peft_names() {
    // A streaming decoder skips the manifest frame, as `zstd -d` does.
    let tensors = zstd::stream::decode_all(dense_pack().as_slice()).unwrap();
    let file = safetensors::SafeTensors::deserialize(&tensors).unwrap();
    assert_eq!(file.len(), LAYERS * 3 * 2);
    let b = file.tensor("base_model.model.model.layers.2.mlp.down_proj.lora_B.weight").unwrap();
    assert_eq!((b.shape(), b.dtype()), (&[HIDDEN, RANK][..], safetensors::Dtype::F16));
}

#[test]
fn dense_pack_costs_at_most_two_percent_over_its_f16_tensors() {
    let big = edgeweld::lora::LoraSet {
        scale: 1.0,
        layers: (0..6)
            .map(|layer| {
                let pair = |rows, cols, seed| {
                    Some(edgeweld::lora::LoraPair { a: noise(16, cols, seed), b: noise(rows, 16, seed + 1) })
                };
                edgeweld::lora::LayerLora {
                    gate: pair(512, 192, 10 * layer),
                    up: pair(512, 192, 10 * layer + 2),
                    down: pair(192, 512, 10 * layer + 4),
                }
            })
            .collect(),
    };
    let bytes = write_dense(&big, None, Precision::F16, info(), Some(&secret())).unwrap();
    let tensor_bytes = 6 * 3 * 16 * (512 + 192) * 2;
    assert!((bytes.len() as f64) < 1.02 * f64::from(tensor_bytes), "{} of {tensor_bytes}", bytes.len());
}

#[test]
fn gates_of_thirty_layers_and_eight_experts_take_under_a_kilobyte() {
    let mut weights = Array2::zeros((30, 8));
    for layer in 0..30 {
        let share = (value(layer) + 0.5).clamp(0.01, 0.99);
        weights[(layer, layer % 8)] = share;
        weights[(layer, (layer * 3 + 1) % 8)] += 1.0 - share;
    }
    let mut wide = pool();
    for target in Target::ALL {
        let pair = wide.pair_mut(target).as_mut().unwrap();
        pair.a = ndarray::concatenate(ndarray::Axis(0), &[pair.a.view(), pair.a.view()]).unwrap();
        pair.b = ndarray::concatenate(ndarray::Axis(0), &[pair.b.view(), pair.b.view()]).unwrap();
    }
    let digest = edgeweld::Digest::of(b"pool");
    let bytes = write_gates(&Gates { weights }, Composition::Average, &wide, digest, info(), Some(&secret())).unwrap();
    let payload = RawPack::read(bytes).unwrap().unverified_manifest().unwrap().payload;
    assert!(payload.size_bytes < 1024, "{} bytes", payload.size_bytes);
}

#[test]
fn unsigned_packs_are_accepted_only_through_the_dangerous_option() {
    let bytes = write_dense(&lora(), None, Precision::F32, info(), None).unwrap();
    let raw = RawPack::read(bytes).unwrap();
    assert!(matches!(edgeweld::verify::verify(&raw, &trust(), &model(), None), Err(edgeweld::Error::UnsignedPack)));
    let danger = TrustPolicy { danger_accept_unsigned: true, ..TrustPolicy::default() };
    let verified = edgeweld::verify::verify(&raw, &danger, &model(), None).unwrap();
    assert_eq!((verified.signer(), verified.lora()), (None, &lora()));
    // The option is about missing signatures, not about foreign ones.
    let signed = RawPack::read(dense_pack()).unwrap();
    assert!(matches!(
        edgeweld::verify::verify(&signed, &danger, &model(), None),
        Err(edgeweld::Error::UntrustedKey { .. })
    ));
}

/// Normal-looking noise whose low bits do not compress, like trained factors.
fn noise(rows: usize, cols: usize, seed: usize) -> Array2<f32> {
    let mut state = (seed as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    Array2::from_shape_simple_fn((rows, cols), || {
        let mut sum = 0.0;
        for _ in 0..4 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            sum += (state >> 40) as f32 / (1 << 24) as f32 - 0.5;
        }
        0.02 * sum
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_lora_survives_writing_and_reading(
        layers in 1usize..4, hidden in 1usize..9, ffn in 1usize..9, rank in 1usize..5,
        mask in 1u8..8, scale in 0.1f32..4.0, seed in 0usize..1000, precision in 0usize..3,
    ) {
        let layer = |index: usize| {
            let mut layer = edgeweld::lora::LayerLora::default();
            for (at, target) in Target::ALL.into_iter().enumerate().filter(|(at, _)| mask >> at & 1 == 1) {
                let (cols, rows) = if target == Target::Down { (ffn, hidden) } else { (hidden, ffn) };
                *layer.pair_mut(target) = Some(edgeweld::lora::LoraPair {
                    a: noise(rank, cols, seed + index * 7 + at),
                    b: noise(rows, rank, seed + index * 11 + at),
                });
            }
            layer
        };
        let lora = edgeweld::lora::LoraSet { scale, layers: (0..layers).map(layer).collect() };
        let precision = [Precision::F16, Precision::Bf16, Precision::F32][precision];
        let bytes = write_dense(&lora, None, precision, info(), Some(&secret())).unwrap();
        let read = builder::verify(bytes).unwrap();
        prop_assert!((read.lora().scale - scale).abs() <= 1e-6 * scale);
        let round = |value: f32| match precision {
            Precision::F16 => f16::from_f32(value).to_f32(),
            Precision::Bf16 => half::bf16::from_f32(value).to_f32(),
            Precision::F32 => value,
        };
        for (wrote, read) in lora.layers.iter().zip(&read.lora().layers) {
            for target in Target::ALL {
                let wrote = wrote.pair(target).map(|pair| (pair.a.mapv(round), pair.b.mapv(round)));
                let read = read.pair(target).map(|pair| (pair.a.clone(), pair.b.clone()));
                prop_assert_eq!(wrote, read);
            }
        }
    }
}

#[test]
fn pool_and_pack_are_not_taken_for_each_other() {
    let pack = RawPack::read(dense_pack()).unwrap();
    let kind = |expected, actual| PackDefect::Kind { expected, actual };
    assert!(matches!(verify_pool(&pack, &trust(), &model()),
        Err(edgeweld::Error::InvalidPack { reason }) if reason == kind("pool", "dense pack")));
    assert!(matches!(verify(pool_file()),
        Err(edgeweld::Error::InvalidPack { reason }) if reason == kind("pack", "pool")));
}

#[test]
fn an_inspection_shows_each_kind_of_file_without_a_model_or_a_pool() {
    let inspected = |bytes| inspect(&RawPack::read(bytes).unwrap(), &trust()).unwrap();
    let dense = inspected(dense_pack());
    assert_eq!((dense.contents, dense.signer), (Contents::Dense(lora()), Some(secret().public_key())));
    assert_eq!(inspected(gates_pack()).contents, Contents::Gates(gates()));
    assert_eq!(inspected(pool_file()).contents, Contents::Pool(Box::new(pool())));
    let mut cut = dense_pack();
    cut.pop();
    let refused = inspect(&RawPack::read(cut).unwrap(), &trust());
    assert!(matches!(refused, Err(Error::InvalidPack { reason: PackDefect::PayloadLength { .. } })));
}

#[test]
fn files_of_version_1_keep_opening() {
    let [dense, gates_file, pool_file] = [
        &include_bytes!("../fixtures/packs/v1-dense.pack")[..],
        include_bytes!("../fixtures/packs/v1-gates.pack"),
        include_bytes!("../fixtures/packs/v1.pool"),
    ]
    .map(<[u8]>::to_vec);
    let pool_verified = verify_pool(&RawPack::read(pool_file).unwrap(), &trust(), &model()).unwrap();
    assert_eq!(*pool_verified.pool(), pool());
    assert_eq!(*verify(dense).unwrap().lora(), lora());
    let raw = RawPack::read(gates_file).unwrap();
    let pack = edgeweld::verify::verify(&raw, &trust(), &model(), Some(&pool_verified)).unwrap();
    assert_eq!(pack.gates(), Some(&gates()));
}
