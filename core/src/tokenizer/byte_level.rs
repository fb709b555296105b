//! The alphabet in which GPT-2-style vocabularies spell bytes: printable Latin-1 stands for itself, every
//! other byte is a letter from U+0100 on (`Ġ` is a space).

/// Appends the bytes that `text` spells in the byte-level alphabet; `false`, and nothing appended, when a
/// character is outside the alphabet.
pub(super) fn decode(text: &str, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    for character in text.chars() {
        match byte_of(character) {
            Some(byte) => out.push(byte),
            None => {
                out.truncate(start);
                return false;
            }
        }
    }
    true
}

/// The byte that `character` stands for.
fn byte_of(character: char) -> Option<u8> {
    let code = character as u32;
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => Some(code as u8),
        // The 68 bytes without a printable character of their own, in order: 00-20, 7f-a0, ad.
        0x100..=0x120 => Some((code - 0x100) as u8),
        0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_exactly_one_character() {
        let mut bytes: Vec<u8> = ('\0'..'\u{200}').filter_map(byte_of).collect();
        bytes.sort();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
    }

    #[test]
    fn spells_spaces_and_accents() {
        let mut out = Vec::new();
        assert!(decode("ĠcafÃ©Ċ", &mut out));
        assert_eq!(out, " café\n".as_bytes());
        assert!(!decode("日", &mut out));
        assert_eq!(out, " café\n".as_bytes());
    }
}
