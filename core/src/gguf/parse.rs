use super::cursor::Cursor;
use super::limits::*;
use super::value::ValueType;
use crate::quant::BlockType;
use crate::{Error, Result};

const MAGIC: &[u8; 4] = b"GGUF";

/// Smallest metadata entry: an empty key is refused, so 8 + 1 bytes of key, 4 of type, 1 of value.
const ENTRY_SIZE_MIN: u64 = 14;

/// Smallest tensor: 8 + 1 bytes of name, 4 + 8 of dimensions, 4 of type, 8 of offset, and its aligned data.
const TENSOR_SIZE_MIN: u64 = 33 + ALIGNMENT_MIN;

/// Where a metadata entry is. The value stays in the file, so that a long array costs nothing until it is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) key: Text,
    pub(super) value_type: ValueType,
    /// Offset of the value; for an array, of its element type.
    pub(super) value_at: u64,
}

/// Where a name is in the file.
#[derive(Clone, Copy, Debug)]
#[repr(Rust, packed(2))]
pub(super) struct Text {
    at: u64,
    len: u16,
}

impl Text {
    pub(super) fn read<'a>(&self, bytes: &'a [u8]) -> &'a str {
        let start = self.at as usize;
        // Valid when the file was opened; a name that someone overwrote since then matches nothing.
        bytes.get(start..start + self.len as usize).and_then(|name| std::str::from_utf8(name).ok()).unwrap_or("")
    }
}

impl Entry {
    /// Offset of the entry: of its key's length.
    pub(super) fn start(&self) -> usize {
        self.key.at as usize - 8
    }
}

/// A tensor's description; the shape is row-major, padded with 1 at its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct TensorEntry {
    pub(super) name: Text,
    pub(super) block_type: BlockType,
    pub(super) dimension_count: u8,
    pub(super) shape: [u32; DIMENSIONS_MAX as usize],
    /// Offset of the data in the file.
    pub(super) data_at: u64,
}

// The indexes stay smaller than the part of the file they describe.
const _: () = assert!(size_of::<Entry>() <= 24 && size_of::<TensorEntry>() <= TENSOR_SIZE_MIN as usize);

impl TensorEntry {
    /// Bytes of the data; `None` if it is not a whole number of blocks or overflows.
    pub(super) fn size_bytes(&self) -> Option<u64> {
        let shape = &self.shape[..self.dimension_count as usize];
        let (cols, rows) = shape.split_last()?;
        let row = self.block_type.row_size_bytes(*cols as usize)?;
        rows.iter().try_fold(row as u64, |size, rows| size.checked_mul(u64::from(*rows)))
    }
}

/// A file's structure, checked: every range lies in the file, names are unique, tensors do not overlap.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) entries: Vec<Entry>,
    /// Positions in `entries`, by key.
    pub(super) entries_by_key: Vec<u32>,
    pub(super) tensors: Vec<TensorEntry>,
    /// Positions in `tensors`, by name.
    pub(super) tensors_by_name: Vec<u32>,
    pub(super) version: u32,
    /// Where the metadata entries end.
    pub(super) metadata_end: usize,
}

/// Checks the whole structure of a GGUF file in one pass over its header.
pub(super) fn parse(bytes: &[u8]) -> Result<Layout> {
    let mut cursor = Cursor::new(bytes, 0);
    let version = version(&mut cursor)?;
    let tensor_count = cursor.count("tensor count", TENSOR_COUNT_MAX, TENSOR_SIZE_MIN)?;
    let entry_count = cursor.count("metadata count", METADATA_COUNT_MAX, ENTRY_SIZE_MIN)?;

    let mut entries = Vec::with_capacity(entry_count as usize);
    for _ in 0..entry_count {
        entries.push(entry(&mut cursor)?);
    }
    let entries_by_key = sorted(bytes, &entries, "metadata key", |entry| entry.key)?;
    let metadata_end = cursor.at();

    let mut tensors = Vec::with_capacity(tensor_count as usize);
    for _ in 0..tensor_count {
        tensors.push(tensor(&mut cursor)?);
    }
    let tensors_by_name = sorted(bytes, &tensors, "tensor name", |tensor| tensor.name)?;

    let alignment = alignment(bytes, &entries, &entries_by_key)?;
    place(bytes, cursor.at(), alignment, &mut tensors)?;
    Ok(Layout { entries, entries_by_key, tensors, tensors_by_name, version, metadata_end })
}

fn version(cursor: &mut Cursor) -> Result<u32> {
    let magic = cursor.array::<4>("magic").map_err(|_| not_gguf("the file has fewer than 4 bytes"))?;
    if &magic != MAGIC {
        return Err(not_gguf(format!("it starts with {:?}, not GGUF", magic.escape_ascii().to_string())));
    }
    match cursor.u32("version")? {
        version @ 2..=3 => Ok(version),
        1 => Err(not_gguf("version 1 (32-bit lengths) is obsolete; convert the file again")),
        version if matches!(version.swap_bytes(), 1..=3) => Err(not_gguf("big-endian files are not supported")),
        version => Err(not_gguf(format!("version {version}, this build reads 2 and 3"))),
    }
}

fn not_gguf(reason: impl Into<String>) -> Error {
    Error::NotGguf { reason: reason.into() }
}

fn name(cursor: &mut Cursor, what: &'static str, limit: u64) -> Result<Text> {
    let start = cursor.at();
    let name = cursor.string(what, limit)?;
    if name.is_empty() {
        return Err(Error::CorruptGguf { offset: start as u64, reason: format!("empty {what}") });
    }
    Ok(Text { at: (cursor.at() - name.len()) as u64, len: name.len() as u16 })
}

fn entry(cursor: &mut Cursor) -> Result<Entry> {
    let key = name(cursor, "metadata key", KEY_BYTES_MAX)?;
    let value_type = value_type(cursor)?;
    let value_at = cursor.at() as u64;
    skip_value(cursor, value_type, 0)?;
    Ok(Entry { key, value_type, value_at })
}

fn value_type(cursor: &mut Cursor) -> Result<ValueType> {
    let offset = cursor.at() as u64;
    let number = cursor.u32("value type")?;
    ValueType::from_number(number)
        .ok_or_else(|| Error::CorruptGguf { offset, reason: format!("unknown value type {number}") })
}

/// Checks a value and moves behind it.
fn skip_value(cursor: &mut Cursor, value_type: ValueType, depth: u64) -> Result<()> {
    match value_type {
        ValueType::String => cursor.string("string", STRING_BYTES_MAX).map(drop),
        ValueType::Bool => bools(cursor, 1),
        ValueType::Array => {
            let (element, len) = array_header(cursor)?;
            match element {
                ValueType::Array if depth + 1 >= ARRAY_DEPTH_MAX => {
                    Err(Error::LimitExceeded { what: "array depth", actual: depth + 2, limit: ARRAY_DEPTH_MAX })
                }
                ValueType::Array | ValueType::String => {
                    (0..len).try_for_each(|_| skip_value(cursor, element, depth + 1))
                }
                ValueType::Bool => bools(cursor, len),
                _ => cursor.take(len * element.size_min(), "array").map(drop),
            }
        }
        _ => cursor.take(value_type.size_min(), "value").map(drop),
    }
}

/// Element type and length; the elements follow.
pub(super) fn array_header(cursor: &mut Cursor) -> Result<(ValueType, u64)> {
    let element = value_type(cursor)?;
    let len = cursor.count("array length", ARRAY_LEN_MAX, element.size_min())?;
    Ok((element, len))
}

fn bools(cursor: &mut Cursor, len: u64) -> Result<()> {
    let start = cursor.at();
    match cursor.take(len, "bool")?.iter().position(|byte| *byte > 1) {
        None => Ok(()),
        Some(at) => {
            Err(Error::CorruptGguf { offset: (start + at) as u64, reason: "a bool is neither 0 nor 1".to_owned() })
        }
    }
}

/// A tensor's description; `data_at` is still relative to the data section.
fn tensor(cursor: &mut Cursor) -> Result<TensorEntry> {
    let name = name(cursor, "tensor name", TENSOR_NAME_BYTES_MAX)?;
    let start = cursor.at();
    let dimension_count = u64::from(cursor.u32("dimension count")?);
    if dimension_count > DIMENSIONS_MAX {
        return Err(Error::LimitExceeded { what: "dimension count", actual: dimension_count, limit: DIMENSIONS_MAX });
    }
    if dimension_count == 0 {
        return Err(Error::CorruptGguf { offset: start as u64, reason: "tensor without dimensions".to_owned() });
    }
    let mut shape = [1; DIMENSIONS_MAX as usize];
    // The file stores the innermost dimension first.
    for length in shape[..dimension_count as usize].iter_mut().rev() {
        let offset = cursor.at() as u64;
        *length = match cursor.u64("dimension")? {
            0 => return Err(Error::CorruptGguf { offset, reason: "dimension of length 0".to_owned() }),
            length if length <= DIMENSION_MAX => length as u32,
            actual => return Err(Error::LimitExceeded { what: "dimension", actual, limit: DIMENSION_MAX }),
        };
    }
    let number = cursor.u32("block type")?;
    let Some(block_type) = BlockType::from_ggml(number) else {
        let tensor = name.read(cursor.bytes()).to_owned();
        return Err(Error::UnsupportedBlockType { tensor, block_type: number });
    };
    let data_at = cursor.u64("tensor offset")?;
    Ok(TensorEntry { name, block_type, dimension_count: dimension_count as u8, shape, data_at })
}

/// Positions by name.
fn sorted<T>(bytes: &[u8], items: &[T], what: &str, name: impl Fn(&T) -> Text) -> Result<Vec<u32>> {
    let mut positions: Vec<u32> = (0..items.len() as u32).collect();
    let name_at = |position: u32| name(&items[position as usize]);
    positions.sort_unstable_by_key(|position| name_at(*position).read(bytes));
    for pair in positions.windows(2) {
        let (first, second) = (name_at(pair[0]), name_at(pair[1]));
        if first.read(bytes) == second.read(bytes) {
            let offset = first.at.max(second.at);
            return Err(Error::CorruptGguf { offset, reason: format!("duplicate {what} {:?}", first.read(bytes)) });
        }
    }
    Ok(positions)
}

fn alignment(bytes: &[u8], entries: &[Entry], by_key: &[u32]) -> Result<u64> {
    let key = "general.alignment";
    let Ok(found) = by_key.binary_search_by_key(&key, |position| entries[*position as usize].key.read(bytes)) else {
        return Ok(ALIGNMENT_DEFAULT);
    };
    let entry = entries[by_key[found] as usize];
    let invalid = |reason: String| Error::InvalidMetadata { key: key.to_owned(), reason };
    if entry.value_type != ValueType::U32 {
        return Err(invalid(format!("is {:?}, expected U32", entry.value_type)));
    }
    let alignment = u64::from(Cursor::new(bytes, entry.value_at as usize).u32("alignment")?);
    if !alignment.is_power_of_two() || !(ALIGNMENT_MIN..=ALIGNMENT_MAX).contains(&alignment) {
        return Err(invalid(format!("{alignment} is not a power of two from {ALIGNMENT_MIN} to {ALIGNMENT_MAX}")));
    }
    Ok(alignment)
}

/// Makes the tensors' offsets absolute and checks that they are aligned, in the file, and apart.
fn place(bytes: &[u8], header_end: usize, alignment: u64, tensors: &mut [TensorEntry]) -> Result<()> {
    let data_start = (header_end as u64).next_multiple_of(alignment);
    let mut ranges = Vec::with_capacity(tensors.len());
    for (position, tensor) in tensors.iter_mut().enumerate() {
        let name = tensor.name;
        let corrupt = |offset, reason: &str| Error::CorruptGguf {
            offset,
            reason: format!("tensor {:?}: {reason}", name.read(bytes)),
        };
        let described_at = name.at;
        if !tensor.data_at.is_multiple_of(alignment) {
            return Err(corrupt(described_at, &format!("offset {} is not aligned to {alignment}", tensor.data_at)));
        }
        let Some(size) = tensor.size_bytes() else {
            return Err(corrupt(described_at, "its rows are not whole blocks, or its size overflows"));
        };
        let start = data_start.checked_add(tensor.data_at);
        let Some((start, end)) = start.and_then(|start| Some((start, start.checked_add(size)?))) else {
            return Err(corrupt(described_at, "its offset overflows"));
        };
        if end > bytes.len() as u64 {
            return Err(corrupt(start, &format!("its data ends at {end}, the file at {}", bytes.len())));
        }
        tensor.data_at = start;
        ranges.push((start, end, position as u32));
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        let ((_, end, first), (start, _, second)) = (pair[0], pair[1]);
        if start < end {
            let name = |position: u32| tensors[position as usize].name.read(bytes);
            let reason = format!("tensors {:?} and {:?} overlap", name(first), name(second));
            return Err(Error::CorruptGguf { offset: start, reason });
        }
    }
    Ok(())
}
