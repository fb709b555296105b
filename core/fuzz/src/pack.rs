//! Packs: what is read is written again as it was, and what is verified is what was written.

use edgeweld::Digest;
use edgeweld::lora::{LayerLora, LoraPair, LoraSet, Target};
use edgeweld::pack::*;
use edgeweld::verify::{TrustPolicy, verify, verify_pool};
use ndarray::Array2;

const ACCEPTING: TrustPolicy = TrustPolicy {
    trusted: Vec::new(),
    revoked: Vec::new(),
    danger_accept_unsigned: true,
    pack_size_bytes_max: 1 << 20,
    tensors_size_bytes_max: 1 << 20,
};

/// A pack's bytes are kept; whatever else they are, verifying ends.
pub fn check(data: &[u8]) {
    let Ok(raw) = RawPack::read(data.to_vec()) else { return };
    assert_eq!(raw.as_bytes(), data);
    let Ok(manifest) = raw.unverified_manifest() else { return };
    let _ = verify_pool(&raw, &ACCEPTING, &manifest.model);
    let Ok(verified) = verify(&raw, &ACCEPTING, &manifest.model, None) else { return };
    assert_eq!(verified.manifest(), &manifest);
    assert_eq!(verified.lora().layers.len(), manifest.shape.layer_count as usize);
}

/// `read(write(m)) == m` and `write(read(write(m))) == write(m)`.
pub fn check_manifest(data: &[u8]) {
    let Ok(manifest) = Manifest::read(data) else { return };
    // Its own spelling may be longer than the limit (escapes), never wrong.
    let Ok(written) = manifest.write() else { return };
    let again = Manifest::read(&written).expect("what is written is read");
    assert_eq!(again, manifest);
    assert_eq!(again.write().expect("as before"), written);
}

/// The bytes are the safetensors file inside a pack whose manifest and digests are right; the first byte picks the kind.
pub fn check_payload(data: &[u8]) {
    let Some((kind, tensors)) = data.split_first() else { return };
    let raw = RawPack::read(dense(&lora(2, 1, &[]))).expect("what is written is read");
    let mut manifest = raw.unverified_manifest().expect("what is written is read");
    if *kind == b'p' {
        (manifest.content, manifest.prompt) = (Content::Pool { expert_count: 2 }, None);
    }
    let frame = zstd::bulk::compress(tensors, 1).expect("zstd compresses anything");
    manifest.payload = PayloadDescriptor {
        digest: Digest::of(&frame),
        size_bytes: frame.len() as u64,
        tensors_size_bytes: tensors.len() as u64,
    };
    let raw = RawPack::read(assemble(&manifest.write().expect("small"), &frame)).expect("lengths are right");
    if *kind == b'p' {
        let _ = verify_pool(&raw, &ACCEPTING, &manifest.model);
    } else if let Ok(verified) = verify(&raw, &ACCEPTING, &manifest.model, None) {
        let lora = verified.lora();
        assert_eq!(read(write_dense(lora, None, Precision::F32, info(), None).expect("was read")).layers, lora.layers);
    }
}

/// What is written is read, bit by bit; the bytes become the values.
pub fn check_lora(data: &[u8]) {
    let (rank, layers) = (data.first().map_or(1, |byte| 1 + byte % 4), data.get(1).map_or(1, |byte| 1 + byte % 3));
    let lora = lora(rank.into(), layers.into(), data.get(2..).unwrap_or_default());
    let Ok(written) = write_dense(&lora, None, Precision::F32, info(), None) else { return };
    let again = read(written.clone());
    assert_eq!(again.layers, lora.layers);
    assert!((again.scale / lora.scale - 1.0).abs() < 1e-6);
    assert_eq!(write_dense(&lora, None, Precision::F32, info(), None).expect("as before"), written);
}

fn read(bytes: Vec<u8>) -> LoraSet {
    let raw = RawPack::read(bytes).expect("what is written is read");
    verify(&raw, &ACCEPTING, &info().model, None).expect("what is written is verified").lora().clone()
}

/// A LoRA of a model with hidden size 3 and FFN 5, whose values are `bytes` and then zeros.
fn lora(rank: usize, layers: usize, bytes: &[u8]) -> LoraSet {
    let mut values =
        bytes.as_chunks::<4>().0.iter().map(|bits| f32::from_le_bytes(*bits)).chain(std::iter::repeat(0.0));
    let mut matrix =
        |rows, cols| Array2::from_shape_simple_fn((rows, cols), || values.next().expect("zeros do not end"));
    let mut layer = || {
        let mut layer = LayerLora::default();
        for target in Target::ALL {
            let (inner, outer) = if target == Target::Down { (5, 3) } else { (3, 5) };
            *layer.pair_mut(target) = Some(LoraPair { a: matrix(rank, inner), b: matrix(outer, rank) });
        }
        layer
    };
    LoraSet { scale: 1.0, layers: (0..layers).map(|_| layer()).collect() }
}

fn dense(lora: &LoraSet) -> Vec<u8> {
    write_dense(lora, None, Precision::F16, info(), None).expect("zeros fit the format")
}

fn info() -> PackInfo {
    PackInfo {
        model: ModelIdentity {
            architecture: "llama".into(),
            quantization: "Q4_0".into(),
            base: Digest::of(b""),
            tokenizer: Digest::of(b""),
            template: None,
        },
        prompt: Some(PromptInfo { digest: Digest::of(b""), token_count: 1 }),
        residual_prompt: None,
        generator: GeneratorInfo { name: "fuzz".into(), version: "1".into(), settings: Default::default() },
        quality: vec![],
        labels: Default::default(),
    }
}

/// An unsigned file, laid out as docs/pack-format.md says.
fn assemble(manifest: &[u8], frame: &[u8]) -> Vec<u8> {
    let size = |size: usize| (size as u32).to_le_bytes();
    let mut file = 0x184D_2A57_u32.to_le_bytes().to_vec();
    file.extend(size(16 + manifest.len() + 96));
    file.extend(b"EDGEWELD");
    file.extend(1_u32.to_le_bytes());
    file.extend(size(manifest.len()));
    file.extend(manifest);
    file.extend([0; 96]);
    file.extend(frame);
    file
}

/// A small dense pack.
pub fn seeds() -> Vec<Vec<u8>> {
    vec![dense(&lora(2, 1, &[]))]
}

/// Its manifest, and one with every optional field.
pub fn manifest_seeds() -> Vec<Vec<u8>> {
    let raw = RawPack::read(seeds().remove(0)).expect("what is written is read");
    let mut manifest = raw.unverified_manifest().expect("what is written is read");
    let plain = manifest.write().expect("small");
    manifest.content =
        Content::Gates { composition: Composition::ProductSum, expert_count: 8, pool: Digest::of(b"pool") };
    manifest.residual_prompt = Some(ResidualPrompt { text: "Today is Monday.".into(), token_count: 4 });
    manifest.quality = vec![Measurement {
        metric: "accuracy".into(),
        set: "held out".into(),
        item_count: 24,
        base: 0.25,
        prompted: 0.5,
        specialized: 1e-3,
    }];
    manifest.labels.insert("title".into(), "Clerk \u{1f469}".into());
    vec![plain, manifest.write().expect("small")]
}

/// Its safetensors file.
pub fn payload_seeds() -> Vec<Vec<u8>> {
    let pack = seeds().remove(0);
    let raw = RawPack::read(pack.clone()).expect("what is written is read");
    let payload = raw.unverified_manifest().expect("what is written is read").payload;
    let frame = &pack[pack.len() - payload.size_bytes as usize..];
    let tensors = zstd::bulk::decompress(frame, payload.tensors_size_bytes as usize).expect("a whole frame");
    vec![[&b"d"[..], &tensors].concat()]
}

/// Values near the format's limits.
pub fn lora_seeds() -> Vec<Vec<u8>> {
    let values = [1.0_f32, -0.0, 1e-40, 6e4, 1e-8];
    vec![[2_u8, 1].into_iter().chain(values.iter().flat_map(|value| value.to_le_bytes())).collect()]
}
