//! A folder with an exported graph, checked before ONNX Runtime sees any of it.

use std::collections::{HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

use prost::Message;

use super::Activations;
use super::graph::Initializer;
use super::proto::{DataType, Model, Tensor};
use crate::gguf::GgufFile;
use crate::model::GraphDefect;
use crate::{Digest, Error, Result};

/// The graph.
pub(super) const GRAPH_FILE: &str = "model.onnx";
/// Its constants.
pub(super) const DATA_FILE: &str = "model.onnx.data";
/// The model file the graph was made from: tokenizer, template, configuration, and the weights that a merge reads.
pub(super) const MODEL_FILE: &str = "model.gguf";
/// Graph metadata: digest of the model file, and positions the graph is for.
pub(super) const MODEL_DIGEST_KEY: &str = "edgeweld.model_digest";
pub(super) const POSITIONS_KEY: &str = "edgeweld.positions";
/// Graph metadata: the name of its [`Activations`].
pub(super) const ACTIVATIONS_KEY: &str = "edgeweld.activations";

/// Largest graph file: constants lie beside it, so a graph of a thousand layers stays below.
const GRAPH_BYTES_MAX: u64 = 64 << 20;
/// The newest opset of the standard domain that ONNX Runtime 1.22 runs.
const OPSET_MAX: i64 = 23;

/// A checked folder.
pub(super) struct Folder {
    pub(super) path: PathBuf,
    pub(super) graph: Model,
    /// Constants that are kept beside the graph, by name.
    external: HashMap<String, usize>,
}

impl Folder {
    /// Reads the graph and checks that what it refers to is in the folder.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::InvalidGraph`], [`Error::LimitExceeded`].
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = path.join(GRAPH_FILE);
        let size = std::fs::metadata(&file).map_err(Error::io(&file))?.len();
        if size > GRAPH_BYTES_MAX {
            return Err(Error::LimitExceeded { what: "bytes of the graph", actual: size, limit: GRAPH_BYTES_MAX });
        }
        let bytes = std::fs::read(&file).map_err(Error::io(&file))?;
        let invalid = |reason| Error::InvalidGraph { path: file.clone(), reason };
        let graph = Model::decode(&bytes[..]).map_err(|error| invalid(not_onnx(&error.to_string())))?;
        check_opsets(&graph).map_err(invalid)?;
        let mut external = HashMap::new();
        let Some(contents) = &graph.graph else { return Err(invalid(not_onnx("it has no graph"))) };
        for (index, tensor) in contents.initializer.iter().enumerate() {
            if tensor.data_location == Some(1) || !tensor.external_data.is_empty() {
                check_external(path, tensor).map_err(invalid)?;
                external.insert(tensor.name.clone(), index);
            }
        }
        let path = std::path::absolute(path).map_err(Error::io(path))?;
        Ok(Self { path, graph, external })
    }

    /// Checks that the graph has the inputs and outputs by which it is run.
    ///
    /// # Errors
    /// [`Error::InvalidGraph`]
    pub(super) fn check_names(&self, inputs: &[String], outputs: &[String]) -> Result<()> {
        let graph = self.graph.graph.as_ref();
        let names = |values: Option<&Vec<super::proto::ValueInfo>>| -> HashSet<String> {
            values.into_iter().flatten().map(|value| value.name.clone()).collect()
        };
        let (has_input, has_output) = (names(graph.map(|graph| &graph.input)), names(graph.map(|graph| &graph.output)));
        if let Some(name) = inputs.iter().find(|name| !has_input.contains(*name)) {
            return Err(self.invalid(GraphDefect::MissingInput { name: name.clone() }));
        }
        if let Some(name) = outputs.iter().find(|name| !has_output.contains(*name)) {
            return Err(self.invalid(GraphDefect::MissingOutput { name: name.clone() }));
        }
        Ok(())
    }

    /// A number of the graph's metadata.
    ///
    /// # Errors
    /// [`Error::InvalidGraph`] if it is missing or no number.
    pub(super) fn number(&self, key: &str) -> Result<u64> {
        self.entry(key, |value| value.parse().ok())
    }

    /// Checks that the graph was made from the model file beside it, by its digest: a merge starts from its weights.
    ///
    /// # Errors
    /// [`Error::InvalidGraph`]
    pub(super) fn check_model(&self, file: &GgufFile) -> Result<()> {
        let expected = self.entry(MODEL_DIGEST_KEY, |value| value.parse::<Digest>().ok())?;
        let actual = file.digest();
        if expected != actual {
            return Err(self.invalid(GraphDefect::OtherModel { expected, actual }));
        }
        Ok(())
    }

    /// How the graph's products see their input.
    ///
    /// # Errors
    /// [`Error::InvalidGraph`] if the metadata does not say.
    pub(super) fn activations(&self) -> Result<Activations> {
        self.entry(ACTIVATIONS_KEY, |value| Activations::ALL.into_iter().find(|known| known.name() == value))
    }

    fn entry<T>(&self, key: &str, read: impl FnOnce(&str) -> Option<T>) -> Result<T> {
        let entry = self.graph.metadata.iter().find(|entry| entry.key == key);
        entry.and_then(|entry| read(&entry.value)).ok_or_else(|| {
            let reason = "is missing or unknown: the graph was not exported by this version of the library".to_owned();
            self.invalid(GraphDefect::Configuration { key: key.to_owned(), reason })
        })
    }

    /// Where a constant of a recorded graph lies.
    ///
    /// # Errors
    /// [`Error::InvalidGraph`] if the folder has no such constant, or another type or shape of it.
    pub(super) fn place(&self, wanted: &Initializer) -> Result<Tensor> {
        let wrong = |reason: String| self.invalid(GraphDefect::WrongConstant { name: wanted.name.clone(), reason });
        let index = self.external.get(&wanted.name).ok_or_else(|| wrong("missing".to_owned()))?;
        let tensor = &self.graph.graph.as_ref().expect("checked in `open`").initializer[*index];
        if tensor.dims != wanted.dims || tensor.data_type != i32::from(wanted.element) {
            return Err(wrong(format!(
                "type {} of shape {:?}, expected {:?}",
                tensor.data_type, tensor.dims, wanted.dims
            )));
        }
        Ok(tensor.clone())
    }

    pub(super) fn invalid(&self, reason: GraphDefect) -> Error {
        Error::InvalidGraph { path: self.path.join(GRAPH_FILE), reason }
    }
}

fn not_onnx(reason: &str) -> GraphDefect {
    GraphDefect::NotOnnx { reason: reason.to_owned() }
}

fn check_opsets(graph: &Model) -> Result<(), GraphDefect> {
    for opset in &graph.opset_import {
        let supported = if opset.domain.is_empty() || opset.domain == "ai.onnx" { OPSET_MAX } else { 1 };
        if !(1..=supported).contains(&opset.version) {
            let (domain, version) = (opset.domain.clone(), opset.version);
            return Err(GraphDefect::UnsupportedOpset { domain, version, supported });
        }
    }
    if graph.opset_import.is_empty() { Err(not_onnx("it names no opset")) } else { Ok(()) }
}

/// The data must lie in a file directly or deeper in the folder, and be as long as the type and shape say.
fn check_external(folder: &Path, tensor: &Tensor) -> Result<(), GraphDefect> {
    let name = tensor.name.clone();
    let entry = |key: &str| tensor.external_data.iter().find(|entry| entry.key == key).map(|entry| &entry.value[..]);
    let wrong = |reason: &str| GraphDefect::WrongConstant { name: tensor.name.clone(), reason: reason.to_owned() };
    let location = entry("location").ok_or_else(|| wrong("has no location"))?.to_owned();
    let outside = || GraphDefect::OutsideFolder { name: tensor.name.clone(), location: location.clone() };
    let relative = Path::new(&location);
    if location.is_empty() || !relative.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(outside());
    }
    // A link may lead anywhere.
    let file = folder.join(relative).canonicalize().map_err(|error| wrong(&format!("{location:?}: {error}")))?;
    let folder = folder.canonicalize().map_err(|error| wrong(&error.to_string()))?;
    if !file.starts_with(&folder) {
        return Err(outside());
    }
    let actual = std::fs::metadata(&file).map_err(|error| wrong(&error.to_string()))?.len();
    let number = |key: &str| match entry(key) {
        Some(text) => text.parse::<u64>().map_err(|_| wrong(&format!("{key} is {text:?}"))),
        None => Ok(0),
    };
    let offset = number("offset")?;
    let size = size_bytes(tensor).ok_or_else(|| wrong("has an unknown type or no sensible shape"))?;
    if entry("length").is_some() && number("length")? != size {
        return Err(wrong(&format!("has {} bytes, its shape needs {size}", number("length")?)));
    }
    let end = offset.checked_add(size).ok_or_else(|| wrong("its offset overflows"))?;
    if end > actual {
        return Err(GraphDefect::TooShort { name, location, end, actual });
    }
    Ok(())
}

/// Bytes of the data; `None` for types that external data here does not have.
fn size_bytes(tensor: &Tensor) -> Option<u64> {
    let element = match tensor.data_type {
        2 | 3 | 9 => 1,
        4 | 5 | 10 | 16 => 2,
        1 | 6 | 12 => 4,
        7 | 11 | 13 => 8,
        // 4-bit types, two in a byte.
        21 | 22 => {
            let count = count(tensor)?;
            return Some(count.div_ceil(2));
        }
        _ => return None,
    };
    debug_assert!(tensor.data_type != i32::from(DataType::Undefined));
    count(tensor)?.checked_mul(element)
}

fn count(tensor: &Tensor) -> Option<u64> {
    tensor.dims.iter().try_fold(1_u64, |count, extent| count.checked_mul(u64::try_from(*extent).ok()?))
}
