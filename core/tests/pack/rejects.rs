//! One test per rule of docs/pack-format.md; each file is valid but for the rule.

use edgeweld::Error;
use edgeweld::pack::*;
use edgeweld::verify::{TrustPolicy, verify_pool};

use crate::builder::*;

fn defect(bytes: Vec<u8>) -> PackDefect {
    match verify(bytes) {
        Err(Error::InvalidPack { reason }) => reason,
        other => panic!("not refused as an invalid pack: {other:?}"),
    }
}

fn manifest_defect(change: impl FnOnce(&mut Manifest)) -> PackDefect {
    let mut parts = Parts::of(dense_pack());
    change(&mut parts.manifest);
    defect(parts.build())
}

fn field(defect: PackDefect) -> &'static str {
    match defect {
        PackDefect::ManifestField { field, .. } => field,
        other => panic!("not a field: {other}"),
    }
}

#[test]
fn rejects_files_that_are_not_packs() {
    for bytes in [&b"GGUF\x03\0\0\0 and more bytes than a header"[..], &[0x28, 0xB5, 0x2F, 0xFD], b"\x57"] {
        let error = RawPack::read(bytes.to_vec()).unwrap_err();
        let expected = matches!(error, Error::InvalidPack { reason: PackDefect::NotAPack })
            || bytes.len() == 1 && matches!(error, Error::InvalidPack { reason: PackDefect::Truncated { .. } });
        assert!(expected, "{error}");
    }
}

#[test]
fn rejects_other_format_versions() {
    for version in [0_u32, 2, u32::MAX] {
        let mut bytes = dense_pack();
        bytes[16..20].copy_from_slice(&version.to_le_bytes());
        assert!(matches!(verify(bytes),
            Err(Error::UnsupportedPackVersion { expected: 1, actual }) if actual == version));
    }
}

#[test]
fn rejects_huge_manifest_length_before_reading_it() {
    let mut bytes = dense_pack();
    bytes[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(defect(bytes), PackDefect::ManifestLength { actual_bytes: 0xFFFF_FFFF, .. }));
}

#[test]
fn rejects_files_over_the_size_limit_before_anything_else() {
    let small = TrustPolicy { pack_size_bytes_max: 100, ..TrustPolicy::default() };
    let raw = RawPack::read(dense_pack()).unwrap();
    let error = edgeweld::verify::verify(&raw, &small, &model(), None).unwrap_err();
    assert!(matches!(error, Error::TooLarge { limit_bytes: 100, .. }), "{error}");
}

#[test]
fn rejects_payloads_over_the_decompression_limit() {
    let small = TrustPolicy { tensors_size_bytes_max: 100, ..trust() };
    let raw = RawPack::read(dense_pack()).unwrap();
    let error = edgeweld::verify::verify(&raw, &small, &model(), None).unwrap_err();
    assert!(matches!(error, Error::TooLarge { limit_bytes: 100, .. }), "{error}");
}

#[test]
fn rejects_packs_by_another_key() {
    let other = SecretKey::from_seed(&[2; 32]);
    let bytes = write_dense(&lora(), None, Precision::F16, info(), Some(&other)).unwrap();
    assert!(matches!(verify(bytes), Err(Error::UntrustedKey { key }) if key == other.public_key().to_string()));
}

#[test]
fn rejects_a_trusted_key_id_over_anothers_signature() {
    let other = SecretKey::from_seed(&[2; 32]);
    let mut bytes = write_dense(&lora(), None, Precision::F16, info(), Some(&other)).unwrap();
    let start = 24 + u32::from_le_bytes(bytes[20..24].try_into().unwrap()) as usize;
    bytes[start..start + 32].copy_from_slice(secret().public_key().as_bytes());
    assert!(matches!(verify(bytes), Err(Error::BadSignature { .. })));
}

#[test]
fn rejects_revoked_keys_even_if_trusted() {
    let policy = TrustPolicy { revoked: vec![secret().public_key()], ..trust() };
    let raw = RawPack::read(dense_pack()).unwrap();
    let error = edgeweld::verify::verify(&raw, &policy, &model(), None).unwrap_err();
    assert!(matches!(error, Error::RevokedKey { key } if key == secret().public_key().to_string()));
}

#[test]
fn rejects_packs_for_another_model_by_the_field_that_differs() {
    #[allow(clippy::type_complexity, reason = "a table, read once")]
    let changes: [(&str, fn(&mut ModelIdentity)); 6] = [
        ("architecture", |model| model.architecture = "gemma3".into()),
        ("quantization", |model| model.quantization = "Q4_K".into()),
        ("tokenizer", |model| model.tokenizer = edgeweld::Digest::of(b"other")),
        ("chat template", |model| model.template = None),
        ("chat template", |model| model.template = Some(edgeweld::Digest::of(b"other"))),
        ("base model", |model| model.base = edgeweld::Digest::of(b"other")),
    ];
    for (name, change) in changes {
        let mut other = model();
        change(&mut other);
        let raw = RawPack::read(dense_pack()).unwrap();
        let error = edgeweld::verify::verify(&raw, &trust(), &other, None).unwrap_err();
        assert!(matches!(error, Error::BaseModelMismatch { field, .. } if field == name), "{name}");
    }
}

#[test]
fn rejects_trailing_bytes() {
    let mut bytes = dense_pack();
    bytes.push(0);
    assert!(matches!(defect(bytes), PackDefect::PayloadLength { .. }));
    // Also when the signer counted them: a second frame would be a second answer to "what is inside".
    for tail in [&b"\0"[..], &zstd::bulk::compress(b"more", 1).unwrap()] {
        let mut parts = Parts::of(dense_pack());
        parts.set_frame([&parts.frame[..], tail].concat());
        assert!(matches!(defect(parts.build()), PackDefect::Frame { .. }));
    }
}

#[test]
fn rejects_payloads_that_are_no_zstd_frame() {
    let mut parts = Parts::of(dense_pack());
    let mut skippable = 0x184D_2A50_u32.to_le_bytes().to_vec();
    skippable.extend([4, 0, 0, 0, 1, 2, 3, 4]);
    for frame in [b"not zstd at all".to_vec(), skippable] {
        parts.set_frame(frame);
        assert!(matches!(defect(parts.build()), PackDefect::Frame { .. }));
    }
}

#[test]
fn rejects_another_payload_under_the_same_manifest() {
    let mut parts = Parts::of(dense_pack());
    let at = parts.frame.len() / 2;
    parts.frame[at] ^= 1;
    assert!(matches!(verify(parts.build()), Err(Error::DigestMismatch { .. })));
}

#[test]
fn rejects_unknown_and_duplicate_manifest_fields() {
    for extra in [r#""expires":1,"#, r#""generator":{"name":"","version":""},"#] {
        let parts = Parts { extra_json: extra, ..Parts::of(dense_pack()) };
        assert!(matches!(defect(parts.build()), PackDefect::Manifest { .. }), "{extra}");
    }
}

#[test]
fn rejects_manifest_values_outside_their_limits() {
    assert_eq!(field(manifest_defect(|m| m.shape.layer_count = 0)), "shape.layer_count");
    assert_eq!(field(manifest_defect(|m| m.shape.hidden_size = u32::MAX)), "shape.hidden_size");
    assert_eq!(field(manifest_defect(|m| m.shape.ffn_size = u32::MAX)), "shape.ffn_size");
    assert_eq!(field(manifest_defect(|m| m.shape.rank = 5000)), "shape.rank");
    assert_eq!(field(manifest_defect(|m| m.shape.alpha = -1.0)), "shape.alpha");
    assert_eq!(field(manifest_defect(|m| m.shape.alpha = 1e9)), "shape.alpha");
    assert_eq!(field(manifest_defect(|m| m.shape.targets.clear())), "shape.targets");
    assert_eq!(field(manifest_defect(|m| m.shape.targets.reverse())), "shape.targets");
    assert_eq!(field(manifest_defect(|m| m.prompt = None)), "prompt");
    assert_eq!(
        field(manifest_defect(|m| m.residual_prompt.as_mut().unwrap().token_count = 65)),
        "residual_prompt.token_count"
    );
    assert_eq!(
        field(manifest_defect(|m| m.residual_prompt.as_mut().unwrap().text = "x".repeat(5000))),
        "residual_prompt.text"
    );
    assert_eq!(
        field(manifest_defect(|m| m.labels = (0..65).map(|i| (i.to_string(), String::new())).collect())),
        "labels"
    );
    assert_eq!(field(manifest_defect(|m| m.generator.name = "x".repeat(2000))), "generator.name");
}

#[test]
fn rejects_gates_packs_without_their_pool() {
    let raw = RawPack::read(gates_pack()).unwrap();
    let digest = verified_pool().digest();
    let error = edgeweld::verify::verify(&raw, &trust(), &model(), None).unwrap_err();
    assert!(matches!(error, Error::PoolMissing { digest: missing } if missing == digest));
    let other = write_pool(&pool(), LAYERS, Precision::F32, pool_info(), Some(&secret())).unwrap();
    let other = verify_pool(&RawPack::read(other).unwrap(), &trust(), &model()).unwrap();
    let error = edgeweld::verify::verify(&raw, &trust(), &model(), Some(&other)).unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { expected, .. } if expected == digest));
}

/// Header entries of the tensors in a valid pack with one text replaced.
fn with_header(from: &str, to: &str) -> Vec<u8> {
    let tensors = tensors_of(dense_pack());
    let length = u64::from_le_bytes(tensors[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&tensors[8..8 + length]).unwrap();
    assert!(header.contains(from), "{header}");
    Parts::with_tensors(&safetensors(&header.replacen(from, to, 1), &tensors[8 + length..])).build()
}

const LAST: &str = "base_model.model.model.layers.2.mlp.up_proj.lora_B.weight";

#[test]
fn rejects_unknown_and_missing_tensors() {
    let renamed = with_header(LAST, "base_model.model.lm_head.lora_B.weight");
    assert!(matches!(defect(renamed), PackDefect::UnknownTensor { tensor } if tensor.contains("lm_head")));
    let empty = Parts::with_tensors(&safetensors("{}", b"")).build();
    assert!(matches!(defect(empty), PackDefect::MissingTensor { .. }));
}

#[test]
fn rejects_duplicate_tensors() {
    let tensors = tensors_of(dense_pack());
    let length = u64::from_le_bytes(tensors[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&tensors[8..8 + length]).unwrap().trim_end();
    // The same entry twice: a parser that keeps the last sees a flawless file.
    let at = header.find(&format!("\"{LAST}\"")).unwrap();
    let entry = &header[at..at + header[at..].find('}').unwrap() + 1];
    let twice = format!("{},{entry}}}", header.strip_suffix('}').unwrap());
    let bytes = Parts::with_tensors(&safetensors(&twice, &tensors[8 + length..])).build();
    assert!(matches!(defect(bytes), PackDefect::DuplicateTensor { tensor } if tensor == LAST));
}

#[test]
fn rejects_overlapping_tensors_gaps_and_unused_data() {
    let tensors = tensors_of(dense_pack());
    let length = u64::from_le_bytes(tensors[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&tensors[8..8 + length]).unwrap();
    let second = header.match_indices("\"data_offsets\":[").nth(1).unwrap().0;
    let end = second + header[second..].find(']').unwrap() + 1;
    let overlapping = [&header[..second], "\"data_offsets\":[0,32]", &header[end..]].concat();
    let unused = [&tensors[8 + length..], &[0; 16]].concat();
    for (header, data) in [(overlapping.as_str(), &tensors[8 + length..]), (header, &unused)] {
        let bytes = Parts::with_tensors(&safetensors(header, data)).build();
        assert!(matches!(defect(bytes), PackDefect::TensorLayout { .. }), "{header}");
    }
}

#[test]
fn rejects_wrong_shapes_and_types() {
    // Same bytes, other meaning: [12, 2] as [2, 12], and f16 as i16.
    assert!(matches!(defect(with_header("[12,2]", "[2,12]")), PackDefect::TensorShape { .. }));
    assert!(matches!(defect(with_header("F16", "I16")), PackDefect::TensorType { .. }));
}

#[test]
fn rejects_headers_that_are_no_safetensors() {
    for tensors in [&b"short"[..], &safetensors("[]", b""), &safetensors("{\"a\":1}", b""), &[0xFF; 16]] {
        let bytes = Parts::with_tensors(tensors).build();
        assert!(matches!(defect(bytes), PackDefect::Safetensors { .. }));
    }
}

#[test]
fn rejects_values_that_are_not_finite_or_absurd() {
    let mut tensors = tensors_of(dense_pack());
    let last = tensors.len() - 2;
    for bits in [0x7E00_u16, 0x7C00, 0xFC00] {
        tensors[last..].copy_from_slice(&bits.to_le_bytes());
        assert!(matches!(defect(Parts::with_tensors(&tensors).build()), PackDefect::NotFinite { .. }));
    }
    tensors[last..].copy_from_slice(&half::f16::from_f32(2000.0).to_le_bytes());
    assert!(matches!(defect(Parts::with_tensors(&tensors).build()), PackDefect::ValueRange { .. }));
}

#[test]
fn writer_refuses_what_a_reader_would() {
    let mut uneven = lora();
    uneven.layers[1].up = None;
    let mut infinite = lora();
    infinite.layers[0].gate.as_mut().unwrap().a[(0, 0)] = f32::INFINITY;
    let mut ranks = lora();
    let pair = ranks.layers[2].down.as_mut().unwrap();
    (pair.a, pair.b) = (matrix(3, FFN, 0), matrix(HIDDEN, 3, 0));
    let none = edgeweld::lora::LoraSet { scale: 1.0, layers: vec![] };
    for bad in [uneven, infinite, ranks, none] {
        let error = write_dense(&bad, None, Precision::F16, info(), None).unwrap_err();
        assert!(matches!(error, Error::InvalidPack { .. }), "{error}");
    }
    let mut nan = info();
    nan.quality[0].base = f64::NAN;
    assert!(matches!(write_dense(&lora(), None, Precision::F16, nan, None), Err(Error::InvalidPack { .. })));
}
