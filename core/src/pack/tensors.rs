//! Safetensors inside one zstd frame, read strictly.

use std::collections::HashSet;

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::{PackDefect, Precision};
use crate::Result;

/// Compression level: on f16 LoRA values higher levels gain under 1% and cost ten times as long.
const ZSTD_LEVEL: i32 = 9;
/// First bytes of an ordinary (not skippable) zstd frame.
const ZSTD_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();

pub(super) fn compress(tensors: &[u8]) -> Vec<u8> {
    // One thread, and the content size in the frame header: the same input gives the same bytes.
    zstd::bulk::compress(tensors, ZSTD_LEVEL).expect("zstd compresses into a growing buffer")
}

/// Decompresses exactly one frame into exactly `size` bytes; never holds more than that.
pub(crate) fn decompress(frame: &[u8], size: u64) -> Result<Vec<u8>> {
    let invalid = |reason: &str| PackDefect::Frame { reason: reason.into() };
    if frame.get(..4) != Some(&ZSTD_MAGIC) {
        return Err(invalid("not a zstd frame").into());
    }
    if zstd::zstd_safe::find_frame_compressed_size(frame) != Ok(frame.len()) {
        return Err(invalid("not exactly one zstd frame").into());
    }
    if !matches!(zstd::zstd_safe::get_frame_content_size(frame), Ok(Some(actual)) if actual == size) {
        return Err(invalid("the frame's content size is not the manifest's").into());
    }
    let size = usize::try_from(size).map_err(|_| invalid("larger than memory"))?;
    // One call into one buffer: no window is allocated, whatever the frame's header asks for.
    let tensors = zstd::bulk::decompress(frame, size).map_err(|error| invalid(&error.to_string()))?;
    if tensors.len() != size {
        return Err(invalid("shorter than its content size").into());
    }
    Ok(tensors)
}

/// A safetensors file whose names are unique and whose data is contiguous.
pub(super) struct Tensors<'a>(SafeTensors<'a>);

impl<'a> Tensors<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self> {
        reject_duplicates(bytes)?;
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| match error {
            SafeTensorError::InvalidOffset(_)
            | SafeTensorError::TensorInvalidInfo
            | SafeTensorError::MetadataIncompleteBuffer => PackDefect::TensorLayout { reason: error.to_string() },
            other => PackDefect::Safetensors { reason: other.to_string() },
        })?;
        Ok(Self(tensors))
    }

    /// Refuses any tensor that is not in `names`.
    pub(super) fn only(&self, names: &HashSet<String>) -> Result<()> {
        match self.0.names().into_iter().filter(|name| !names.contains(*name)).min() {
            Some(unknown) => Err(PackDefect::UnknownTensor { tensor: unknown.into() }.into()),
            None => Ok(()),
        }
    }

    /// The values of one tensor in f32, all finite and of magnitude at most `limit`.
    pub(super) fn values(&self, name: &str, shape: &[usize], limit: f32) -> Result<Vec<f32>> {
        let tensor = || name.to_string();
        let view = self.0.tensor(name).map_err(|_| PackDefect::MissingTensor { tensor: tensor() })?;
        if view.shape() != shape {
            return Err(PackDefect::TensorShape {
                tensor: tensor(),
                expected: shape.to_vec(),
                actual: view.shape().to_vec(),
            }
            .into());
        }
        let pairs = || view.data().as_chunks::<2>().0.iter();
        let values: Vec<f32> = match view.dtype() {
            Dtype::F32 => view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            Dtype::F16 => pairs().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect(),
            Dtype::BF16 => pairs().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
            other => {
                return Err(PackDefect::TensorType { tensor: tensor(), actual: format!("{other:?}") }.into());
            }
        };
        check_values(name, &values, limit)?;
        Ok(values)
    }
}

pub(super) fn check_values(name: &str, values: &[f32], limit: f32) -> Result<()> {
    match values.iter().find(|value| value.is_nan() || value.abs() > limit) {
        Some(value) if value.is_finite() => {
            Err(PackDefect::ValueRange { tensor: name.into(), value: *value, limit }.into())
        }
        Some(_) => Err(PackDefect::NotFinite { tensor: name.into() }.into()),
        None => Ok(()),
    }
}

/// A tensor to write.
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    dtype: Dtype,
    bytes: Vec<u8>,
}

impl Tensor {
    pub(super) fn new<'a>(
        name: String,
        shape: &[usize],
        values: impl Iterator<Item = &'a f32>,
        precision: Precision,
        limit: f32,
    ) -> Result<Self> {
        let values: Vec<f32> = values.copied().collect();
        check_values(&name, &values, limit)?;
        let (dtype, bytes) = match precision {
            Precision::F32 => (Dtype::F32, values.iter().flat_map(|value| value.to_le_bytes()).collect()),
            Precision::F16 => (Dtype::F16, values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()),
            Precision::Bf16 => (Dtype::BF16, values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()),
        };
        Ok(Self { name, shape: shape.to_vec(), dtype, bytes })
    }
}

/// The safetensors file of `tensors`; the order of the argument does not matter.
pub(super) fn write(tensors: &[Tensor]) -> Result<Vec<u8>> {
    let invalid = |error: SafeTensorError| PackDefect::Safetensors { reason: error.to_string() };
    let mut views = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let view = safetensors::tensor::TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes);
        views.push((tensor.name.as_str(), view.map_err(invalid)?));
    }
    Ok(safetensors::serialize(views, None).map_err(invalid)?)
}

/// JSON parsers keep the last of two equal keys, so the header is scanned for names that occur twice.
fn reject_duplicates(bytes: &[u8]) -> Result<()> {
    let invalid = |reason: String| PackDefect::Safetensors { reason };
    let length = bytes.get(..8).and_then(|length| length.try_into().ok()).map(u64::from_le_bytes);
    let header = length
        .and_then(|length| usize::try_from(length).ok())
        .and_then(|length| bytes.get(8..)?.get(..length))
        .ok_or_else(|| invalid("the header's length is more than the file".into()))?;
    let mut duplicate = None;
    serde_json::Deserializer::from_slice(header)
        .deserialize_map(Names(&mut duplicate))
        .map_err(|error| invalid(error.to_string()))?;
    match duplicate {
        Some(tensor) => Err(PackDefect::DuplicateTensor { tensor }.into()),
        None => Ok(()),
    }
}

struct Names<'a>(&'a mut Option<String>);

impl<'de> Visitor<'de> for Names<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a safetensors header")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        let mut seen = HashSet::new();
        while let Some((name, _)) = map.next_entry::<String, IgnoredAny>()? {
            if let Some(twice) = seen.replace(name) {
                self.0.get_or_insert(twice);
            }
        }
        Ok(())
    }
}
