//! Splits text into the words that byte-level BPE merges within. The published regular expressions are written
//! out as scanners: a backtracking engine gives up on a megabyte of spaces, these are linear.

use super::classes::{Class, Classes};

/// Which scanner, with its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`;
    /// with `single_digits`, `\p{N}` is split off first, one by one.
    Gpt2 { single_digits: bool },
    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`;
    /// with `marks`, `\p{M}` counts as a letter.
    Llama3 { digits: usize, marks: bool },
    /// As `Llama3`, but a word is `[^\r\n\p{L}\p{N}]?U*L+` or `[^\r\n\p{L}\p{N}]?U+L*` with
    /// `U = [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`, `L = [\p{Ll}\p{Lm}\p{Lo}\p{M}]`; symbols may end in slashes; and
    /// contractions either end a word or do not exist.
    Cased { digits: usize, contractions: bool },
}

/// The word splitter that a file names in `tokenizer.ggml.pre`.
pub(super) struct PreTokenizer {
    rule: Rule,
    classes: Classes,
    /// A word that is itself a token is taken whole, whatever the merges say.
    pub(super) whole_words: bool,
    /// Whether such models expect a BOS token when the file does not say.
    pub(super) add_bos: bool,
}

impl PreTokenizer {
    /// The splitter called `name` by llama.cpp's converter, `None` when it is not known.
    pub(super) fn named(name: &str) -> Option<Self> {
        let gpt2 = |single_digits| (Rule::Gpt2 { single_digits }, false, false);
        let llama3 = |digits, marks| Rule::Llama3 { digits, marks };
        let (rule, whole_words, add_bos) = match name {
            "default" | "gpt-2" | "phi-2" | "gigachat" | "mellum" | "modern-bert" | "exaone4" | "olmo" | "jais"
            | "mpt" | "trillion" | "granite-docling" => gpt2(false),
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" | "mellum2" => {
                gpt2(true)
            }
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2" => {
                (llama3(3, false), true, true)
            }
            "dbrx" | "smaug-bpe" | "chatglm-bpe" => (llama3(3, false), false, false),
            "glm4" | "glm5" => (llama3(3, false), true, false),
            "qwen2" | "deepseek-r1-qwen" | "kormo" | "megrez" | "stablelm2" | "hunyuan" | "solar-open" | "grok-2" => {
                (llama3(1, false), false, false)
            }
            "qwen35" => (llama3(1, true), false, false),
            "tekken" => (Rule::Cased { digits: 1, contractions: false }, true, true),
            "gpt-4o" | "llama4" | "kanana2" => (Rule::Cased { digits: 3, contractions: true }, false, false),
            _ => return None,
        };
        Some(Self { rule, classes: Classes::new(), whole_words, add_bos })
    }

    /// The rule's name in the digest; names that split alike share it.
    pub(super) fn name(&self) -> &'static str {
        match self.rule {
            Rule::Gpt2 { single_digits: false } => "gpt2",
            Rule::Gpt2 { single_digits: true } => "gpt2-single-digits",
            Rule::Llama3 { digits: 1, marks: false } => "llama3-single-digits",
            Rule::Llama3 { marks: false, .. } => "llama3",
            Rule::Llama3 { marks: true, .. } => "llama3-marks",
            Rule::Cased { contractions: false, .. } => "cased",
            Rule::Cased { contractions: true, .. } => "cased-contractions",
        }
    }

    /// Calls `word` with each word of `text` in order; together they are `text`.
    pub(super) fn split(&self, text: &str, mut word: impl FnMut(&str)) {
        let Rule::Gpt2 { single_digits: true } = self.rule else {
            return self.scan(text, &mut word);
        };
        let mut rest = text;
        while let Some((at, digit)) =
            rest.char_indices().find(|&(_, character)| self.classes.of(character) == Class::Number)
        {
            self.scan(&rest[..at], &mut word);
            let end = at + digit.len_utf8();
            word(&rest[at..end]);
            rest = &rest[end..];
        }
        self.scan(rest, &mut word);
    }

    fn scan(&self, text: &str, word: &mut impl FnMut(&str)) {
        let mut at = 0;
        while at < text.len() {
            let scanner = Scanner { text, classes: &self.classes };
            let end = match self.rule {
                Rule::Gpt2 { .. } => scanner.gpt2(at),
                Rule::Llama3 { digits, marks } => scanner.llama3(at, digits, marks),
                Rule::Cased { digits, contractions } => scanner.cased(at, digits, contractions),
            };
            word(&text[at..end]);
            at = end;
        }
    }
}

/// The alternatives of the regular expressions; each takes the byte offset of its first character and answers
/// the offset after the match.
struct Scanner<'a> {
    text: &'a str,
    classes: &'a Classes,
}

impl Scanner<'_> {
    fn gpt2(&self, at: usize) -> usize {
        if let Some(end) = self.contraction(at, false) {
            return end;
        }
        // ` ?`: the space belongs to what follows it.
        let body = if self.text.as_bytes()[at] == b' ' { at + 1 } else { at };
        match self.class(body) {
            Some(Class::Space) | None => self.spaces(at),
            Some(class) if class.is_letter() => self.run(body, Class::is_letter),
            Some(Class::Number) => self.run(body, |class| class == Class::Number),
            Some(_) => self.run(body, Class::is_symbol),
        }
    }

    fn llama3(&self, at: usize, digits: usize, marks: bool) -> usize {
        if let Some(end) = self.contraction(at, true) {
            return end;
        }
        let is_letter = |class: Class| class.is_letter() || marks && class == Class::Mark;
        let body = self.optional_prefix(at);
        if self.class(body).is_some_and(is_letter) {
            return self.run(body, is_letter);
        }
        if self.class(at).is_some_and(is_letter) {
            return self.run(at, is_letter);
        }
        self.digits_symbols_spaces(at, digits, b"\r\n", |class| class.is_symbol() && !is_letter(class))
    }

    fn cased(&self, at: usize, digits: usize, contractions: bool) -> usize {
        let body = self.optional_prefix(at);
        let word = self.lower_ended(body).or_else(|| self.lower_ended(at));
        if let Some(end) = word.or_else(|| self.upper_started(body)).or_else(|| self.upper_started(at)) {
            return contractions.then(|| self.contraction(end, true)).flatten().unwrap_or(end);
        }
        self.digits_symbols_spaces(at, digits, b"\r\n/", Class::is_symbol)
    }

    /// `\p{N}{1,digits}| ?symbol+[tail]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    fn digits_symbols_spaces(&self, at: usize, digits: usize, tail: &[u8], is_symbol: impl Fn(Class) -> bool) -> usize {
        if self.class(at) == Some(Class::Number) {
            let mut end = at;
            for _ in 0..digits {
                if self.class(end) == Some(Class::Number) {
                    end = self.after(end);
                }
            }
            return end;
        }
        let body = if self.text.as_bytes()[at] == b' ' { at + 1 } else { at };
        if self.class(body).is_some_and(&is_symbol) {
            let end = self.run(body, &is_symbol);
            return end + self.text.as_bytes()[end..].iter().take_while(|byte| tail.contains(byte)).count();
        }
        let run = self.run(at, |class| class == Class::Space);
        match self.text[at..run].rfind(['\r', '\n']) {
            Some(newline) => at + newline + 1,
            None => self.spaces(at),
        }
    }

    /// `[^\r\n\p{L}\p{N}]?`, greedy.
    fn optional_prefix(&self, at: usize) -> usize {
        match self.class(at) {
            Some(class) if class.is_letter() || class == Class::Number => at,
            Some(_) if matches!(self.text.as_bytes()[at], b'\r' | b'\n') => at,
            Some(_) => self.after(at),
            None => at,
        }
    }

    /// `U*L+`
    fn lower_ended(&self, at: usize) -> Option<usize> {
        let upper_end = self.run(at, Class::is_upper_like);
        let end = self.run(upper_end, Class::is_lower_like);
        if end > upper_end {
            return Some(end);
        }
        // `U*` gives characters back until one of them is also in `L`.
        let mut characters = self.text[at..upper_end].char_indices().rev();
        characters
            .find(|&(_, character)| self.classes.of(character).is_lower_like())
            .map(|(start, character)| at + start + character.len_utf8())
    }

    /// `U+L*`
    fn upper_started(&self, at: usize) -> Option<usize> {
        let end = self.run(at, Class::is_upper_like);
        (end > at).then(|| self.run(end, Class::is_lower_like))
    }

    /// `'s|'t|'re|'ve|'m|'ll|'d`, in either case when `any_case`.
    fn contraction(&self, at: usize, any_case: bool) -> Option<usize> {
        let rest = self.text.as_bytes().get(at..)?.strip_prefix(b"'")?;
        let matches = |ending: &&&[u8]| {
            rest.get(..ending.len())
                .is_some_and(|start| if any_case { start.eq_ignore_ascii_case(ending) } else { start == **ending })
        };
        let endings: [&[u8]; 7] = [b"s", b"t", b"re", b"ve", b"m", b"ll", b"d"];
        endings.iter().find(matches).map(|ending| at + 1 + ending.len())
    }

    /// `\s+(?!\S)|\s+`: the run of spaces, without its last one when a word follows and others are left.
    fn spaces(&self, at: usize) -> usize {
        let end = self.run(at, |class| class == Class::Space);
        if end == self.text.len() {
            return end;
        }
        let (last, _) = self.text[at..end].char_indices().next_back().unwrap_or_default();
        if last == 0 { end } else { at + last }
    }

    fn class(&self, at: usize) -> Option<Class> {
        self.text[at..].chars().next().map(|character| self.classes.of(character))
    }

    fn after(&self, at: usize) -> usize {
        at + self.text[at..].chars().next().map_or(0, char::len_utf8)
    }

    /// The end of the longest run of characters that `wanted` accepts.
    fn run(&self, at: usize, wanted: impl Fn(Class) -> bool) -> usize {
        let rest = &self.text[at..];
        at + rest.find(|character| !wanted(self.classes.of(character))).unwrap_or(rest.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(name: &str, text: &str) -> Vec<String> {
        let mut words = Vec::new();
        PreTokenizer::named(name).unwrap().split(text, |word| words.push(word.to_owned()));
        assert_eq!(words.concat(), text);
        words
    }

    #[test]
    fn gpt2_keeps_one_space_before_a_word() {
        assert_eq!(words("gpt-2", "we'll  go\n\n 12!?  "), ["we", "'ll", " ", " go", "\n\n", " 12", "!?", "  "]);
        assert_eq!(words("gpt-2", "I'M\u{a0}x"), ["I", "'", "M", "\u{a0}", "x"]);
    }

    #[test]
    fn smollm_splits_digits_off_first() {
        assert_eq!(words("smollm", "x  12 y"), ["x", "  ", "1", "2", " y"]);
    }

    #[test]
    fn llama3_groups_digits_and_newlines() {
        assert_eq!(
            words("llama3", "It'S 12345\n\n  x (a)\n"),
            ["It", "'S", " ", "123", "45", "\n\n", " ", " x", " (", "a", ")\n"]
        );
        assert_eq!(words("qwen2", "\t\ta 42"), ["\t", "\ta", " ", "4", "2"]);
        assert_eq!(words("qwen2", "हिन्दी"), ["ह", "िन", "्द", "ी"]);
        assert_eq!(words("qwen35", "हिन्दी"), ["हिन्दी"]);
    }

    #[test]
    fn cased_splits_at_capitals() {
        assert_eq!(
            words("gpt-4o", "CamelCase HTTPServer's a/b //\n"),
            ["Camel", "Case", " HTTPServer's", " a", "/b", " //\n"]
        );
        assert_eq!(words("tekken", "don't ABC"), ["don", "'t", " ABC"]);
    }

    #[test]
    fn megabytes_of_one_character_are_linear() {
        for name in ["gpt-2", "smollm", "llama3", "qwen2", "gpt-4o"] {
            for text in [" ", "a", "A", "\n", "7", "!", "ʰ", "'"] {
                let long = text.repeat(1 << 20);
                PreTokenizer::named(name).unwrap().split(&long, |_| ());
                PreTokenizer::named(name).unwrap().split(&(long + "x"), |_| ());
            }
        }
    }
}
