use std::io::Write;
use std::path::Path;

use super::file::GgufFile;
use super::limits::ALIGNMENT_DEFAULT;
use super::value::{Value, string};
use crate::atomic_file::write_atomically;
use crate::quant::{BlockType, WeightBytes};
use crate::{CancelToken, Error, Result};

/// Bytes written between two looks at the [`CancelToken`].
const PIECE_BYTES: usize = 4 << 20;

/// Collects metadata and tensors, then writes them as a GGUF version 3 file. Tensor bytes are shared, not copied.
#[derive(Default)]
pub struct GgufWriter {
    keys: Vec<String>,
    metadata: Vec<u8>,
    tensors: Vec<PlannedTensor>,
}

struct PlannedTensor {
    name: String,
    block_type: BlockType,
    shape: Vec<u32>,
    bytes: WeightBytes,
}

impl GgufWriter {
    /// A writer for an empty file.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a metadata entry.
    ///
    /// # Errors
    /// [`Error::InvalidMetadata`] for an empty or repeated key, and for `general.alignment`: tensors are always
    /// aligned to 32 bytes.
    pub fn metadata(&mut self, key: &str, value: &Value) -> Result<&mut Self> {
        self.add_key(key)?;
        value.write(&mut self.metadata);
        Ok(self)
    }

    /// Appends all metadata of `file`, byte for byte, except `general.alignment` and the keys in `except`.
    ///
    /// # Errors
    /// [`Error::InvalidMetadata`] for a repeated key.
    pub fn copy_metadata(&mut self, file: &GgufFile, except: &[&str]) -> Result<&mut Self> {
        let (layout, bytes) = (file.layout(), file.bytes());
        for (index, entry) in layout.entries.iter().enumerate() {
            let key = entry.key.read(bytes);
            if key == "general.alignment" || except.contains(&key) {
                continue;
            }
            self.add_key(key)?;
            let end = layout.entries.get(index + 1).map_or(layout.metadata_end, |next| next.start());
            // The value's type is the 4 bytes before it.
            self.metadata.extend(&bytes[entry.value_at as usize - 4..end]);
        }
        Ok(self)
    }

    fn add_key(&mut self, key: &str) -> Result<()> {
        let refused = match key {
            "" => Some("empty key"),
            "general.alignment" => Some("the writer aligns to 32 bytes and does not say so in the file"),
            _ if self.keys.iter().any(|other| other == key) => Some("given twice"),
            _ => None,
        };
        if let Some(reason) = refused {
            return Err(Error::InvalidMetadata { key: key.to_owned(), reason: reason.to_owned() });
        }
        self.keys.push(key.to_owned());
        string(&mut self.metadata, key);
        Ok(())
    }

    /// Appends a tensor; `shape` is row-major, 1 to 4 dimensions.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if `bytes` is not what the shape needs; [`Error::InvalidOption`] for a repeated
    /// name or one that is empty or longer than 64 bytes.
    pub fn tensor(
        &mut self,
        name: &str,
        block_type: BlockType,
        shape: &[u32],
        bytes: WeightBytes,
    ) -> Result<&mut Self> {
        if name.is_empty() || name.len() > 64 || self.tensors.iter().any(|other| other.name == name) {
            let reason = format!("{name:?} is empty, too long or given twice");
            return Err(Error::InvalidOption { option: "name", reason });
        }
        let size = match shape {
            [rows @ .., cols] if rows.len() < 4 => rows
                .iter()
                .try_fold(block_type.row_size_bytes(*cols as usize), |size, rows| {
                    Some(size.and_then(|size| size.checked_mul(*rows as usize)))
                })
                .flatten(),
            _ => None,
        };
        if size != Some(bytes.len()) || bytes.is_empty() {
            return Err(Error::ShapeMismatch {
                tensor: format!("{name} {block_type} {shape:?}"),
                expected: vec![size.unwrap_or(0)],
                actual: vec![bytes.len()],
            });
        }
        self.tensors.push(PlannedTensor { name: name.to_owned(), block_type, shape: shape.to_vec(), bytes });
        Ok(self)
    }

    /// Saves the file: a temporary sibling is written, synced and renamed, so a kill at any moment leaves the
    /// old file or the new one.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Cancelled`]; `path` is then as it was.
    pub fn save(&self, path: impl AsRef<Path>, cancel: &CancelToken) -> Result<()> {
        let path = path.as_ref();
        write_atomically(path, |file| self.write(file, cancel, Error::io(path)))
    }

    /// The file as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out, &CancelToken::new(), Error::io("memory")).expect("memory accepts every write");
        out
    }

    fn write(
        &self,
        out: &mut impl Write,
        cancel: &CancelToken,
        io: impl FnOnce(std::io::Error) -> Error,
    ) -> Result<()> {
        let mut header = Vec::with_capacity(self.metadata.len() + self.tensors.len() * 128);
        header.extend(b"GGUF");
        header.extend(3_u32.to_le_bytes());
        header.extend((self.tensors.len() as u64).to_le_bytes());
        header.extend((self.keys.len() as u64).to_le_bytes());
        header.extend(&self.metadata);
        let mut data_at = 0_u64;
        for tensor in &self.tensors {
            string(&mut header, &tensor.name);
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            for length in tensor.shape.iter().rev() {
                header.extend(u64::from(*length).to_le_bytes());
            }
            header.extend(tensor.block_type.ggml_number().to_le_bytes());
            header.extend(data_at.to_le_bytes());
            data_at += (tensor.bytes.len() as u64).next_multiple_of(ALIGNMENT_DEFAULT);
        }
        let parts = std::iter::once(&header[..]).chain(self.tensors.iter().map(|tensor| &*tensor.bytes));
        for part in parts {
            let padding = part.len().next_multiple_of(ALIGNMENT_DEFAULT as usize) - part.len();
            for piece in part.chunks(PIECE_BYTES).chain(std::iter::once(&[0; ALIGNMENT_DEFAULT as usize][..padding])) {
                cancel.check()?;
                if let Err(error) = out.write_all(piece) {
                    return Err(io(error));
                }
            }
        }
        Ok(())
    }
}
