use regex_syntax::hir::{Class as HirClass, HirKind};

/// The Unicode property that splitting looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// `\p{Lu}`, `\p{Lt}`
    Upper,
    /// `\p{Ll}`
    Lower,
    /// `\p{Lm}`, `\p{Lo}`
    Uncased,
    /// `\p{M}`
    Mark,
    /// `\p{N}`
    Number,
    /// `\s`
    Space,
    /// Everything else.
    Other,
}

impl Class {
    pub(super) fn is_letter(self) -> bool {
        matches!(self, Self::Upper | Self::Lower | Self::Uncased)
    }

    pub(super) fn is_upper_like(self) -> bool {
        matches!(self, Self::Upper | Self::Uncased | Self::Mark)
    }

    pub(super) fn is_lower_like(self) -> bool {
        matches!(self, Self::Lower | Self::Uncased | Self::Mark)
    }

    /// `[^\s\p{L}\p{N}]`
    pub(super) fn is_symbol(self) -> bool {
        matches!(self, Self::Mark | Self::Other)
    }
}

/// Character classes as sorted ranges, with a table for ASCII.
pub(super) struct Classes {
    ascii: [Class; 128],
    /// `(first, last, class)`, ascending, disjoint.
    ranges: Vec<(char, char, Class)>,
}

impl Classes {
    pub(super) fn new() -> Self {
        let properties = [
            (r"[\p{Lu}\p{Lt}]", Class::Upper),
            (r"\p{Ll}", Class::Lower),
            (r"[\p{Lm}\p{Lo}]", Class::Uncased),
            (r"\p{M}", Class::Mark),
            (r"\p{N}", Class::Number),
            (r"\s", Class::Space),
        ];
        let mut ranges = Vec::with_capacity(3000);
        for (pattern, class) in properties {
            let hir = regex_syntax::parse(pattern).expect("a constant pattern");
            let HirKind::Class(HirClass::Unicode(set)) = hir.kind() else { unreachable!("{pattern} is a class") };
            ranges.extend(set.ranges().iter().map(|range| (range.start(), range.end(), class)));
        }
        ranges.sort_unstable_by_key(|range| range.0);
        let mut classes = Self { ascii: [Class::Other; 128], ranges };
        classes.ascii = std::array::from_fn(|code| classes.search(code as u8 as char));
        classes
    }

    pub(super) fn of(&self, character: char) -> Class {
        match self.ascii.get(character as usize) {
            Some(&class) => class,
            None => self.search(character),
        }
    }

    fn search(&self, character: char) -> Class {
        let after = self.ranges.partition_point(|range| range.0 <= character);
        match after.checked_sub(1).map(|index| self.ranges[index]) {
            Some((_, last, class)) if character <= last => class,
            _ => Class::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_general_categories() {
        let classes = Classes::new();
        let cases = [
            ('A', Class::Upper),
            ('ǅ', Class::Upper),
            ('ß', Class::Lower),
            ('日', Class::Uncased),
            ('ʰ', Class::Uncased),
            ('\u{301}', Class::Mark),
            ('5', Class::Number),
            ('Ⅷ', Class::Number),
            ('\u{a0}', Class::Space),
            ('\u{200b}', Class::Other),
            ('€', Class::Other),
        ];
        for (character, class) in cases {
            assert_eq!(classes.of(character), class, "{character:?}");
        }
        // The standard library may know a newer Unicode, with more numbers.
        assert!(('\0'..=char::MAX).all(|c| classes.of(c) != Class::Number || c.is_numeric()));
        assert!(('\0'..=char::MAX).all(|c| (classes.of(c) == Class::Space) == c.is_whitespace()));
    }
}
