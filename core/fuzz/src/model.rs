//! A model file that loads computes: prefill and single steps agree, and a saved state is a restored one.

use std::sync::{Arc, OnceLock};

use edgeweld::CancelToken;
use edgeweld::gguf::GgufFile;
use edgeweld::model::{Cpu, CpuOptions, Decoder, DecoderRunner, LogitRows, Runner};

const IDS: [u32; 5] = [1, 0, 2, 1, 3];

/// The bytes are a GGUF file; small ones only, because every run computes.
pub fn check(data: &[u8]) {
    if data.len() > 1 << 16 {
        return;
    }
    let Ok(file) = GgufFile::from_bytes(data.to_vec()) else { return };
    let cancel = CancelToken::new();
    let Ok(decoder) = Decoder::load(&file, cpu(), &cancel, &mut |_, _| ()) else { return };
    let vocab = decoder.config.vocab_size;
    if vocab < 4 {
        return;
    }
    let decoder = Arc::new(decoder);
    let runner = || DecoderRunner::new(decoder.clone(), IDS.len(), None).expect("a short context");

    let mut whole = runner();
    let logits = whole.forward(&IDS, LogitRows::All, &cancel).expect("room for all").to_vec();
    assert_eq!(logits.len(), IDS.len() * vocab);
    let mut steps = runner();
    for (id, expected) in IDS.iter().zip(logits.chunks(vocab)) {
        let step = steps.forward(&[*id], LogitRows::Last, &cancel).expect("room for one").to_vec();
        // Weights that were damaged overflow; then nothing can be said.
        let largest = expected.iter().chain(&step).fold(0.0_f32, |most, logit| most.max(logit.abs()));
        if largest < 1e3 && expected.iter().chain(&step).all(|logit| logit.is_finite()) {
            for (step, expected) in step.iter().zip(expected) {
                assert!((step - expected).abs() <= 0.05 * largest.max(1.0), "{step} instead of {expected}");
            }
        }
    }
    let mut state = Vec::new();
    whole.write_state(&mut state).expect("the CPU's memory");
    let mut restored = runner();
    // A state with values that are not numbers is refused.
    if restored.read_state(IDS.len(), &state).is_ok() {
        let mut again = Vec::new();
        restored.write_state(&mut again).expect("the CPU's memory");
        assert!(again == state, "a restored state is the saved one");
    }
}

fn cpu() -> Arc<Cpu> {
    static CPU: OnceLock<Arc<Cpu>> = OnceLock::new();
    CPU.get_or_init(|| {
        Arc::new(Cpu::new(&CpuOptions { threads: Some(1), ..CpuOptions::default() }).expect("one thread"))
    })
    .clone()
}

/// The tiny models of the tests.
pub fn seeds() -> Vec<Vec<u8>> {
    [
        &include_bytes!("../../tests/fixtures/tiny/llama-tied.gguf")[..],
        include_bytes!("../../tests/fixtures/tiny/llama3-rope.gguf"),
        include_bytes!("../../tests/fixtures/tiny/gemma2.gguf"),
        include_bytes!("../../tests/fixtures/tiny/qwen2.gguf"),
    ]
    .map(<[u8]>::to_vec)
    .to_vec()
}
