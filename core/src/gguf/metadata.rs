use super::cursor::Cursor;
use super::file::GgufFile;
use super::limits::STRING_BYTES_MAX;
use super::parse::{Entry, array_header};
use super::value::ValueType;
use crate::{Error, Result};

/// A file's metadata. Every method takes a key such as `general.architecture`; a plain method fails with
/// [`Error::InvalidMetadata`] where the key is missing or has another type, an `opt_` one answers `None` where
/// it is missing.
#[derive(Clone, Copy)]
pub struct Metadata<'a> {
    pub(super) file: &'a GgufFile,
}

impl<'a> Metadata<'a> {
    /// All keys, in file order.
    pub fn keys(self) -> impl Iterator<Item = &'a str> {
        let bytes = self.file.bytes();
        self.file.layout().entries.iter().map(move |entry| entry.key.read(bytes))
    }

    /// Whether the file has `key`.
    pub fn contains(self, key: &str) -> bool {
        self.find(key).is_some()
    }

    /// Type of the value, if the file has the key.
    pub fn value_type(self, key: &str) -> Option<ValueType> {
        self.find(key).map(|entry| entry.value_type)
    }

    /// A string.
    pub fn str(self, key: &str) -> Result<&'a str> {
        self.opt_str(key)?.ok_or_else(|| missing(key))
    }

    /// A string, if the file has the key.
    pub fn opt_str(self, key: &str) -> Result<Option<&'a str>> {
        let Some(entry) = self.find(key) else { return Ok(None) };
        match entry.value_type {
            ValueType::String => self.cursor(entry).string("string", STRING_BYTES_MAX).map(Some),
            other => Err(wrong_type(key, other, "a string")),
        }
    }

    /// An integer of any width that fits a `u32`.
    pub fn u32(self, key: &str) -> Result<u32> {
        self.opt_u32(key)?.ok_or_else(|| missing(key))
    }

    /// An integer of any width that fits a `u32`, if the file has the key.
    pub fn opt_u32(self, key: &str) -> Result<Option<u32>> {
        let Some(value) = self.integer(key)? else { return Ok(None) };
        let invalid = |_| Error::InvalidMetadata { key: key.to_owned(), reason: format!("{value} is out of range") };
        u32::try_from(value).map(Some).map_err(invalid)
    }

    /// An integer of any width that fits a `u64`, if the file has the key.
    pub fn opt_u64(self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.integer(key)? else { return Ok(None) };
        let invalid = |_| Error::InvalidMetadata { key: key.to_owned(), reason: format!("{value} is negative") };
        u64::try_from(value).map(Some).map_err(invalid)
    }

    /// An integer of any width that fits an `i32`, if the file has the key.
    pub fn opt_i32(self, key: &str) -> Result<Option<i32>> {
        let Some(value) = self.integer(key)? else { return Ok(None) };
        let invalid = |_| Error::InvalidMetadata { key: key.to_owned(), reason: format!("{value} is out of range") };
        i32::try_from(value).map(Some).map_err(invalid)
    }

    /// A floating-point number.
    pub fn f32(self, key: &str) -> Result<f32> {
        self.opt_f32(key)?.ok_or_else(|| missing(key))
    }

    /// A floating-point number, if the file has the key.
    pub fn opt_f32(self, key: &str) -> Result<Option<f32>> {
        let Some(entry) = self.find(key) else { return Ok(None) };
        let mut cursor = self.cursor(entry);
        match entry.value_type {
            ValueType::F32 => Ok(Some(f32::from_le_bytes(cursor.array("value")?))),
            ValueType::F64 => Ok(Some(f64::from_le_bytes(cursor.array("value")?) as f32)),
            other => Err(wrong_type(key, other, "a floating-point number")),
        }
    }

    /// A bool.
    pub fn bool(self, key: &str) -> Result<bool> {
        self.opt_bool(key)?.ok_or_else(|| missing(key))
    }

    /// A bool, if the file has the key.
    pub fn opt_bool(self, key: &str) -> Result<Option<bool>> {
        let Some(entry) = self.find(key) else { return Ok(None) };
        match entry.value_type {
            ValueType::Bool => Ok(Some(self.cursor(entry).array::<1>("value")? != [0])),
            other => Err(wrong_type(key, other, "a bool")),
        }
    }

    /// An array of strings, read one by one from the file.
    pub fn strings(self, key: &str) -> Result<Strings<'a>> {
        self.opt_strings(key)?.ok_or_else(|| missing(key))
    }

    /// An array of strings, if the file has the key.
    pub fn opt_strings(self, key: &str) -> Result<Option<Strings<'a>>> {
        let Some((mut cursor, element, len)) = self.array(key)? else { return Ok(None) };
        match element {
            ValueType::String => Ok(Some(Strings { cursor, len: len as usize })),
            // An empty array often has an arbitrary element type.
            _ if len == 0 => Ok(Some(Strings { cursor: Cursor::new(cursor.take(0, "array")?, 0), len: 0 })),
            other => Err(wrong_type(key, other, "an array of strings")),
        }
    }

    /// An array of `f32`.
    pub fn f32s(self, key: &str) -> Result<Vec<f32>> {
        self.opt_f32s(key)?.ok_or_else(|| missing(key))
    }

    /// An array of `f32`, if the file has the key.
    pub fn opt_f32s(self, key: &str) -> Result<Option<Vec<f32>>> {
        self.numbers(key, &[ValueType::F32], "an array of F32", f32::from_le_bytes)
    }

    /// An array of `i32` or `u32` (with the same bits).
    pub fn i32s(self, key: &str) -> Result<Vec<i32>> {
        self.opt_i32s(key)?.ok_or_else(|| missing(key))
    }

    /// An array of `i32` or `u32` (with the same bits), if the file has the key.
    pub fn opt_i32s(self, key: &str) -> Result<Option<Vec<i32>>> {
        self.numbers(key, &[ValueType::I32, ValueType::U32], "an array of I32", i32::from_le_bytes)
    }

    /// An array of bools, if the file has the key.
    pub fn opt_bools(self, key: &str) -> Result<Option<Vec<bool>>> {
        self.numbers(key, &[ValueType::Bool], "an array of bools", |byte: [u8; 1]| byte != [0])
    }

    fn numbers<T, const N: usize>(
        self,
        key: &str,
        accepted: &[ValueType],
        expected: &str,
        read: impl Fn([u8; N]) -> T,
    ) -> Result<Option<Vec<T>>> {
        let Some((mut cursor, element, len)) = self.array(key)? else { return Ok(None) };
        if len == 0 {
            return Ok(Some(Vec::new()));
        }
        if !accepted.contains(&element) {
            return Err(wrong_type(key, element, expected));
        }
        let (items, _) = cursor.take(len * N as u64, "array")?.as_chunks::<N>();
        Ok(Some(items.iter().map(|item| read(*item)).collect()))
    }

    /// Cursor at the first element, element type, length.
    fn array(self, key: &str) -> Result<Option<(Cursor<'a>, ValueType, u64)>> {
        let Some(entry) = self.find(key) else { return Ok(None) };
        if entry.value_type != ValueType::Array {
            return Err(wrong_type(key, entry.value_type, "an array"));
        }
        let mut cursor = self.cursor(entry);
        let (element, len) = array_header(&mut cursor)?;
        Ok(Some((cursor, element, len)))
    }

    fn integer(self, key: &str) -> Result<Option<i128>> {
        let Some(entry) = self.find(key) else { return Ok(None) };
        let mut cursor = self.cursor(entry);
        let what = "value";
        Ok(Some(match entry.value_type {
            ValueType::U8 => u8::from_le_bytes(cursor.array(what)?).into(),
            ValueType::I8 => i8::from_le_bytes(cursor.array(what)?).into(),
            ValueType::U16 => u16::from_le_bytes(cursor.array(what)?).into(),
            ValueType::I16 => i16::from_le_bytes(cursor.array(what)?).into(),
            ValueType::U32 => u32::from_le_bytes(cursor.array(what)?).into(),
            ValueType::I32 => i32::from_le_bytes(cursor.array(what)?).into(),
            ValueType::U64 => u64::from_le_bytes(cursor.array(what)?).into(),
            ValueType::I64 => i64::from_le_bytes(cursor.array(what)?).into(),
            other => return Err(wrong_type(key, other, "an integer")),
        }))
    }

    fn find(self, key: &str) -> Option<Entry> {
        let (layout, bytes) = (self.file.layout(), self.file.bytes());
        let key_at = |position: &u32| layout.entries[*position as usize].key.read(bytes);
        let found = layout.entries_by_key.binary_search_by_key(&key, key_at).ok()?;
        Some(layout.entries[layout.entries_by_key[found] as usize])
    }

    fn cursor(self, entry: Entry) -> Cursor<'a> {
        Cursor::new(self.file.bytes(), entry.value_at as usize)
    }
}

fn missing(key: &str) -> Error {
    Error::InvalidMetadata { key: key.to_owned(), reason: "missing".to_owned() }
}

fn wrong_type(key: &str, actual: ValueType, expected: &str) -> Error {
    Error::InvalidMetadata { key: key.to_owned(), reason: format!("is {actual:?}, expected {expected}") }
}

/// The strings of an array, decoded one by one from the file: a vocabulary of 262,144 tokens costs no memory.
#[derive(Clone)]
pub struct Strings<'a> {
    cursor: Cursor<'a>,
    len: usize,
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        self.len = self.len.checked_sub(1)?;
        // Checked when the file was opened; a string that someone overwrote since then reads as empty.
        Some(self.cursor.string("string", STRING_BYTES_MAX).unwrap_or(""))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.len, Some(self.len))
    }
}

impl ExactSizeIterator for Strings<'_> {}
