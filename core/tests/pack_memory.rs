//! A decompression bomb must not cost memory. Alone in its process, because it measures the process's peak.

use std::io::Write;

use edgeweld::pack::*;
use edgeweld::verify::{TrustPolicy, verify};
use edgeweld::{Digest, Error};
use ndarray::Array2;

const BOMB_SIZE: u64 = 1 << 30;

fn peak_bytes() -> i64 {
    // SAFETY: getrusage fills the struct it is given; all-zero bytes are a valid `rusage`.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_SELF, &mut usage), 0);
        usage
    };
    usage.ru_maxrss * if cfg!(target_os = "macos") { 1 } else { 1024 }
}

/// One frame of a gigabyte of zeros; with or without the content size in its header.
fn bomb(with_size: bool) -> Vec<u8> {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_contentsize(with_size).unwrap();
    encoder.set_pledged_src_size(Some(BOMB_SIZE)).unwrap();
    let zeros = vec![0; 1 << 20];
    for _ in 0..BOMB_SIZE >> 20 {
        encoder.write_all(&zeros).unwrap();
    }
    encoder.finish().unwrap()
}

/// An unsigned pack whose manifest was changed and whose payload is `frame`.
fn pack(frame: &[u8], tensors_size_bytes: u64) -> RawPack {
    let pair = edgeweld::lora::LoraPair { a: Array2::ones((2, 4)), b: Array2::ones((4, 2)) };
    let layer = edgeweld::lora::LayerLora { gate: Some(pair), ..Default::default() };
    let lora = edgeweld::lora::LoraSet { scale: 1.0, layers: vec![layer] };
    let info = PackInfo {
        model: model(),
        prompt: Some(PromptInfo { digest: Digest::of(b""), token_count: 1 }),
        residual_prompt: None,
        generator: GeneratorInfo { name: "test".into(), version: "1".into(), settings: Default::default() },
        quality: vec![],
        labels: Default::default(),
    };
    let valid = RawPack::read(write_dense(&lora, None, Precision::F16, info, None).unwrap()).unwrap();
    let mut manifest = valid.unverified_manifest().unwrap();
    manifest.payload =
        PayloadDescriptor { digest: Digest::of(frame), size_bytes: frame.len() as u64, tensors_size_bytes };
    let manifest = manifest.write().unwrap();
    let mut bytes = valid.as_bytes()[..4].to_vec();
    bytes.extend((16 + manifest.len() as u32 + 96).to_le_bytes());
    bytes.extend(&valid.as_bytes()[8..20]);
    bytes.extend((manifest.len() as u32).to_le_bytes());
    bytes.extend(manifest);
    bytes.extend([0; 96]);
    bytes.extend(frame);
    RawPack::read(bytes).unwrap()
}

fn model() -> ModelIdentity {
    ModelIdentity {
        architecture: "llama".into(),
        quantization: "Q4_0".into(),
        base: Digest::of(b""),
        tokenizer: Digest::of(b""),
        template: None,
    }
}

#[test]
fn rejects_decompression_bombs_within_the_memory_cap() {
    let frame = bomb(true);
    let sizeless = bomb(false);
    // The header of a single-segment or windowed frame whose content size field lies: 8 bytes before the first block.
    let mut lying = frame.clone();
    let at = lying
        .windows(8)
        .position(|bytes| bytes == BOMB_SIZE.to_le_bytes())
        .or_else(|| lying.windows(4).position(|bytes| bytes == (BOMB_SIZE as u32).to_le_bytes()));
    let at = at.expect("the frame header holds the content size");
    lying[at..at + 4].copy_from_slice(&500_u32.to_le_bytes());

    let trust = TrustPolicy { danger_accept_unsigned: true, ..TrustPolicy::default() };
    let refuse = |frame: &[u8], declared: u64| verify(&pack(frame, declared), &trust, &model(), None).unwrap_err();
    let before = peak_bytes();
    let errors = [refuse(&frame, BOMB_SIZE), refuse(&frame, 500), refuse(&sizeless, 500), refuse(&lying, 500)];
    let grown = peak_bytes() - before;
    assert!(matches!(errors[0], Error::InvalidPack { reason: PackDefect::Expansion { .. } }), "{}", errors[0]);
    for error in &errors[1..] {
        assert!(matches!(error, Error::InvalidPack { reason: PackDefect::Frame { .. } }), "{error}");
    }
    assert!(grown < 8 << 20, "the peak grew by {grown} bytes");
}
