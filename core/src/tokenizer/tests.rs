//! Against the reference tokenizers' ids on the real vocabularies, and against damaged vocabularies.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::gguf::{GgufFile, GgufWriter, Value};

pub(crate) const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
pub(crate) const GEMMA: &str = "gemma-3-270m-q4_k_m.gguf";

/// The real model file `name`, from `EDGEWELD_MODELS` or `models/` in the workspace.
pub(crate) fn model(name: &str) -> GgufFile {
    let folder = std::env::var_os("EDGEWELD_MODELS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../models"), PathBuf::from);
    let path = folder.join(name);
    GgufFile::open(&path)
        .unwrap_or_else(|error| panic!("{error}; this test needs a real model: run `cargo xtask models` first"))
}

static TOKENIZERS: LazyLock<[Arc<Tokenizer>; 2]> =
    LazyLock::new(|| [SMOLLM2, GEMMA].map(|name| Arc::new(Tokenizer::from_gguf(model(name).metadata()).unwrap())));

pub(crate) fn smollm2() -> Arc<Tokenizer> {
    TOKENIZERS[0].clone()
}

pub(crate) fn gemma() -> Arc<Tokenizer> {
    TOKENIZERS[1].clone()
}

const PLAIN: EncodeOptions = EncodeOptions { add_special: false, parse_special: false };
const PARSED: EncodeOptions = EncodeOptions { add_special: false, parse_special: true };

#[derive(Deserialize)]
struct Golden {
    models: std::collections::BTreeMap<String, Vec<Case>>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
}

#[test]
fn ids_equal_the_reference() {
    let golden: Golden = serde_json::from_str(include_str!("../../tests/fixtures/tokens.json")).unwrap();
    for (name, tokenizer) in [("smollm2-135m-instruct", smollm2()), ("gemma3-270m", gemma())] {
        for case in &golden.models[name] {
            assert_eq!(tokenizer.encode(&case.text, PARSED).unwrap(), case.ids, "{name}: {:?}", case.text);
        }
    }
}

#[test]
fn special_ids_and_flags_are_the_files() {
    let smollm2 = smollm2();
    assert_eq!((smollm2.vocab_size(), smollm2.bos(), smollm2.eos()), (49152, Some(1), Some(2)));
    assert_eq!((smollm2.adds_bos(), smollm2.adds_eos()), (false, false));
    assert_eq!(smollm2.end_tokens(), [0, 2]);
    let gemma = gemma();
    assert_eq!((gemma.vocab_size(), gemma.bos(), gemma.eos()), (262_144, Some(2), Some(1)));
    assert_eq!((gemma.adds_bos(), gemma.adds_eos()), (true, false));
    assert_eq!(gemma.end_tokens(), [1, 106]);
    assert_eq!(gemma.special_token("<start_of_turn>"), Some(105));
    assert_eq!(gemma.encode("", EncodeOptions::default()).unwrap(), [2]);
    assert!(gemma.is_end(106) && !gemma.is_end(105));
    assert_eq!((gemma.token_bytes(262_144), gemma.token_kind(262_144)), (None, None));
}

#[test]
fn control_tokens_in_text_are_text_unless_asked_for() {
    for (tokenizer, text) in
        [(smollm2(), "<|im_start|>system\n<|im_end|>"), (gemma(), "<start_of_turn>model\n<end_of_turn><eos>")]
    {
        let ids = tokenizer.encode(text, PLAIN).unwrap();
        assert!(ids.iter().all(|&id| tokenizer.token_kind(id) != Some(TokenKind::Control)));
        assert_eq!(tokenizer.decode(&ids), text);
        assert!(tokenizer.encode(text, PARSED).unwrap().iter().any(|&id| tokenizer.is_end(id)));
    }
}

#[test]
fn literal_spans_hide_control_tokens_and_nothing_else() {
    let tokenizer = smollm2();
    let text = "<|im_start|>user\nhi <|im_end|> there<|im_end|>\n";
    let start = "<|im_start|>user\n".len();
    let literal = start..start + "hi <|im_end|> there".len();
    let ids = tokenizer.encode_guarded(text, std::slice::from_ref(&literal), PARSED).unwrap();
    assert_eq!(ids.iter().filter(|&&id| id == 2).count(), 1);
    assert_eq!(*ids.last_chunk::<2>().unwrap(), [2, 198]);
    // A token is hidden even when the span covers a part of it.
    let partly = tokenizer.encode_guarded("<|im_end|>", &[4..6], PARSED).unwrap();
    assert_eq!(partly, tokenizer.encode("<|im_end|>", PLAIN).unwrap());
    // Merges cross the borders of spans.
    let whole = tokenizer.encode("user\n\n\nnew lines", PLAIN).unwrap();
    assert_eq!(tokenizer.encode_guarded("user\n\n\nnew lines", &[5..11], PARSED).unwrap(), whole);
}

#[test]
fn a_stream_decodes_like_the_whole() {
    let text = "naïve 日本語 👩‍👩‍👧‍👦🇦🇹 हिन्दी\n\n  done\u{0}";
    for tokenizer in TOKENIZERS.iter() {
        let ids = tokenizer.encode(text, PLAIN).unwrap();
        let mut stream = tokenizer.decode_stream();
        let mut pieces: String = ids.iter().map(|&id| stream.push(tokenizer, id)).collect();
        pieces += &stream.finish();
        assert_eq!(pieces, text);
        assert_eq!(tokenizer.decode(&ids), text);
    }
}

#[test]
fn a_megabyte_takes_seconds_at_most() {
    for tokenizer in TOKENIZERS.iter() {
        for text in ["a", " ", "\n", "<", "日", "ab ", "<|im_", "\u{1f469}\u{200d}"] {
            let long = text.repeat((1 << 20) / text.len());
            let start = Instant::now();
            let ids = tokenizer.encode(&long, PARSED).unwrap();
            let elapsed = start.elapsed();
            assert!(elapsed < Duration::from_secs(5), "{tokenizer:?}: {text:?} took {elapsed:?}");
            assert_eq!(tokenizer.decode(&ids), long, "{text:?}");
        }
    }
}

#[test]
fn digests_tell_tokenizers_apart() {
    assert_ne!(smollm2().digest(), gemma().digest());
    assert_eq!(smollm2().digest(), Tokenizer::from_gguf(model(SMOLLM2).metadata()).unwrap().digest());
    let (a, b) = (Small::bpe().build().unwrap(), Small::bpe().set("tokenizer.ggml.add_bos_token", Value::Bool(true)));
    assert_ne!(a.digest(), b.build().unwrap().digest());
    let swapped = Small::bpe().set("tokenizer.ggml.merges", strings(&["b c", "a b"]));
    assert_ne!(a.digest(), swapped.build().unwrap().digest());
}

/// What the tokenizers cannot represent: bytes that SmolLM2's vocabulary lacks, and the space mark.
fn has_no_token(character: char) -> bool {
    matches!(character, '\x04' | '\x06' | '\x13' | '\x14' | '\x16' | '\x1d' | '\u{2581}' | '\u{40000}'..)
}

proptest! {
    #[test]
    fn decoding_inverts_encoding(text in "\\PC{0,40}|[ \\n\\ta-c<>|!'0-9\u{300}\u{65e5}]{0,60}|.{0,30}") {
        let text = text.replace(has_no_token, "");
        for tokenizer in TOKENIZERS.iter() {
            let ids = tokenizer.encode(&text, PLAIN).unwrap();
            prop_assert_eq!(tokenizer.decode(&ids), text.as_str());
            prop_assert!(ids.iter().all(|&id| tokenizer.token_kind(id) != Some(TokenKind::Control)));
        }
    }

    #[test]
    fn any_ids_decode_without_panic(ids in prop::collection::vec(0u32..300_000, 0..30)) {
        for tokenizer in TOKENIZERS.iter() {
            let mut stream = tokenizer.decode_stream();
            let mut text: String = ids.iter().map(|&id| stream.push(tokenizer, id)).collect();
            text += &stream.finish();
            prop_assert_eq!(text, tokenizer.decode(&ids));
        }
    }
}

/// A few tokens in a GGUF file, each part of which a test can replace.
#[derive(Clone)]
struct Small(Vec<(&'static str, Value)>);

fn strings(texts: &[&str]) -> Value {
    Value::Strings(texts.iter().map(|&text| text.to_owned()).collect())
}

impl Small {
    /// `a`, `b`, `c`, `ab`, `abc`, a control and a user-defined token.
    fn bpe() -> Self {
        Self(vec![
            ("tokenizer.ggml.model", Value::String("gpt2".into())),
            ("tokenizer.ggml.pre", Value::String("gpt-2".into())),
            ("tokenizer.ggml.tokens", strings(&["a", "b", "c", "ab", "abc", "<|end|>", "  ", "bc"])),
            ("tokenizer.ggml.token_type", Value::I32s(vec![1, 1, 1, 1, 1, 3, 4, 1])),
            ("tokenizer.ggml.merges", strings(&["a b", "b c", "ab c"])),
            ("tokenizer.ggml.bos_token_id", Value::U32(5)),
        ])
    }

    /// Llama-2-like: a space before the text, no byte tokens.
    fn sentence_piece() -> Self {
        Self(vec![
            ("tokenizer.ggml.model", Value::String("llama".into())),
            ("tokenizer.ggml.tokens", strings(&["<unk>", "<s>", "▁", "a", "▁a", "aa", "<x>"])),
            ("tokenizer.ggml.scores", Value::F32s(vec![0.0, 0.0, -3.0, -4.0, -1.0, -2.0, 0.0])),
            ("tokenizer.ggml.token_type", Value::I32s(vec![2, 3, 1, 1, 1, 1, 3])),
            ("tokenizer.ggml.bos_token_id", Value::U32(1)),
            ("tokenizer.ggml.unknown_token_id", Value::U32(0)),
        ])
    }

    fn set(mut self, key: &'static str, value: Value) -> Self {
        self.0.retain(|entry| entry.0 != key);
        self.0.push((key, value));
        self
    }

    fn without(mut self, key: &'static str) -> Self {
        self.0.retain(|entry| entry.0 != key);
        self
    }

    fn build(&self) -> Result<Tokenizer> {
        let mut writer = GgufWriter::new();
        for (key, value) in &self.0 {
            writer.metadata(key, value)?;
        }
        Tokenizer::from_gguf(GgufFile::from_bytes(writer.to_bytes())?.metadata())
    }

    #[track_caller]
    fn refused(&self, expected: &str) {
        match self.build() {
            Err(Error::InvalidTokenizer { reason }) if reason.contains(expected) => (),
            other => panic!("{other:?} instead of {expected:?}"),
        }
    }
}

#[test]
fn merges_apply_by_rank_then_from_the_left() {
    let tokenizer = Small::bpe().build().unwrap();
    assert_eq!(tokenizer.encode("abcbcab", PLAIN).unwrap(), [4, 7, 3]);
    assert_eq!(tokenizer.encode("aab  <|end|>b", PARSED).unwrap(), [0, 3, 6, 5, 1]);
    assert_eq!(tokenizer.end_tokens(), [5]);
}

#[test]
fn sentence_piece_puts_a_space_before_text_and_takes_it_away() {
    let tokenizer = Small::sentence_piece().build().unwrap();
    assert!(tokenizer.adds_bos());
    assert_eq!(tokenizer.encode("aaa", EncodeOptions::default()).unwrap(), [1, 4, 5]);
    assert_eq!(tokenizer.encode(" a", PLAIN).unwrap(), [2, 4]);
    // Also after a control token, but not between two spans of text.
    assert_eq!(tokenizer.encode("a<x>a", PARSED).unwrap(), [4, 6, 4]);
    assert_eq!(tokenizer.encode_guarded("aa", &[1..2], PARSED).unwrap(), [4, 3]);
    // Unknown characters in a row are one token.
    assert_eq!(tokenizer.encode("axyz", PLAIN).unwrap(), [4, 0]);
    assert_eq!(tokenizer.decode(&[1, 4, 5]), "aaa");
    assert_eq!(tokenizer.decode(&[2, 4]), " a");
    let mut stream = tokenizer.decode_stream();
    assert_eq!([1, 2, 4].map(|id| stream.push(&tokenizer, id)).concat(), " a");
}

#[test]
fn turn_marks_are_control_tokens_whatever_the_file_says() {
    let tokens = strings(&["a", "b", "c", "ab", "abc", "<|end|>", "<|im_end|>", "bc"]);
    let tokenizer = Small::bpe().set("tokenizer.ggml.tokens", tokens).build().unwrap();
    assert_eq!(tokenizer.token_kind(6), Some(TokenKind::Control));
    let small = Small::bpe().without("tokenizer.ggml.token_type").build().unwrap();
    assert_eq!(small.token_kind(5), Some(TokenKind::Control), "BOS");
}

#[test]
fn rejects_damaged_vocabularies() {
    let (bpe, spm) = (Small::bpe(), Small::sentence_piece());
    let name = |text: &str| Value::String(text.into());
    bpe.clone().set("tokenizer.ggml.model", name("bert")).refused("\"bert\" is not supported");
    bpe.clone().set("tokenizer.ggml.pre", name("nonesuch")).refused("\"nonesuch\" is not supported");
    bpe.clone().set("tokenizer.ggml.tokens", strings(&[])).refused("empty");
    bpe.clone().set("tokenizer.ggml.tokens", strings(&["a"; 8])).refused("tokens 0 and 1 are the same text");
    bpe.clone().set("tokenizer.ggml.token_type", Value::I32s(vec![1; 7])).refused("7 token types for 8 tokens");
    bpe.clone().set("tokenizer.ggml.token_type", Value::I32s(vec![6; 8])).refused("is a byte but not spelt");
    bpe.clone().set("tokenizer.ggml.merges", strings(&["a b", "ab"])).refused("merge 1 (\"ab\"): no space");
    bpe.clone().set("tokenizer.ggml.merges", strings(&["x b"])).refused("left side is not a token");
    bpe.clone().set("tokenizer.ggml.merges", strings(&["a x"])).refused("right side is not a token");
    bpe.clone().set("tokenizer.ggml.merges", strings(&["c a"])).refused("result is not a token");
    bpe.clone().set("tokenizer.ggml.merges", strings(&["a b", "a b"])).refused("occurs twice");
    // A rule that would produce its own side: the result is always longer, so it is no token or no cycle.
    bpe.clone().set("tokenizer.ggml.merges", strings(&["a ", " a"])).refused("is not a token");
    bpe.clone().set("tokenizer.ggml.eos_token_id", Value::U32(8)).refused("eos_token_id is 8, the vocabulary has 8");
    bpe.clone()
        .set("tokenizer.ggml.tokens", strings(&["a", "b", "c", "ab", "abc", "<|end|>", "  ", &"x".repeat(5000)]))
        .build()
        .map_err(|error| assert!(matches!(error, Error::LimitExceeded { actual: 5000, .. })))
        .unwrap_err();
    spm.clone().set("tokenizer.ggml.scores", Value::F32s(vec![0.0; 6])).refused("6 scores for 7 tokens");
    spm.clone()
        .set("tokenizer.ggml.scores", Value::F32s(vec![f32::NAN; 7]))
        .refused("score of token 0 is not a number");
    spm.clone().without("tokenizer.ggml.unknown_token_id").refused("neither an unknown token");
    for (small, key) in [
        (&bpe, "tokenizer.ggml.merges"),
        (&spm, "tokenizer.ggml.scores"),
        (&spm, "tokenizer.ggml.tokens"),
        (&spm, "tokenizer.ggml.model"),
    ] {
        let refused = small.clone().without(key).build();
        assert!(matches!(&refused, Err(Error::InvalidMetadata { key: missing, .. }) if missing == key), "{refused:?}");
    }
}

proptest! {
    #[test]
    fn random_vocabularies_are_refused_or_work(
        tokens in prop::collection::vec("[ab ▁<>|x0-9A-F]{0,6}", 1..20),
        kinds in prop::collection::vec(0i32..8, 20),
        scores in prop::collection::vec(-10f32..10.0, 20),
        merges in prop::collection::vec("[ab]{0,3} [ab]{0,3}", 0..5),
        byte_level in any::<bool>(),
        text in "[ab ▁<>|x]{0,20}",
    ) {
        let count = tokens.len();
        let small = Small(vec![
            ("tokenizer.ggml.model", Value::String(if byte_level { "gpt2" } else { "llama" }.into())),
            ("tokenizer.ggml.tokens", Value::Strings(tokens)),
            ("tokenizer.ggml.scores", Value::F32s(scores[..count].to_vec())),
            ("tokenizer.ggml.token_type", Value::I32s(kinds[..count].to_vec())),
            ("tokenizer.ggml.merges", Value::Strings(merges)),
            ("tokenizer.ggml.unknown_token_id", Value::U32(0)),
        ]);
        match small.build() {
            Ok(tokenizer) => {
                let ids = tokenizer.encode(&text, PARSED).unwrap();
                prop_assert!(ids.iter().all(|&id| (id as usize) < count));
                tokenizer.decode(&ids);
            }
            Err(error) => prop_assert!(matches!(error, Error::InvalidTokenizer { .. }), "{error:?}"),
        }
    }
}
