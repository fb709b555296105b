//! A folder with an exported graph, checked before ONNX Runtime sees any of it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::path::{Component, Path, PathBuf};

use memmap2::Mmap;
use prost::Message;

use super::Activations;
use super::graph::Initializer;
use super::proto::{DataType, Graph, Model, Node, SparseTensor, Tensor};
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

/// Largest graph file, which is protobuf's own limit: small models have their constants inside.
const GRAPH_BYTES_MAX: u64 = 2 << 30;
/// The newest opset of the standard domain that ONNX Runtime 1.22 runs.
const OPSET_MAX: i64 = 23;

/// A checked folder.
pub(super) struct Folder {
    pub(super) path: PathBuf,
    /// The graph's file in it.
    file: String,
    /// The file's bytes.
    pub(super) bytes: Vec<u8>,
    pub(super) model: Model,
    /// Constants that are kept beside the graph, by name.
    external: HashMap<String, usize>,
    /// Files that they lie in, relative to the folder.
    locations: BTreeSet<String>,
}

/// A file that constants lie in, mapped.
pub(super) struct DataFile {
    /// Relative to the folder.
    pub(super) name: String,
    map: Mmap,
}

impl DataFile {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }
}

impl Folder {
    /// Reads the graph in `file` and checks that what it refers to is in the folder.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::InvalidGraph`], [`Error::LimitExceeded`].
    pub(super) fn open(path: &Path, file: &str) -> Result<Self> {
        let full = path.join(file);
        let invalid = |reason| Error::InvalidGraph { path: full.clone(), reason };
        if !is_inside(file) {
            let (name, location) = ("the graph".to_owned(), file.to_owned());
            return Err(invalid(GraphDefect::OutsideFolder { name, location }));
        }
        let size = std::fs::metadata(&full).map_err(Error::io(&full))?.len();
        if size > GRAPH_BYTES_MAX {
            return Err(Error::LimitExceeded { what: "bytes of the graph", actual: size, limit: GRAPH_BYTES_MAX });
        }
        let bytes = std::fs::read(&full).map_err(Error::io(&full))?;
        let model = Model::decode(&bytes[..]).map_err(|error| invalid(not_onnx(&error.to_string())))?;
        check_opsets(&model).map_err(invalid)?;
        let Some(graph) = &model.graph else { return Err(invalid(not_onnx("it has no graph"))) };
        let mut locations = BTreeSet::new();
        let mut check = |tensor: &Tensor| {
            if is_external(tensor) {
                locations.insert(check_external(path, tensor)?);
            }
            Ok(())
        };
        each_tensor(graph, &mut check).map_err(invalid)?;
        model.function.iter().try_for_each(|function| tensors_of_nodes(&function.node, &mut check)).map_err(invalid)?;
        let external = graph.initializer.iter().enumerate().filter(|(_, tensor)| is_external(tensor));
        let external = external.map(|(index, tensor)| (tensor.name.clone(), index)).collect();
        let path = std::path::absolute(path).map_err(Error::io(path))?;
        Ok(Self { path, file: file.to_owned(), bytes, model, external, locations })
    }

    pub(super) fn graph(&self) -> &Graph {
        self.model.graph.as_ref().expect("checked in `open`")
    }

    /// The files that constants lie in, in order of their names.
    ///
    /// # Errors
    /// [`Error::Io`]
    pub(super) fn data_files(&self) -> Result<Vec<DataFile>> {
        let map = |name: &String| {
            let path = self.path.join(name);
            let file = File::open(&path).map_err(Error::io(&path))?;
            // SAFETY: the map is private and read-only. Another process that changes the file changes the model, as it does
            // for ONNX Runtime, which maps it too; one that cuts it off stops this process.
            let map = unsafe { Mmap::map(&file) }.map_err(Error::io(&path))?;
            Ok(DataFile { name: name.clone(), map })
        };
        self.locations.iter().map(map).collect()
    }

    /// Checks that the graph has the inputs and outputs by which it is run.
    ///
    /// # Errors
    /// [`Error::InvalidGraph`]
    pub(super) fn check_names(&self, inputs: &[String], outputs: &[String]) -> Result<()> {
        let names = |values: &[super::proto::ValueInfo]| -> HashSet<String> {
            values.iter().map(|value| value.name.clone()).collect()
        };
        let (has_input, has_output) = (names(&self.graph().input), names(&self.graph().output));
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
        let entry = self.model.metadata.iter().find(|entry| entry.key == key);
        entry.and_then(|entry| read(&entry.value)).ok_or_else(|| {
            let reason = "is missing or unknown: the graph was not exported by this version of the library".to_owned();
            self.invalid(GraphDefect::Configuration { key: key.to_owned(), reason })
        })
    }

    /// Whether a constant lies beside the graph.
    pub(super) fn has(&self, name: &str) -> bool {
        self.external.contains_key(name)
    }

    /// Where a constant of a recorded graph lies.
    ///
    /// # Errors
    /// [`Error::InvalidGraph`] if the folder has no such constant, or another type or shape of it.
    pub(super) fn place(&self, wanted: &Initializer) -> Result<Tensor> {
        let wrong = |reason: String| self.invalid(GraphDefect::WrongConstant { name: wanted.name.clone(), reason });
        let index = self.external.get(&wanted.name).ok_or_else(|| wrong("missing".to_owned()))?;
        let tensor = &self.graph().initializer[*index];
        if tensor.dims != wanted.dims || tensor.data_type != i32::from(wanted.element) {
            return Err(wrong(format!(
                "type {} of shape {:?}, expected {:?}",
                tensor.data_type, tensor.dims, wanted.dims
            )));
        }
        Ok(tensor.clone())
    }

    pub(super) fn invalid(&self, reason: GraphDefect) -> Error {
        Error::InvalidGraph { path: self.path.join(&self.file), reason }
    }
}

fn not_onnx(reason: &str) -> GraphDefect {
    GraphDefect::NotOnnx { reason: reason.to_owned() }
}

fn check_opsets(model: &Model) -> Result<(), GraphDefect> {
    for opset in &model.opset_import {
        let supported = if opset.domain.is_empty() || opset.domain == "ai.onnx" { OPSET_MAX } else { 1 };
        if !(1..=supported).contains(&opset.version) {
            let (domain, version) = (opset.domain.clone(), opset.version);
            return Err(GraphDefect::UnsupportedOpset { domain, version, supported });
        }
    }
    if model.opset_import.is_empty() { Err(not_onnx("it names no opset")) } else { Ok(()) }
}

fn is_external(tensor: &Tensor) -> bool {
    tensor.data_location == Some(1) || !tensor.external_data.is_empty()
}

/// Shows `check` every tensor that the file holds, those inside operators and their subgraphs too.
fn each_tensor(graph: &Graph, check: Check<'_>) -> Result<(), GraphDefect> {
    graph.initializer.iter().try_for_each(&mut *check)?;
    graph.sparse_initializer.iter().try_for_each(|sparse| tensors_of_sparse(sparse, check))?;
    tensors_of_nodes(&graph.node, check)
}

type Check<'a> = &'a mut dyn FnMut(&Tensor) -> Result<(), GraphDefect>;

fn tensors_of_sparse(sparse: &SparseTensor, check: Check<'_>) -> Result<(), GraphDefect> {
    sparse.values.iter().chain(&sparse.indices).try_for_each(check)
}

fn tensors_of_nodes(nodes: &[Node], check: Check<'_>) -> Result<(), GraphDefect> {
    for attribute in nodes.iter().flat_map(|node| &node.attribute) {
        attribute.t.iter().chain(&attribute.tensors).try_for_each(&mut *check)?;
        attribute.g.iter().chain(&attribute.graphs).try_for_each(|graph| each_tensor(graph, check))?;
        let sparse = attribute.sparse_tensor.iter().chain(&attribute.sparse_tensors);
        sparse.into_iter().try_for_each(|sparse| tensors_of_sparse(sparse, check))?;
    }
    Ok(())
}

/// Whether a location leads into the folder, as far as its text says.
fn is_inside(location: &str) -> bool {
    !location.is_empty() && Path::new(location).components().all(|part| matches!(part, Component::Normal(_)))
}

/// The data must lie in a file directly or deeper in the folder, and be as long as the type and shape say; the file's name.
fn check_external(folder: &Path, tensor: &Tensor) -> Result<String, GraphDefect> {
    let name = tensor.name.clone();
    let entry = |key: &str| tensor.external_data.iter().find(|entry| entry.key == key).map(|entry| &entry.value[..]);
    let wrong = |reason: &str| GraphDefect::WrongConstant { name: tensor.name.clone(), reason: reason.to_owned() };
    let location = entry("location").ok_or_else(|| wrong("has no location"))?.to_owned();
    let outside = || GraphDefect::OutsideFolder { name: tensor.name.clone(), location: location.clone() };
    if !is_inside(&location) {
        return Err(outside());
    }
    // A link may lead anywhere.
    let file = folder.join(&location).canonicalize().map_err(|error| wrong(&format!("{location:?}: {error}")))?;
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
    Ok(location)
}

/// Bytes of the data; `None` for types that external data here does not have.
fn size_bytes(tensor: &Tensor) -> Option<u64> {
    let element = match tensor.data_type {
        2 | 3 | 9 | 17..=20 => 1,
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

#[cfg(test)]
mod tests {
    use super::super::proto::{Attribute, Entry, Function, Opset};
    use super::*;

    fn outside() -> Tensor {
        let location = Entry { key: "location".to_owned(), value: "../secret".to_owned() };
        Tensor { name: "hidden".to_owned(), data_type: 1, external_data: vec![location], ..Tensor::default() }
    }

    fn node(attribute: Attribute) -> Node {
        Node { op_type: "Constant".to_owned(), attribute: vec![attribute], ..Node::default() }
    }

    #[test]
    fn data_outside_the_folder_is_found_wherever_a_tensor_may_stand() {
        let inner = Graph { initializer: vec![outside()], ..Graph::default() };
        let sparse = SparseTensor { values: None, indices: Some(outside()) };
        let attributes = [
            Attribute { t: Some(outside()), ..Attribute::default() },
            Attribute { tensors: vec![outside()], ..Attribute::default() },
            Attribute { g: Some(inner.clone()), ..Attribute::default() },
            Attribute { graphs: vec![inner.clone()], ..Attribute::default() },
            Attribute { sparse_tensor: Some(sparse.clone()), ..Attribute::default() },
            Attribute { sparse_tensors: vec![sparse.clone()], ..Attribute::default() },
        ];
        let graphs =
            attributes.iter().map(|attribute| Graph { node: vec![node(attribute.clone())], ..Graph::default() });
        let graphs = graphs.chain([inner, Graph { sparse_initializer: vec![sparse], ..Graph::default() }]);
        let with = |graph: Graph, function: Vec<Function>| Model {
            graph: Some(graph),
            function,
            opset_import: vec![Opset { domain: String::new(), version: 21 }],
            ..Model::default()
        };
        let function = Function { node: vec![node(attributes[0].clone())] };
        let models = graphs.map(|graph| with(graph, Vec::new())).chain([with(Graph::default(), vec![function])]);
        for (index, model) in models.enumerate() {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join(GRAPH_FILE), model.encode_to_vec()).unwrap();
            match Folder::open(folder.path(), GRAPH_FILE).map(|_| ()) {
                Err(Error::InvalidGraph { reason: GraphDefect::OutsideFolder { name, .. }, .. }) => {
                    assert_eq!(name, "hidden")
                }
                other => panic!("{index}: {other:?}"),
            }
        }
    }
}
