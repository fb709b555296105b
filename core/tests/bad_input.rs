//! Damaged and hostile model files, from the file on disk to the answer: each is a named error, found in milliseconds
//! and without an allocation larger than the file.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use edgeweld::chat::Message;
use edgeweld::generate::{Engine, GenerateOptions, LoadOptions, Token};
use edgeweld::gguf::{GgufFile, GgufWriter, Value};
use edgeweld::{Error, Result};

/// The system's allocator, which notes the largest request of each thread.
struct Noting;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn note(size: usize) {
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
}

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Noting = Noting;

/// What this thread has computed for; other processes do not count.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live value.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) }, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Tables that do not depend on the file: Unicode classes, the template engine.
const FIXED_BYTES: usize = 64 << 10;
/// Far more than is needed (about a millisecond), far less than a hang.
const CPU_TIME_MAX: Duration = Duration::from_millis(100);

/// Runs `refuse`, which must fail, and checks what that cost.
#[track_caller]
fn refused<T>(title: &str, file_size: usize, refuse: impl FnOnce() -> Result<T>) -> Error {
    LARGEST.set(0);
    let start = cpu_time();
    let result = refuse();
    let (time, largest) = (cpu_time() - start, LARGEST.get());
    let error = result.err().unwrap_or_else(|| panic!("{title}: accepted"));
    assert!(time < CPU_TIME_MAX, "{title}: {time:?} until {error}");
    assert!(largest <= file_size.max(FIXED_BYTES), "{title}: {largest} bytes at once for {file_size} until {error}");
    error
}

/// A whole model of 32 tokens: the random Llama of the fixtures, a tokenizer, a template.
fn model() -> GgufWriter {
    with(&[])
}

/// The model with these keys in place of its own.
fn with(changes: &[(&str, Value)]) -> GgufWriter {
    let file = GgufFile::from_bytes(include_bytes!("fixtures/tiny/llama-tied.gguf").to_vec()).unwrap();
    let words = (3..30).map(|id| char::from(b'a' + (id - 3) % 26).to_string().repeat(1 + id as usize / 29));
    let tokens = ["<unk>", "<|im_start|>", "<|im_end|>"].map(str::to_owned).into_iter().chain(words);
    let tokens: Vec<String> = tokens.chain([" ".to_owned(), "\n".to_owned()]).collect();
    let kinds = (0..32)
        .map(|id| {
            if id == 0 {
                2
            } else if id < 3 {
                3
            } else {
                1
            }
        })
        .collect();
    let template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}";
    let own = [
        ("tokenizer.ggml.model", Value::String("llama".into())),
        ("tokenizer.ggml.tokens", Value::Strings(tokens)),
        ("tokenizer.ggml.scores", Value::F32s(vec![0.0; 32])),
        ("tokenizer.ggml.token_type", Value::I32s(kinds)),
        ("tokenizer.ggml.unknown_token_id", Value::U32(0)),
        ("tokenizer.ggml.eos_token_id", Value::U32(2)),
        ("tokenizer.chat_template", Value::String(template.into())),
    ];
    let changed: Vec<&str> = changes.iter().map(|change| change.0).collect();
    let mut writer = GgufWriter::new();
    writer.copy_metadata(&file, &changed).unwrap();
    for (key, value) in own.iter().filter(|(key, _)| !changed.contains(key)).chain(changes) {
        writer.metadata(key, value).unwrap();
    }
    for tensor in file.tensors() {
        writer.tensor(tensor.name(), tensor.block_type(), tensor.shape(), tensor.weight_bytes()).unwrap();
    }
    writer
}

fn load(bytes: &[u8]) -> Result<Engine> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    Engine::load(file.path(), &LoadOptions { threads: Some(1), ..Default::default() })
}

#[track_caller]
fn load_refused(title: &str, bytes: &[u8]) -> Error {
    refused(title, bytes.len(), || load(bytes))
}

fn ask(engine: &Engine, text: &str) -> Result<()> {
    let options = GenerateOptions { max_tokens: 4, ..Default::default() };
    engine.session()?.chat(&[Message::user(text)], &options, &mut |_: &Token| ()).map(drop)
}

#[test]
fn the_model_that_the_tests_damage_is_whole() {
    ask(&load(&model().to_bytes()).unwrap(), "abc").unwrap();
}

#[test]
fn rejects_truncation_at_every_section_boundary() {
    let bytes = model().to_bytes();
    let file = GgufFile::from_bytes(bytes.clone()).unwrap();
    // Magic, version, counts; the first key; where each tensor's data begins and ends.
    let mut boundaries = vec![0, 4, 8, 16, 24, 32];
    let ends = file.tensors().scan(bytes.len() - data_size(&file), |at, tensor| {
        let start = *at;
        *at += tensor.bytes().len().next_multiple_of(32);
        Some([start, start + tensor.bytes().len()])
    });
    boundaries.extend(ends.flatten());
    let around = boundaries.iter().flat_map(|at| [at.saturating_sub(1), *at, at + 1]);
    let data_end = *boundaries.last().unwrap();
    for len in around.filter(|len| *len < data_end) {
        match load_refused(&format!("{len} bytes"), &bytes[..len]) {
            Error::NotGguf { .. } if len < 4 => {}
            Error::CorruptGguf { offset, .. } if len >= 4 && offset as usize <= bytes.len() => {}
            other => panic!("{len} bytes: {other}"),
        }
    }
}

fn data_size(file: &GgufFile) -> usize {
    file.tensors().map(|tensor| tensor.bytes().len().next_multiple_of(32)).sum()
}

#[test]
fn rejects_truncation_at_every_byte() {
    let bytes = model().to_bytes();
    // The padding behind the last tensor may be missing.
    for len in 0..bytes.len() - 32 {
        let error = refused("cut", len, || GgufFile::from_bytes(bytes[..len].to_vec()));
        assert!(matches!(error, Error::NotGguf { .. } | Error::CorruptGguf { .. }), "{len} bytes: {error}");
    }
}

#[test]
fn rejects_absurd_counts_and_places() {
    let bytes = model().to_bytes();
    let edit = |at: usize, with: &[u8]| [&bytes[..at], with, &bytes[at + with.len()..]].concat();
    let error = load_refused("magic", &edit(0, b"GGML"));
    assert!(matches!(error, Error::NotGguf { .. }), "{error}");
    for (what, at) in [("tensor count", 8), ("metadata count", 16)] {
        let error = load_refused(what, &edit(at, &u64::MAX.to_le_bytes()));
        assert!(matches!(error, Error::LimitExceeded { what: counted, actual: u64::MAX, .. } if counted == what));
        let error = load_refused(what, &edit(at, &4000_u64.to_le_bytes()));
        assert!(matches!(error, Error::CorruptGguf { .. }), "{error}");
    }
    let error = load_refused("key length", &edit(24, &u64::MAX.to_le_bytes()));
    assert!(matches!(error, Error::LimitExceeded { what: "metadata key", .. }), "{error}");

    // The last field of the description of the tensor called `output_norm.weight`: its offset.
    let name = b"output_norm.weight";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len() + 4 + 8 + 4;
    for offset in [1 << 40, u64::MAX - 31, bytes.len() as u64 / 32 * 32] {
        let error = load_refused("offset", &edit(at, &offset.to_le_bytes()));
        assert!(matches!(error, Error::CorruptGguf { .. }), "{error}");
    }
    let error = load_refused("unaligned", &edit(at, &1_u64.to_le_bytes()));
    assert!(matches!(&error, Error::CorruptGguf { reason, .. } if reason.contains("aligned")), "{error}");

    for key in ["block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"] {
        let key = format!("llama.{key}");
        for absurd in [u32::MAX, 0] {
            let error = load_refused(&key, &with(&[(key.as_str(), Value::U32(absurd))]).to_bytes());
            let named = match &error {
                Error::LimitExceeded { what, .. } => key.ends_with(what),
                Error::InvalidMetadata { key: named, .. } => *named == key,
                _ => false,
            };
            assert!(named, "{key} = {absurd}: {error}");
        }
    }
}

#[test]
fn rejects_vocabularies_with_missing_and_impossible_tokens() {
    let strings = |texts: &[&str]| Value::Strings(texts.iter().map(|text| (*text).to_owned()).collect());
    let cases: [(&str, &[(&str, Value)]); 7] = [
        ("no tokens", &[("tokenizer.ggml.tokens", strings(&[]))]),
        ("too few kinds", &[("tokenizer.ggml.token_type", Value::I32s(vec![1; 3]))]),
        ("too few scores", &[("tokenizer.ggml.scores", Value::F32s(vec![0.0; 3]))]),
        ("the same token twice", &[("tokenizer.ggml.tokens", strings(&["a"; 32]))]),
        ("an id outside", &[("tokenizer.ggml.eos_token_id", Value::U32(32))]),
        (
            "more tokens than embeddings",
            &[
                ("tokenizer.ggml.tokens", Value::Strings((0..33).map(|id| format!("t{id}")).collect())),
                ("tokenizer.ggml.scores", Value::F32s(vec![0.0; 33])),
                ("tokenizer.ggml.token_type", Value::I32s(vec![1; 33])),
            ],
        ),
        // A cycle is impossible: the result of a rule is longer than its sides.
        (
            "a merge that makes no token",
            &[
                ("tokenizer.ggml.model", Value::String("gpt2".into())),
                ("tokenizer.ggml.merges", strings(&["a b", "ab a", "aba b", "b aba", "ab ab"])),
            ],
        ),
    ];
    for (title, changes) in cases {
        let error = load_refused(title, &with(changes).to_bytes());
        assert!(matches!(error, Error::InvalidTokenizer { .. }), "{title}: {error}");
    }
    let error = load_refused("model", &with(&[("tokenizer.ggml.model", Value::U32(1))]).to_bytes());
    assert!(matches!(&error, Error::InvalidMetadata { key, .. } if key == "tokenizer.ggml.model"), "{error}");
}

#[test]
fn rejects_templates_that_do_not_parse_fail_or_loop() {
    let template = |source: &str| with(&[("tokenizer.chat_template", Value::String(source.into()))]).to_bytes();
    let error = load_refused("syntax", &template("{% for"));
    assert!(matches!(error, Error::Template { .. }), "{error}");
    for source in [
        "{{ raise_exception('refused') }}",
        "{{ messages[7].content.nonesuch() }}",
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ] {
        let bytes = template(source);
        let engine = load(&bytes).unwrap();
        let error = refused(source, bytes.len(), || ask(&engine, "a"));
        assert!(matches!(error, Error::Template { .. }), "{source}: {error}");
    }
}

#[test]
fn rejects_a_prompt_longer_than_the_context_with_both_counts() {
    let bytes = model().to_bytes();
    let engine = load(&bytes).unwrap();
    let prompt = "a b c ".repeat(1000);
    let error = refused("prompt", 64 * prompt.len(), || ask(&engine, &prompt));
    assert!(matches!(error, Error::ContextFull { required: 6000.., available: 64 }), "{error}");
}
