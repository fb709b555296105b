//! With a token for every byte, decoding inverts encoding, whatever else the vocabulary has.

use std::collections::BTreeSet;

use edgeweld::Error;
use edgeweld::gguf::{GgufFile, GgufWriter, Value};
use edgeweld::tokenizer::{EncodeOptions, TokenKind, Tokenizer};

const PLAIN: EncodeOptions = EncodeOptions { add_special: false, parse_special: false };
const PARSED: EncodeOptions = EncodeOptions { add_special: false, parse_special: true };
const CONTROL: [&str; 2] = ["<|im_start|>", "<|im_end|>"];

/// The bytes are text: a pre-tokenizer (or `spm`), tokens one a line (`!` marks a user-defined one), merges one a line,
/// and the text to encode; the parts are separated by U+0000.
pub fn check(data: &[u8]) {
    let input = String::from_utf8_lossy(data);
    let mut parts = input.splitn(4, '\0');
    let [rule, tokens, merges, text] = std::array::from_fn(|_| parts.next().unwrap_or_default());
    let tokenizer = match build(rule, tokens, merges) {
        Ok(tokenizer) => tokenizer,
        Err(Error::InvalidTokenizer { .. } | Error::LimitExceeded { .. }) => return,
        Err(other) => panic!("{other}"),
    };

    let ids = tokenizer.encode(text, PLAIN).expect("a short text");
    // SentencePiece spells a space U+2581, so it cannot tell the two apart.
    let expected = if rule == "spm" { text.replace('\u{2581}', " ") } else { text.to_owned() };
    assert_eq!(tokenizer.decode(&ids), expected);
    assert!(ids.iter().all(|id| tokenizer.token_kind(*id).is_some_and(|kind| kind != TokenKind::Control)));
    let mut stream = tokenizer.decode_stream();
    let pieces: String = ids.iter().map(|id| stream.push(&tokenizer, *id)).collect();
    assert_eq!(pieces + &stream.finish(), expected);
    // A span that is literal hides control tokens, and nothing else.
    let whole = 0..text.len();
    assert_eq!(tokenizer.encode_guarded(text, std::slice::from_ref(&whole), PARSED).expect("a short text"), ids);
    // Parsed: as many control tokens as are written, and the text between them.
    let parsed = tokenizer.encode(text, PARSED).expect("a short text");
    let control = parsed.iter().filter(|id| tokenizer.token_kind(**id) == Some(TokenKind::Control)).count();
    assert_eq!((control, tokenizer.decode(&parsed)), without_control(&expected));
}

/// How many control tokens are written in `text`, and the text between them.
pub(crate) fn without_control(text: &str) -> (usize, String) {
    let (mut count, mut plain, mut rest) = (0, String::new(), text);
    while let Some((at, name)) = CONTROL.iter().filter_map(|name| Some((rest.find(name)?, name))).min() {
        plain += &rest[..at];
        rest = &rest[at + name.len()..];
        count += 1;
    }
    (count, plain + rest)
}

fn build(rule: &str, tokens: &str, merges: &str) -> edgeweld::Result<Tokenizer> {
    let byte_level = rule != "spm";
    let (mut names, mut kinds) = (CONTROL.map(str::to_owned).to_vec(), vec![3, 3]);
    for byte in 0..=255 {
        names.push(if byte_level { letter(byte).into() } else { format!("<0x{byte:02X}>") });
        kinds.push(if byte_level { 1 } else { 6 });
    }
    let mut taken: BTreeSet<String> = names.iter().cloned().collect();
    for line in tokens.lines().take(500) {
        let (name, kind) = match line.strip_prefix('!') {
            Some(name) => (name.replace('\u{2581}', ""), 4),
            None => (line.to_owned(), 1),
        };
        // Turn marks are control tokens whatever the file says; they would not decode to themselves.
        let is_turn_mark = name.starts_with("<|") && name.ends_with("|>") || name.ends_with("_of_turn>");
        let is_left_out = name.is_empty() || kind == 4 && is_turn_mark;
        if !is_left_out && taken.insert(name.clone()) {
            names.push(name);
            kinds.push(kind);
        }
    }
    let mut writer = GgufWriter::new();
    let scores = (0..names.len()).map(|id| -(id as f32)).collect();
    let merges = merges.lines().map(str::to_owned).collect();
    for (key, value) in [
        ("model", Value::String(if byte_level { "gpt2" } else { "llama" }.into())),
        ("pre", Value::String(rule.into())),
        ("tokens", Value::Strings(names)),
        ("token_type", Value::I32s(kinds)),
        ("scores", Value::F32s(scores)),
        ("merges", Value::Strings(merges)),
        ("add_space_prefix", Value::Bool(false)),
    ] {
        writer.metadata(&format!("tokenizer.ggml.{key}"), &value)?;
    }
    Tokenizer::from_gguf(GgufFile::from_bytes(writer.to_bytes())?.metadata())
}

/// The letter that spells `byte` in GPT-2's alphabet.
fn letter(byte: u8) -> char {
    let is_printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if is_printable(byte) {
        return byte.into();
    }
    let before = (0..byte).filter(|other| !is_printable(*other)).count() as u32;
    char::from_u32(0x100 + before).expect("a letter of Latin Extended-A")
}

/// One vocabulary per way of splitting.
pub fn seeds() -> Vec<Vec<u8>> {
    let byte_level = "ab\nabc\n!  \nĠa\n!</table>\0a b\nab c\nĠ a\0";
    let spm = "ab\nabc\n▁a\n!  \n!</table>\n日\0\0";
    let text = "abc  a'll <|im_start|>12é</table> 日本 👩‍👩‍👧<|im_end|>\n\n\tAb";
    let rules = ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "gpt-4o"];
    let with = |rule: &str, tables: &str| format!("{rule}\0{tables}{text}").into_bytes();
    rules.iter().map(|rule| with(rule, byte_level)).chain([with("spm", spm)]).collect()
}
