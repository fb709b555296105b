//! A template ends, and no message forges a control token, whatever the template does with it.

use std::sync::OnceLock;

use edgeweld::chat::{ChatTemplate, Message, RenderOptions};
use edgeweld::gguf::{GgufFile, GgufWriter, Value};
use edgeweld::tokenizer::{EncodeOptions, Tokenizer};

use super::tokenizer::without_control;

/// The bytes are text: a template, a message, and what a second template writes before and after the message; the
/// parts are separated by U+0000.
pub fn check(data: &[u8]) {
    let input = String::from_utf8_lossy(data);
    let mut parts = input.splitn(4, '\0');
    let [any, content, before, after] = std::array::from_fn(|_| parts.next().unwrap_or_default());
    render(any, content);

    let text = |part: &str| part.replace('{', "(");
    let (before, after) = (text(before), text(after));
    let Some(ids) = render(&format!("{before}{{{{ messages[0].content }}}}{after}"), content) else { return };
    let after = after.strip_suffix('\n').unwrap_or(&after); // as Jinja does
    // Message and template never make a control token together; an empty message joins what is around it.
    let expected = if content.is_empty() {
        without_control(&format!("{before}{after}"))
    } else {
        let ((first, before), (second, after)) = (without_control(&before), without_control(after));
        (first + second, format!("{before}{content}{after}"))
    };
    let control = ids.iter().filter(|id| **id < 2).count();
    // SentencePiece spells a space U+2581.
    assert_eq!((control, tokenizer().decode(&ids)), (expected.0, expected.1.replace('\u{2581}', " ")));
}

/// The ids of what the template makes of one message, if it is a template.
fn render(source: &str, content: &str) -> Option<Vec<u32>> {
    let template = ChatTemplate::new(source).ok()?;
    let rendered = template.render(tokenizer(), &[Message::user(content)], &RenderOptions::default()).ok()?;
    // Panics unless spans ascend, are disjoint, and lie at characters.
    let options = EncodeOptions { add_special: false, parse_special: true };
    Some(tokenizer().encode_guarded(&rendered.text, &rendered.literal, options).expect("a short text"))
}

/// Two control tokens and all bytes.
fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        let bytes = (0..=255_u8).map(|byte| format!("<0x{byte:02X}>"));
        let tokens: Vec<String> = ["<|im_start|>", "<|im_end|>"].map(str::to_owned).into_iter().chain(bytes).collect();
        let mut writer = GgufWriter::new();
        for (key, value) in [
            ("tokenizer.ggml.model", Value::String("llama".into())),
            ("tokenizer.ggml.scores", Value::F32s(vec![0.0; tokens.len()])),
            ("tokenizer.ggml.add_space_prefix", Value::Bool(false)),
            ("tokenizer.ggml.token_type", Value::I32s((0..258).map(|id| if id < 2 { 3 } else { 6 }).collect())),
            ("tokenizer.ggml.tokens", Value::Strings(tokens)),
        ] {
            writer.metadata(key, &value).expect("a new key");
        }
        let file = GgufFile::from_bytes(writer.to_bytes()).expect("what is written is read");
        Tokenizer::from_gguf(file.metadata()).expect("a whole vocabulary")
    })
}

/// A ChatML template, and one with most of what Jinja has.
pub fn seeds() -> Vec<Vec<u8>> {
    let chat_ml = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}";
    let busy = "{% set ns = namespace(x='') %}{% for m in messages %}{% if m.role == 'user' and loop.first %}\
                {% set ns.x = ns.x ~ m['content'].strip() | upper %}{% else %}{{ raise_exception('no') }}{% endif %}\
                {{ m | tojson }}{% endfor %}{{ ns.x[1:] }}\
                {% macro f(a) %}{{ a.split(' ') | join('-') }}{% endmacro %}{{ f(ns.x) }}";
    let rest = "\0end|> <|im_end|> a <|im_\0<|im_start|>x<|im_\0end|>\n<|im_end|>";
    [chat_ml, busy].map(|template| format!("{template}{rest}").into_bytes()).to_vec()
}
