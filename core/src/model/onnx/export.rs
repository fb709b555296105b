//! Writing a model as an ONNX graph.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use prost::Message;

use super::folder::{ACTIVATIONS_KEY, DATA_FILE, GRAPH_FILE, MODEL_DIGEST_KEY, MODEL_FILE, POSITIONS_KEY};
use super::graph::{Data, Graph, Initializer};
use super::proto::{Entry, Tensor};
use super::side_path::PairInputs;
use super::weight::{self, Part};
use super::{Activations, Onnx, record};
use crate::atomic_file::write_atomically;
use crate::gguf::GgufFile;
use crate::model::config::Config;
use crate::model::decoder::Decoder;
use crate::{CancelToken, Error, Result};

/// Positions that a graph is for unless asked otherwise, at most the model's own: their rotation tables are constants.
const DEFAULT_POSITIONS: usize = 4_096;
/// Constants begin at multiples of this, so that ONNX Runtime maps them in place.
const ALIGNMENT: u64 = 64;

/// How a model is exported.
#[derive(Clone, Debug, Default)]
pub struct ExportOptions {
    /// Longest context of the graph in tokens; `None` takes the model's own, up to 4,096.
    pub context_length: Option<usize>,
    /// How products see their input.
    pub activations: Activations,
    /// Writes the graph's inputs for a pack's pairs too, so that other programs run the folder with an exported adapter.
    /// Sessions of this library have these inputs whenever they need them.
    pub side_path: bool,
    /// Stops the export from another thread.
    pub cancel: CancelToken,
}

/// What an export wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Longest context of the graph in tokens.
    pub context_length: usize,
    /// Bytes of the constants.
    pub data_size_bytes: u64,
}

/// Writes the model file at `model` as an ONNX graph into `folder`, in the layout of onnxruntime-genai:
/// `model.onnx`, its constants, `genai_config.json`, and the model file itself (a hard link where that is possible).
///
/// Every block type is taken over exactly. Each file appears whole or not at all, the graph last.
///
/// # Errors
/// Those of [`GgufFile::open`] and [`Decoder::load`]; [`Error::InvalidOption`]; [`Error::Io`]; [`Error::Cancelled`].
pub fn export_onnx(model: impl AsRef<Path>, folder: impl AsRef<Path>, options: &ExportOptions) -> Result<Exported> {
    let (model, folder) = (model.as_ref(), folder.as_ref());
    let file = GgufFile::open(model)?;
    let decoder =
        Decoder::load(&file, Arc::new(Onnx::recording(options.activations)), &options.cancel, &mut |_, _| ())?;
    let trained = decoder.config.context_length;
    let positions = options.context_length.unwrap_or(trained.min(DEFAULT_POSITIONS));
    if !(1..=trained).contains(&positions) {
        let reason = format!("{positions} is not between 1 and the model's {trained}");
        return Err(Error::InvalidOption { option: "context_length", reason });
    }
    let graph = record::record(&decoder, positions, options.side_path.then_some(PairInputs::Tensors))?;
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let metadata = [
        (MODEL_DIGEST_KEY, file.digest().to_string()),
        (POSITIONS_KEY, positions.to_string()),
        (ACTIVATIONS_KEY, options.activations.name().to_owned()),
    ];
    let (bytes, data_size_bytes) = write_data(graph, &metadata, &folder.join(DATA_FILE), &options.cancel)?;
    place_model(model, &folder.join(MODEL_FILE))?;
    let config = genai_config(&file, &decoder.config, positions)?;
    write(&folder.join("genai_config.json"), &config)?;
    write(&folder.join(GRAPH_FILE), &bytes)?;
    Ok(Exported { context_length: positions, data_size_bytes })
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(path, |file| file.write_all(bytes).map_err(Error::io(path)))
}

/// Writes the constants; the encoded graph and the constants' bytes.
fn write_data(graph: Graph, metadata: &[(&str, String)], path: &Path, cancel: &CancelToken) -> Result<(Vec<u8>, u64)> {
    let mut result = (Vec::new(), 0);
    write_atomically(path, |file| {
        let mut data = DataFile { file, end: 0, weights: HashMap::new() };
        let model = graph.into_model(metadata, |initializer| {
            cancel.check()?;
            data.append(initializer).map_err(Error::io(path))
        })?;
        result = (model.encode_to_vec(), data.end);
        Ok(())
    })?;
    Ok(result)
}

struct DataFile<'a> {
    file: &'a mut BufWriter<File>,
    end: u64,
    /// Offset and length of what is written, so that an embedding table that is the head too is written once.
    weights: HashMap<(Vec<*const u8>, Part), (u64, u64)>,
}

impl DataFile<'_> {
    fn append(&mut self, initializer: &Initializer) -> io::Result<Tensor> {
        let key = match &initializer.data {
            Data::Weight(matrices, part) => {
                Some((matrices.iter().map(|matrix| matrix.bytes().as_ptr()).collect(), *part))
            }
            _ => None,
        };
        let (offset, length) = match key.as_ref().and_then(|key| self.weights.get(key)) {
            Some(place) => *place,
            None => {
                let offset = self.end.next_multiple_of(ALIGNMENT);
                self.file.write_all(&vec![0; (offset - self.end) as usize])?;
                let mut counted = Counted { file: &mut *self.file, count: 0 };
                match &initializer.data {
                    Data::Weight(matrices, part) => {
                        matrices.iter().try_for_each(|matrix| weight::write(matrix, *part, &mut counted))?;
                    }
                    Data::External(bytes) | Data::Inline(bytes) => counted.write_all(bytes)?,
                }
                let length = counted.count;
                self.end = offset + length;
                if let Some(key) = key {
                    self.weights.insert(key, (offset, length));
                }
                (offset, length)
            }
        };
        let entries =
            [("location", DATA_FILE.to_owned()), ("offset", offset.to_string()), ("length", length.to_string())];
        Ok(Tensor {
            dims: initializer.dims.clone(),
            data_type: initializer.element.into(),
            name: initializer.name.clone(),
            external_data: entries.map(|(key, value)| Entry { key: key.to_owned(), value }).to_vec(),
            data_location: Some(1),
            ..Tensor::default()
        })
    }
}

struct Counted<'a> {
    file: &'a mut BufWriter<File>,
    count: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.count += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Puts the model file into the folder: a hard link, or a copy where the file system has none.
fn place_model(model: &Path, target: &Path) -> Result<()> {
    let same = |a: &Path, b: &Path| Some(a.canonicalize().ok()? == b.canonicalize().ok()?);
    if same(model, target) == Some(true) {
        return Ok(());
    }
    match std::fs::remove_file(target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io(target)(error)),
        _ => {}
    }
    if std::fs::hard_link(model, target).is_ok() {
        return Ok(());
    }
    write_atomically(target, |file| {
        let mut source = File::open(model).map_err(Error::io(model))?;
        io::copy(&mut source, file).map(|_| ()).map_err(Error::io(target))
    })
}

/// What onnxruntime-genai needs to know to run the folder.
fn genai_config(file: &GgufFile, config: &Config, positions: usize) -> Result<Vec<u8>> {
    let attention = &config.attention[0];
    let metadata = file.metadata();
    let id = |key: &str| metadata.opt_u32(&format!("tokenizer.ggml.{key}_token_id"));
    let end = id("eos")?.unwrap_or(0);
    let value = serde_json::json!({
        "model": {
            "bos_token_id": id("bos")?.unwrap_or(end),
            "eos_token_id": end,
            "pad_token_id": id("padding")?.unwrap_or(end),
            "context_length": positions,
            "vocab_size": config.vocab_size,
            "type": config.family.genai_type(),
            "decoder": {
                "session_options": { "log_id": "onnxruntime-genai", "provider_options": [] },
                "filename": GRAPH_FILE,
                "head_size": attention.head_dim,
                "hidden_size": config.hidden_size,
                "num_attention_heads": attention.head_count,
                "num_hidden_layers": config.layer_count(),
                "num_key_value_heads": attention.kv_head_count,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": false,
            "max_length": positions,
            "past_present_share_buffer": true,
            "num_beams": 1,
        },
    });
    Ok(serde_json::to_vec_pretty(&value).expect("JSON values serialise"))
}
