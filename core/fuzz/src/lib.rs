//! What must hold for any bytes, one function per reader. `cargo fuzz` searches for bytes that break one; the stable test
//! `core/tests/fuzz_seeds.rs` runs the same functions on the seeds and on damaged copies of them.

pub mod gguf;
pub mod model;
pub mod pack;
pub mod template;
pub mod tokenizer;

/// One fuzz target.
pub struct Target {
    /// Its name, as in `cargo fuzz run NAME`.
    pub name: &'static str,
    /// Panics if the bytes break an identity.
    pub check: fn(&[u8]),
    /// Bytes that are accepted, to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Every target.
pub const TARGETS: [Target; 8] = [
    Target { name: "gguf", check: gguf::check, seeds: gguf::seeds },
    Target { name: "tokenizer", check: tokenizer::check, seeds: tokenizer::seeds },
    Target { name: "template", check: template::check, seeds: template::seeds },
    Target { name: "model", check: model::check, seeds: model::seeds },
    Target { name: "pack", check: pack::check, seeds: pack::seeds },
    Target { name: "manifest", check: pack::check_manifest, seeds: pack::manifest_seeds },
    Target { name: "payload", check: pack::check_payload, seeds: pack::payload_seeds },
    Target { name: "lora", check: pack::check_lora, seeds: pack::lora_seeds },
];
