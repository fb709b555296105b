//! Hostile and unsupported model files: each is a named error.

use std::sync::Arc;

use edgeweld::gguf::{GgufFile, GgufWriter, Value};
use edgeweld::model::{Config, Cpu, CpuOptions, Decoder};
use edgeweld::quant::{BlockType, WeightBytes};
use edgeweld::{CancelToken, Error};

const LLAMA: &[u8] = include_bytes!("fixtures/tiny/llama-tied.gguf");
const LLAMA3: &[u8] = include_bytes!("fixtures/tiny/llama3-rope.gguf");
const GEMMA2: &[u8] = include_bytes!("fixtures/tiny/gemma2.gguf");
const GEMMA3: &[u8] = include_bytes!("fixtures/tiny/gemma3.gguf");

fn open(bytes: &[u8]) -> GgufFile {
    GgufFile::from_bytes(bytes.to_vec()).unwrap()
}

/// `base` with one metadata key replaced (or removed), and tensors mapped.
fn edited(base: &[u8], key: &str, value: Option<Value>, keep: impl Fn(&str) -> bool) -> GgufWriter {
    let file = open(base);
    let mut writer = GgufWriter::new();
    writer.copy_metadata(&file, &[key]).unwrap();
    if let Some(value) = value {
        writer.metadata(key, &value).unwrap();
    }
    for tensor in file.tensors().filter(|tensor| keep(tensor.name())) {
        writer.tensor(tensor.name(), tensor.block_type(), tensor.shape(), tensor.weight_bytes()).unwrap();
    }
    writer
}

fn with_key(base: &[u8], key: &str, value: Value) -> Result<Config, Error> {
    Config::from_gguf(&open(&edited(base, key, Some(value), |_| true).to_bytes()))
}

fn load(writer: &GgufWriter) -> Error {
    let backend = Arc::new(Cpu::new(&CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap());
    let loaded = Decoder::load(&open(&writer.to_bytes()), backend, &CancelToken::new(), &mut |_, _| ());
    loaded.err().expect("the file is refused")
}

#[test]
fn rejects_an_unknown_architecture() {
    let error = with_key(LLAMA, "general.architecture", Value::String("mamba".into())).unwrap_err();
    assert!(matches!(error, Error::UnsupportedArchitecture { architecture } if architecture == "mamba"));
}

#[test]
fn rejects_every_missing_key_by_name() {
    for name in [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.layer_norm_rms_epsilon",
    ] {
        let key = format!("llama.{name}");
        let error = Config::from_gguf(&open(&edited(LLAMA, &key, None, |_| true).to_bytes())).unwrap_err();
        assert!(matches!(&error, Error::InvalidMetadata { key: missing, .. } if *missing == key), "{error}");
    }
}

#[test]
fn rejects_absurd_counts_before_allocating() {
    for name in ["block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"] {
        let key = format!("llama.{name}");
        let error = with_key(LLAMA, &key, Value::U32(u32::MAX)).unwrap_err();
        assert!(
            matches!(error, Error::LimitExceeded { what, actual, .. } if what == name && actual == u64::from(u32::MAX))
        );
        let error = with_key(LLAMA, &key, Value::U32(0)).unwrap_err();
        assert!(matches!(&error, Error::InvalidMetadata { key: zero, .. } if *zero == key), "{error}");
    }
}

#[test]
fn rejects_values_that_no_supported_model_has() {
    let cases = [
        ("llama.attention.head_count_kv", Value::U32(3)),
        ("llama.attention.head_count", Value::U32(7)),
        ("llama.attention.key_length", Value::U32(7)),
        ("llama.attention.value_length", Value::U32(4)),
        ("llama.rope.dimension_count", Value::U32(4)),
        ("llama.rope.freq_base", Value::F32(0.0)),
        ("llama.rope.freq_base", Value::F32(f32::NAN)),
        ("llama.rope.scaling.type", Value::String("yarn".into())),
        ("llama.rope.scaling.factor", Value::F32(-2.0)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(f32::NAN)),
        ("llama.attention.layer_norm_rms_epsilon", Value::String("tiny".into())),
        ("llama.expert_count", Value::U32(8)),
    ];
    for (key, value) in cases {
        let error = with_key(LLAMA, key, value).unwrap_err();
        assert!(matches!(&error, Error::InvalidMetadata { key: wrong, .. } if wrong == key), "{key}: {error}");
    }
}

#[test]
fn linear_scaling_divides_and_none_does_not() {
    let plain = Config::from_gguf(&open(LLAMA)).unwrap();
    let scaled = with_key(LLAMA, "llama.rope.scaling.factor", Value::F32(4.0)).unwrap();
    let frequencies = |config: &Config| config.attention[0].rope.inverse_frequencies.clone();
    let quarter: Vec<f32> = frequencies(&plain).iter().map(|frequency| frequency / 4.0).collect();
    assert_eq!(frequencies(&scaled), quarter);
    assert!(plain.attention[0].rope.interleaved);
}

#[test]
fn windows_follow_each_family() {
    let windows = |config: &Config| config.attention.iter().map(|layer| layer.window).collect::<Vec<_>>();
    let gemma2 = Config::from_gguf(&open(GEMMA2)).unwrap();
    assert_eq!(windows(&gemma2), [Some(6), None, Some(6)]);
    let gemma3 = Config::from_gguf(&open(GEMMA3)).unwrap();
    let local = Some(7);
    assert_eq!(windows(&gemma3), [local, local, local, local, local, None, local]);
    assert_ne!(gemma3.attention[0].rope, gemma3.attention[5].rope);
    let every_other = with_key(GEMMA3, "gemma3.attention.sliding_window_pattern", Value::U32(2)).unwrap();
    assert_eq!(windows(&every_other), [local, None, local, None, local, None, local]);
    let listed = Value::Bools(vec![false, true, true, true, true, true, false]);
    let listed = with_key(GEMMA3, "gemma3.attention.sliding_window_pattern", listed).unwrap();
    assert_eq!(windows(&listed), [None, local, local, local, local, local, None]);
    let none = with_key(GEMMA3, "gemma3.attention.sliding_window", Value::U32(0)).unwrap();
    assert_eq!(windows(&none), [None; 7]);
    let error = with_key(GEMMA3, "gemma3.attention.sliding_window_pattern", Value::Bools(vec![true])).unwrap_err();
    assert!(matches!(error, Error::InvalidMetadata { .. }), "{error}");
}

#[test]
fn rejects_rope_factors_of_another_length_or_sign() {
    for (len, factor) in [(3u32, 1.0f32), (4, 0.0), (4, f32::NAN)] {
        let mut writer = edited(LLAMA3, "general.file_type", None, |name| name != "rope_freqs.weight");
        let bytes: Vec<u8> = (0..len).flat_map(|_| factor.to_le_bytes()).collect();
        writer.tensor("rope_freqs.weight", BlockType::F32, &[len], WeightBytes::Owned(bytes.into())).unwrap();
        let error = Config::from_gguf(&open(&writer.to_bytes())).unwrap_err();
        match len {
            3 => assert!(matches!(error, Error::ShapeMismatch { .. }), "{error}"),
            _ => assert!(matches!(error, Error::InvalidMetadata { .. }), "{error}"),
        }
    }
}

#[test]
fn rejects_every_missing_tensor_by_name() {
    for tensor in open(GEMMA3).tensors().map(|tensor| tensor.name()) {
        let error = load(&edited(GEMMA3, "general.file_type", None, |name| name != tensor));
        assert!(matches!(&error, Error::MissingTensor { tensor: missing } if missing == tensor), "{tensor}: {error}");
    }
}

#[test]
fn rejects_a_tensor_of_another_shape() {
    let error = load(&edited(LLAMA, "llama.feed_forward_length", Some(Value::U32(25)), |_| true));
    assert!(
        matches!(&error, Error::ShapeMismatch { tensor, expected, actual }
            if tensor == "blk.0.ffn_gate.weight" && *expected == [25, 16] && *actual == [24, 16]),
        "{error}"
    );
}

#[test]
fn rejects_a_tensor_that_it_would_ignore() {
    let mut writer = edited(LLAMA, "general.file_type", None, |_| true);
    let bytes = WeightBytes::Owned(vec![0; 64].into());
    writer.tensor("blk.0.attn_sinks.weight", BlockType::F32, &[16], bytes).unwrap();
    let error = load(&writer);
    assert!(matches!(&error, Error::UnexpectedTensor { tensor } if tensor == "blk.0.attn_sinks.weight"), "{error}");
}

#[test]
fn rejects_more_layers_than_the_file_has_tensors_for() {
    let error = with_key(LLAMA, "llama.block_count", Value::U32(100)).unwrap_err();
    assert!(matches!(&error, Error::InvalidMetadata { key, .. } if key == "llama.block_count"), "{error}");
}
