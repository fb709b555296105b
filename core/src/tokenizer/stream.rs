use super::Tokenizer;

/// Turns tokens into text as they arrive; see [`Tokenizer::decode_stream`].
///
/// A character whose bytes are spread over several tokens is held back until it is complete, so every piece of
/// text is valid UTF-8 and their concatenation equals [`Tokenizer::decode`] of all the tokens.
#[derive(Clone, Debug, Default)]
pub struct DecodeStream {
    /// The start of a character that is not complete: at most 3 bytes between calls.
    pending: Vec<u8>,
    /// Whether a leading space is still to be removed.
    strip_space: bool,
}

impl DecodeStream {
    pub(super) fn new(strip_space: bool) -> Self {
        Self { pending: Vec::new(), strip_space }
    }

    /// Text that `id` completes: empty while a character is incomplete, and for control tokens.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        self.push_bytes(tokenizer.text_bytes(id))
    }

    /// Text that `bytes` complete.
    fn push_bytes(&mut self, mut bytes: &[u8]) -> String {
        if self.strip_space && !bytes.is_empty() {
            self.strip_space = false;
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(std::str::from_utf8(valid).expect("checked by from_utf8"));
                    rest = after;
                    if let Some(length) = error.error_len() {
                        text.push(char::REPLACEMENT_CHARACTER);
                        rest = &rest[length..];
                        continue;
                    }
                }
            }
            break;
        }
        self.pending = rest.to_vec();
        text
    }

    /// Ends the stream: what is left of an incomplete character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        if std::mem::take(&mut self.pending).is_empty() { String::new() } else { char::REPLACEMENT_CHARACTER.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `bytes` in pieces of `step`.
    fn decoded(bytes: &[u8], step: usize) -> (Vec<String>, String) {
        let mut stream = DecodeStream::default();
        let mut pieces: Vec<String> = bytes.chunks(step).map(|piece| stream.push_bytes(piece)).collect();
        pieces.push(stream.finish());
        let whole = pieces.concat();
        (pieces, whole)
    }

    #[test]
    fn holds_a_character_until_it_is_complete() {
        let (pieces, whole) = decoded("a👩日é".as_bytes(), 1);
        assert_eq!(whole, "a👩日é");
        assert_eq!(pieces[..5], ["a", "", "", "", "👩"]);
    }

    #[test]
    fn equals_lossy_decoding_however_it_is_cut() {
        for bytes in
            [&b"a\xffb"[..], b"\xf0\x9f\x91", b"\xe6\x97x\xe6", b"\xc0\xaf\xed\xa0\x80", b"\xf0\x9f\xf0\x9f\x91\xa9"]
        {
            for step in 1..=bytes.len() {
                assert_eq!(decoded(bytes, step).1, String::from_utf8_lossy(bytes), "{bytes:x?} by {step}");
            }
        }
    }
}
