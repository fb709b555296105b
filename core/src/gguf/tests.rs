//! Every rule of the reader has a test that breaks it, on files built byte by byte.

use proptest::prelude::*;

use super::*;
use crate::quant::{BlockType, WeightBytes};
use crate::{CancelToken, Error, Result};

/// A file written field by field, so that each field can be wrong.
#[derive(Clone)]
struct Builder {
    magic: [u8; 4],
    version: u32,
    tensor_count: Option<u64>,
    metadata_count: Option<u64>,
    entries: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: usize,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            metadata_count: None,
            entries: Vec::new(),
            tensors: Vec::new(),
            data: 0,
        }
    }
}

impl Builder {
    fn entry(mut self, key: &str, value_type: u32, value: &[u8]) -> Self {
        self.entries.push([&text(key)[..], &value_type.to_le_bytes(), value].concat());
        self
    }

    fn tensor(mut self, name: &str, dimensions: &[u64], block_type: u32, offset: u64) -> Self {
        let mut tensor = text(name);
        tensor.extend((dimensions.len() as u32).to_le_bytes());
        tensor.extend(dimensions.iter().flat_map(|length| length.to_le_bytes()));
        tensor.extend(block_type.to_le_bytes());
        tensor.extend(offset.to_le_bytes());
        self.tensors.push(tensor);
        self
    }

    fn data(mut self, len: usize) -> Self {
        self.data = len;
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.metadata_count.unwrap_or(self.entries.len() as u64).to_le_bytes());
        out.extend(self.entries.concat());
        out.extend(self.tensors.concat());
        out.resize(out.len().next_multiple_of(32) + self.data, 0);
        out
    }

    fn open(&self) -> Result<GgufFile> {
        GgufFile::from_bytes(self.bytes())
    }

    #[track_caller]
    fn refused(&self) -> Error {
        self.open().err().expect("the file must be refused")
    }

    #[track_caller]
    fn refused_as_corrupt(&self, expected: &str) -> u64 {
        match self.refused() {
            Error::CorruptGguf { offset, reason } if reason.contains(expected) => offset,
            other => panic!("{other:?} instead of {expected:?}"),
        }
    }

    #[track_caller]
    fn refused_by_limit(&self, expected: &str) {
        match self.refused() {
            Error::LimitExceeded { what, .. } if what == expected => {}
            other => panic!("{other:?} instead of a limit on {expected}"),
        }
    }
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn small() -> Builder {
    Builder::default()
        .entry("general.architecture", 8, &text("llama"))
        .entry("tokens", 9, &[&8_u32.to_le_bytes()[..], &2_u64.to_le_bytes(), &text("a"), &text("é")].concat())
        .tensor("norm", &[4], 0, 0)
        .tensor("weight", &[32, 2], 2, 32)
        .data(32 + 36)
}

#[test]
fn reads_a_small_file() {
    let file = small().open().unwrap();
    assert_eq!(file.version(), 3);
    assert_eq!(file.metadata().str("general.architecture").unwrap(), "llama");
    assert_eq!(file.metadata().strings("tokens").unwrap().collect::<Vec<_>>(), ["a", "é"]);
    assert_eq!(file.metadata().keys().collect::<Vec<_>>(), ["general.architecture", "tokens"]);
    assert_eq!(file.tensors().map(Tensor::name).collect::<Vec<_>>(), ["norm", "weight"]);
    assert_eq!(file.vector("norm").unwrap(), [0.0; 4]);
    let weight = file.matrix("weight").unwrap();
    assert_eq!((weight.rows(), weight.cols(), weight.block_type()), (2, 32, BlockType::Q4_0));
    assert!(matches!(file.matrix("norm"), Err(Error::ShapeMismatch { .. })));
    assert!(matches!(file.vector("weight"), Err(Error::ShapeMismatch { .. })));
    assert!(matches!(file.tensor("head"), Err(Error::MissingTensor { .. })));
}

#[test]
fn reads_version_2() {
    Builder { version: 2, ..small() }.open().unwrap();
}

#[test]
fn rejects_truncation_at_every_byte() {
    let bytes = small().bytes();
    for len in 0..bytes.len() {
        match GgufFile::from_bytes(bytes[..len].to_vec()) {
            Err(Error::NotGguf { .. }) if len < 4 => {}
            Err(Error::CorruptGguf { offset, .. }) if len >= 4 && offset <= bytes.len() as u64 => {}
            other => panic!("{len} bytes: {:?}", other.err()),
        }
    }
}

#[test]
fn rejects_an_empty_file() {
    let path = tempfile::NamedTempFile::new().unwrap();
    assert!(matches!(GgufFile::open(path.path()), Err(Error::NotGguf { .. })));
}

#[test]
fn rejects_another_magic() {
    assert!(matches!(Builder { magic: *b"ggml", ..small() }.refused(), Error::NotGguf { .. }));
}

#[test]
fn rejects_other_versions_by_name() {
    for (version, expected) in [(1, "obsolete"), (3_u32.swap_bytes(), "big-endian"), (4, "version 4"), (0, "version 0")]
    {
        match (Builder { version, ..small() }).refused() {
            Error::NotGguf { reason } => assert!(reason.contains(expected), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn rejects_counts_over_the_limit() {
    Builder { metadata_count: Some(u64::MAX), ..small() }.refused_by_limit("metadata count");
    Builder { tensor_count: Some(u64::MAX), ..small() }.refused_by_limit("tensor count");
}

#[test]
fn rejects_counts_that_the_file_cannot_hold() {
    assert_eq!(Builder { metadata_count: Some(4096), ..small() }.refused_as_corrupt("metadata count is 4096"), 16);
    assert_eq!(Builder { tensor_count: Some(65_536), ..small() }.refused_as_corrupt("tensor count is 65536"), 8);
}

#[test]
fn rejects_strings_over_the_limit_or_the_file() {
    Builder::default().entry("k", 8, &u64::MAX.to_le_bytes()).refused_by_limit("string");
    Builder::default().entry("k", 8, &1000_u64.to_le_bytes()).refused_as_corrupt("string is 1000");
}

#[test]
fn rejects_keys_over_the_limit() {
    Builder::default().entry(&"k".repeat(65_536), 0, &[0]).refused_by_limit("metadata key");
}

#[test]
fn rejects_arrays_over_the_limit_or_the_file() {
    let array = |len: u64| [&4_u32.to_le_bytes()[..], &len.to_le_bytes()].concat();
    Builder::default().entry("k", 9, &array(u64::MAX)).refused_by_limit("array length");
    Builder::default().entry("k", 9, &array(1000)).refused_as_corrupt("array length is 1000");
}

#[test]
fn rejects_arrays_nested_too_deeply() {
    let nested = |depth: usize| {
        let mut value = [9_u32.to_le_bytes().to_vec(), 1_u64.to_le_bytes().to_vec()].concat().repeat(depth - 1);
        value.extend([&0_u32.to_le_bytes()[..], &1_u64.to_le_bytes(), &[7]].concat());
        Builder::default().entry("k", 9, &value)
    };
    nested(4).open().unwrap();
    nested(5).refused_by_limit("array depth");
    nested(10_000).refused_by_limit("array depth");
}

#[test]
fn rejects_invalid_utf8_where_it_is() {
    let value = [&3_u64.to_le_bytes()[..], b"a\xffb"].concat();
    let offset = Builder::default().entry("k", 8, &value).refused_as_corrupt("UTF-8");
    assert_eq!(Builder::default().entry("k", 8, &value).bytes()[offset as usize], 0xff);
    let in_array = [&8_u32.to_le_bytes()[..], &1_u64.to_le_bytes(), &value].concat();
    Builder::default().entry("k", 9, &in_array).refused_as_corrupt("UTF-8");
}

#[test]
fn rejects_unknown_value_types() {
    Builder::default().entry("k", 13, &[0; 8]).refused_as_corrupt("unknown value type 13");
    let array = [&99_u32.to_le_bytes()[..], &0_u64.to_le_bytes()].concat();
    Builder::default().entry("k", 9, &array).refused_as_corrupt("unknown value type 99");
}

#[test]
fn rejects_bools_other_than_0_and_1() {
    Builder::default().entry("k", 7, &[2]).refused_as_corrupt("neither 0 nor 1");
}

#[test]
fn rejects_duplicate_and_empty_names() {
    Builder::default().entry("k", 0, &[1]).entry("k", 0, &[2]).refused_as_corrupt("duplicate metadata key \"k\"");
    Builder::default().entry("", 0, &[1]).refused_as_corrupt("empty metadata key");
    small().tensor("norm", &[1], 0, 96).data(128).refused_as_corrupt("duplicate tensor name \"norm\"");
    small().tensor("", &[1], 0, 96).data(128).refused_as_corrupt("empty tensor name");
}

#[test]
fn rejects_tensor_names_over_the_limit() {
    Builder::default().tensor(&"t".repeat(65), &[1], 0, 0).data(32).refused_by_limit("tensor name");
}

#[test]
fn rejects_dimension_counts() {
    Builder::default().tensor("t", &[1; 5], 0, 0).data(32).refused_by_limit("dimension count");
    Builder::default().tensor("t", &[], 0, 0).data(32).refused_as_corrupt("without dimensions");
}

#[test]
fn rejects_dimensions() {
    Builder::default().tensor("t", &[1 << 31], 0, 0).data(32).refused_by_limit("dimension");
    Builder::default().tensor("t", &[4, 0], 0, 0).data(32).refused_as_corrupt("length 0");
    let huge = u64::from(u32::MAX / 2);
    Builder::default().tensor("t", &[huge, huge, huge], 0, 0).data(32).refused_as_corrupt("overflows");
}

#[test]
fn rejects_unknown_block_types() {
    let refused = Builder::default().tensor("t", &[32], 4, 0).data(32).refused();
    assert!(matches!(refused, Error::UnsupportedBlockType { tensor, block_type: 4 } if tensor == "t"));
}

#[test]
fn rejects_rows_that_are_not_whole_blocks() {
    Builder::default().tensor("t", &[33], 2, 0).data(64).refused_as_corrupt("whole blocks");
}

#[test]
fn rejects_misplaced_tensors() {
    let tensor = |offset| Builder::default().tensor("t", &[8], 0, offset).data(64);
    tensor(32).open().unwrap();
    tensor(8).refused_as_corrupt("not aligned to 32");
    tensor(64).refused_as_corrupt("the file at");
    tensor(u64::MAX - 31).refused_as_corrupt("offset overflows");
}

#[test]
fn rejects_overlapping_tensors() {
    let two = |second| Builder::default().tensor("a", &[16], 0, 0).tensor("b", &[8], 0, second).data(96);
    two(64).open().unwrap();
    two(32).refused_as_corrupt("\"a\" and \"b\" overlap");
    two(0).refused_as_corrupt("overlap");
}

#[test]
fn rejects_bad_alignments() {
    let aligned = |alignment: u32| {
        Builder::default().entry("general.alignment", 4, &alignment.to_le_bytes()).tensor("t", &[8], 0, 0).data(32)
    };
    aligned(32).open().unwrap();
    for alignment in [0, 1, 4, 24, 33, 1 << 17, u32::MAX] {
        assert!(matches!(aligned(alignment).refused(), Error::InvalidMetadata { .. }), "{alignment}");
    }
    let text = Builder::default().entry("general.alignment", 8, &text("32"));
    assert!(matches!(text.refused(), Error::InvalidMetadata { .. }));
}

#[test]
fn typed_values_name_the_key_that_is_missing_or_of_another_type() {
    let file = Builder::default()
        .entry("small", 0, &[7])
        .entry("wide", 10, &9_u64.to_le_bytes())
        .entry("negative", 5, &(-1_i32).to_le_bytes())
        .entry("half", 12, &0.5_f64.to_le_bytes())
        .entry("yes", 7, &[1])
        .entry("empty", 9, &[&4_u32.to_le_bytes()[..], &0_u64.to_le_bytes()].concat())
        .open()
        .unwrap();
    let metadata = file.metadata();
    assert_eq!(metadata.u32("small").unwrap(), 7);
    assert_eq!(metadata.u32("wide").unwrap(), 9);
    assert_eq!(metadata.f32("half").unwrap(), 0.5);
    assert!(metadata.bool("yes").unwrap());
    assert_eq!(metadata.strings("empty").unwrap().len(), 0);
    assert_eq!(metadata.f32s("empty").unwrap(), [0.0; 0]);
    assert_eq!(metadata.opt_u32("absent").unwrap(), None);
    for error in [
        metadata.u32("absent").err(),
        metadata.u32("negative").err(),
        metadata.str("small").err(),
        metadata.f32("small").err(),
        metadata.strings("small").err(),
        metadata.bool("small").err(),
    ] {
        assert!(matches!(error, Some(Error::InvalidMetadata { .. })), "{error:?}");
    }
}

#[test]
fn writer_refuses_what_the_reader_would() {
    let mut writer = GgufWriter::new();
    writer.metadata("k", &Value::U32(1)).unwrap();
    assert!(matches!(writer.metadata("k", &Value::U32(1)), Err(Error::InvalidMetadata { .. })));
    assert!(matches!(writer.metadata("general.alignment", &Value::U32(64)), Err(Error::InvalidMetadata { .. })));
    let bytes = |len: usize| WeightBytes::Owned(vec![0; len].into());
    writer.tensor("t", BlockType::Q4_0, &[2, 32], bytes(36)).unwrap();
    assert!(matches!(writer.tensor("t", BlockType::F32, &[1], bytes(4)), Err(Error::InvalidOption { .. })));
    for (block_type, shape, len) in [
        (BlockType::F32, &[2][..], 4),
        (BlockType::F32, &[], 4),
        (BlockType::F32, &[0], 0),
        (BlockType::Q4_0, &[31], 18),
        (BlockType::F32, &[1; 5], 4),
    ] {
        let refused = writer.tensor("u", block_type, shape, bytes(len)).err();
        assert!(matches!(refused, Some(Error::ShapeMismatch { .. })), "{shape:?}");
    }
}

#[test]
fn copied_metadata_is_equal_byte_for_byte() {
    let original = small().entry("nested", 9, &[&9_u32.to_le_bytes()[..], &0_u64.to_le_bytes()].concat());
    let original = original.entry("general.alignment", 4, &32_u32.to_le_bytes()).open().unwrap();
    let mut writer = GgufWriter::new();
    writer.copy_metadata(&original, &["tokens"]).unwrap();
    let copy = GgufFile::from_bytes(writer.to_bytes()).unwrap();
    assert_eq!(copy.metadata().keys().collect::<Vec<_>>(), ["general.architecture", "nested"]);
    assert_eq!(copy.metadata().str("general.architecture").unwrap(), "llama");
    assert_eq!(copy.metadata().value_type("nested"), Some(ValueType::Array));
}

#[test]
fn a_cancelled_save_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let cancel = CancelToken::new();
    cancel.cancel();
    let saved = GgufWriter::new().save(folder.path().join("model.gguf"), &cancel);
    assert!(matches!(saved, Err(Error::Cancelled)));
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}

fn values() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u32>().prop_map(Value::U32),
        any::<u64>().prop_map(Value::U64),
        any::<i32>().prop_map(Value::I32),
        (-1e9_f32..1e9).prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        ".{0,20}".prop_map(Value::String),
        prop::collection::vec(any::<i32>(), 0..9).prop_map(Value::I32s),
        prop::collection::vec(-1e9_f32..1e9, 0..9).prop_map(Value::F32s),
        prop::collection::vec(any::<bool>(), 0..9).prop_map(Value::Bools),
        prop::collection::vec(".{0,9}", 0..9).prop_map(Value::Strings),
    ]
}

fn read_back(metadata: Metadata, key: &str, like: &Value) -> Value {
    match like {
        Value::U32(_) => Value::U32(metadata.u32(key).unwrap()),
        Value::U64(_) => Value::U64(metadata.opt_u64(key).unwrap().unwrap()),
        Value::I32(_) => Value::I32(metadata.opt_i32(key).unwrap().unwrap()),
        Value::F32(_) => Value::F32(metadata.f32(key).unwrap()),
        Value::Bool(_) => Value::Bool(metadata.bool(key).unwrap()),
        Value::String(_) => Value::String(metadata.str(key).unwrap().to_owned()),
        Value::I32s(_) => Value::I32s(metadata.i32s(key).unwrap()),
        Value::F32s(_) => Value::F32s(metadata.f32s(key).unwrap()),
        Value::Bools(_) => Value::Bools(metadata.opt_bools(key).unwrap().unwrap()),
        Value::Strings(_) => Value::Strings(metadata.strings(key).unwrap().map(str::to_owned).collect()),
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        entries in prop::collection::btree_map("[a-z.]{1,12}", values(), 0..8),
        tensors in prop::collection::btree_map("[a-z.0-9]{1,20}", (0..BlockType::ALL.len(), 1..4_u32, 1..3_u32, any::<u8>()), 0..8),
    ) {
        let mut writer = GgufWriter::new();
        for (key, value) in &entries {
            writer.metadata(key, value).unwrap();
        }
        for (name, (block_type, rows, blocks, byte)) in &tensors {
            let block_type = BlockType::ALL[*block_type];
            let len = (rows * blocks) as usize * block_type.block_size_bytes();
            let shape = [*rows, blocks * block_type.block_len() as u32];
            writer.tensor(name, block_type, &shape, WeightBytes::Owned(vec![*byte; len].into())).unwrap();
        }

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        writer.save(&path, &CancelToken::new()).unwrap();
        let file = GgufFile::open(&path).unwrap();

        prop_assert_eq!(file.metadata().keys().count(), entries.len());
        for (key, value) in &entries {
            prop_assert_eq!(&read_back(file.metadata(), key, value), value);
        }
        prop_assert_eq!(file.tensors().len(), tensors.len());
        for (name, (block_type, rows, _, byte)) in &tensors {
            let matrix = file.matrix(name).unwrap();
            prop_assert_eq!(matrix.rows(), *rows as usize);
            prop_assert_eq!(matrix.block_type(), BlockType::ALL[*block_type]);
            prop_assert!(matrix.bytes().iter().all(|b| b == byte));
        }
        prop_assert_eq!(file.digest(), crate::Digest::of(&std::fs::read(&path).unwrap()));
    }

    #[test]
    fn flipped_bytes_never_panic(position in 0..400_usize, byte in any::<u8>()) {
        let mut bytes = small().bytes();
        let position = position % bytes.len();
        bytes[position] = byte;
        if let Ok(file) = GgufFile::from_bytes(bytes) {
            for tensor in file.tensors() {
                prop_assert!(tensor.bytes().len() <= file.size_bytes());
            }
        }
    }
}
