use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use memmap2::Mmap;

use super::metadata::Metadata;
use super::parse::{Layout, TensorEntry, parse};
use crate::quant::{BlockType, QMatrix, WeightBytes};
use crate::{Digest, Error, Result};

/// An open GGUF file: its structure checked, its bytes memory-mapped. Clones share it.
///
/// # Why mapping is sound enough
/// The map is private and read-only, so pages stay clean and this process cannot change them. Another process
/// that writes to the file while it is open can change the weights under us, and one that shortens it can raise
/// `SIGBUS`: mapping has no defence against that on any system, which is why model files are replaced by rename,
/// never written in place (as [`GgufWriter`](super::GgufWriter) does). Within that, nothing here relies on bytes
/// that were checked earlier: names and values are bounds- and UTF-8-checked again on every read, and all bit
/// patterns are valid weights.
#[derive(Clone)]
pub struct GgufFile {
    inner: Arc<Inner>,
}

struct Inner {
    source: Source,
    layout: Layout,
    digest: OnceLock<Digest>,
}

enum Source {
    Mapped(Arc<Mmap>),
    Owned(Vec<u8>),
}

/// A tensor in a [`GgufFile`].
#[derive(Clone, Copy)]
pub struct Tensor<'a> {
    file: &'a GgufFile,
    entry: &'a TensorEntry,
}

impl GgufFile {
    /// Maps the file at `path` and checks its whole structure; takes milliseconds, reads no weights.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NotGguf`], [`Error::CorruptGguf`], [`Error::LimitExceeded`],
    /// [`Error::UnsupportedBlockType`], [`Error::InvalidMetadata`] (a bad `general.alignment`).
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(Error::io(path))?;
        if file.metadata().map_err(Error::io(path))?.len() == 0 {
            return Err(Error::NotGguf { reason: "the file is empty".to_owned() });
        }
        // SAFETY: the map is private and read-only; see the type's documentation for what another process can do.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
        Self::new(Source::Mapped(Arc::new(map)))
    }

    /// Reads a file that is in memory.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::new(Source::Owned(bytes))
    }

    fn new(source: Source) -> Result<Self> {
        let layout = parse(source.bytes())?;
        Ok(Self { inner: Arc::new(Inner { source, layout, digest: OnceLock::new() }) })
    }

    /// Format version of the file, 2 or 3.
    pub fn version(&self) -> u32 {
        self.inner.layout.version
    }

    /// Size of the file.
    pub fn size_bytes(&self) -> usize {
        self.bytes().len()
    }

    /// The metadata.
    pub fn metadata(&self) -> Metadata<'_> {
        Metadata { file: self }
    }

    /// All tensors, in file order.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = Tensor<'_>> {
        self.inner.layout.tensors.iter().map(|entry| Tensor { file: self, entry })
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// [`Error::MissingTensor`]
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        self.opt_tensor(name).ok_or_else(|| Error::MissingTensor { tensor: name.to_owned() })
    }

    /// The tensor called `name`, if the file has it.
    pub fn opt_tensor(&self, name: &str) -> Option<Tensor<'_>> {
        let Layout { tensors, tensors_by_name, .. } = &self.inner.layout;
        let name_at = |position: &u32| tensors[*position as usize].name.read(self.bytes());
        let found = tensors_by_name.binary_search_by_key(&name, name_at).ok()?;
        Some(Tensor { file: self, entry: &tensors[tensors_by_name[found] as usize] })
    }

    /// The 2-D tensor called `name`, sharing the map; `[rows, cols]` row-major.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::ShapeMismatch`] if it is not 2-D.
    pub fn matrix(&self, name: &str) -> Result<QMatrix> {
        let tensor = self.tensor(name)?;
        let [rows, cols] = *tensor.shape() else { return Err(tensor.wrong_shape(2)) };
        QMatrix::new(tensor.weight_bytes(), tensor.block_type(), rows as usize, cols as usize)
    }

    /// The 1-D tensor called `name`, dequantised.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::ShapeMismatch`] if it is not 1-D.
    pub fn vector(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.tensor(name)?;
        let [len] = *tensor.shape() else { return Err(tensor.wrong_shape(1)) };
        let mut values = vec![0.0; len as usize];
        match tensor.block_type() {
            BlockType::F32 => fill(&mut values, tensor.bytes(), f32::from_le_bytes),
            BlockType::F16 => fill(&mut values, tensor.bytes(), |bits| half::f16::from_le_bytes(bits).to_f32()),
            BlockType::BF16 => fill(&mut values, tensor.bytes(), |bits| half::bf16::from_le_bytes(bits).to_f32()),
            other => {
                let tensor = name.to_owned();
                return Err(Error::UnsupportedBlockType { tensor, block_type: other.ggml_number() });
            }
        }
        Ok(values)
    }

    /// SHA-256 of the whole file. The first call reads all of it (about a second per 1 to 2 GB); later ones are
    /// free.
    pub fn digest(&self) -> Digest {
        *self.inner.digest.get_or_init(|| Digest::of(self.bytes()))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.inner.source.bytes()
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.inner.layout
    }
}

impl Source {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

impl<'a> Tensor<'a> {
    /// The tensor's name, such as `blk.0.ffn_gate.weight`.
    pub fn name(self) -> &'a str {
        self.entry.name.read(self.file.bytes())
    }

    /// How the weights are stored.
    pub fn block_type(self) -> BlockType {
        self.entry.block_type
    }

    /// Row-major shape: the dimension that is contiguous in memory comes last (the file lists it first).
    pub fn shape(self) -> &'a [u32] {
        &self.entry.shape[..self.entry.dimension_count as usize]
    }

    /// The blocks, row by row.
    pub fn bytes(self) -> &'a [u8] {
        &self.file.bytes()[self.range()]
    }

    /// The blocks, sharing the map; a copy if the file is in memory.
    pub fn weight_bytes(self) -> WeightBytes {
        match &self.file.inner.source {
            Source::Mapped(map) => WeightBytes::Mapped { file: Arc::clone(map), range: self.range() },
            Source::Owned(bytes) => WeightBytes::Owned(bytes[self.range()].into()),
        }
    }

    fn range(self) -> Range<usize> {
        let start = self.entry.data_at as usize;
        // `parse` refused every tensor whose size is not a number of bytes in the file.
        start..start + self.entry.size_bytes().unwrap_or(0) as usize
    }

    fn wrong_shape(self, dimensions: usize) -> Error {
        Error::ShapeMismatch {
            tensor: self.name().to_owned(),
            expected: vec![0; dimensions],
            actual: self.shape().iter().map(|length| *length as usize).collect(),
        }
    }
}

fn fill<const N: usize>(values: &mut [f32], bytes: &[u8], read: impl Fn([u8; N]) -> f32) {
    for (value, bits) in values.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *value = read(*bits);
    }
}
