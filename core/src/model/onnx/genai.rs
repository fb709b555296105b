//! A folder of onnxruntime-genai that another program made, run as it is.

use std::any::Any;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use ort::value::TensorElementType;
use sha2::{Digest as _, Sha256};

use super::folder::{DataFile, Folder};
use super::genai_config::{CONFIG_FILE, GenaiConfig, ModelSection, OneOrMore, of_layer};
use super::proto::{Extent, Graph, TensorType, ValueInfo};
use super::runner::OnnxRunner;
use super::session::{Loaded, SessionSource};
use super::side_path::{OnnxLora, PairInputs, PairMemory, input_name};
use super::wiring::{CacheWires, Integers, LOGIT_START, RowsWithLogits, Wiring};
use super::{OnnxOptions, thread_count};
use crate::lora::{LoraSet, Target};
use crate::model::config::ModelShape;
use crate::model::graph_defect::GraphDefect;
use crate::model::onnx_options::ProviderOutcome;
use crate::model::runner::Runner;
use crate::{Digest, Result};

/// A graph that another program made, with what onnxruntime-genai's configuration says of it. Only its inputs and outputs are
/// known: a pack runs on it if it has inputs for the pack's pairs, and nothing can be merged into it.
pub struct GenaiModel {
    loaded: Arc<Loaded>,
    shape: ModelShape,
    architecture: String,
    quantization: String,
    special_ids: SpecialIds,
    graph_digest: Digest,
    data_files: Vec<DataFile>,
    pairs: Arc<PairMemory>,
}

/// The tokens that the configuration names.
#[derive(Clone, Debug, Default)]
pub(crate) struct SpecialIds {
    pub(crate) bos: Option<u32>,
    /// Those that end an answer.
    pub(crate) ends: Vec<u32>,
    pub(crate) padding: Option<u32>,
}

impl GenaiModel {
    /// What makes a folder one of onnxruntime-genai.
    pub const CONFIG_FILE: &str = CONFIG_FILE;

    /// Opens the folder and builds the graph's session.
    ///
    /// # Errors
    /// [`Error::LibraryMissing`](crate::Error::LibraryMissing), [`Error::LibraryTooOld`](crate::Error::LibraryTooOld);
    /// [`Error::InvalidGraph`](crate::Error::InvalidGraph); [`Error::LimitExceeded`](crate::Error::LimitExceeded);
    /// [`Error::Io`](crate::Error::Io); [`Error::Backend`](crate::Error::Backend) with what ONNX Runtime said of the graph.
    pub fn open(folder: &Path, options: &OnnxOptions, threads: Option<usize>) -> Result<Self> {
        let threads = thread_count(threads)?;
        let config = GenaiConfig::read(folder)?;
        let folder = Folder::open(folder, &config.model.decoder.filename)?;
        let wires = Wires::of(&folder);
        let wiring = wires.wiring(&config)?;
        let quantization = wires.quantization();
        let (session, providers) =
            SessionSource::new(folder.path.clone(), options, threads)?.load(&folder.bytes, &[], false)?;
        let ModelSection { vocab_size, context_length, .. } = config.model;
        Ok(Self {
            loaded: Arc::new(Loaded { session: Mutex::new(session), wiring, providers }),
            shape: ModelShape { layer_count: config.model.decoder.num_hidden_layers, vocab_size, context_length },
            quantization,
            special_ids: SpecialIds::of(&config.model),
            architecture: config.model.kind,
            graph_digest: Digest::of(&folder.bytes),
            data_files: folder.data_files()?,
            pairs: PairMemory::new(PairInputs::Tensors),
        })
    }

    /// Layers, vocabulary and longest context, as the configuration says.
    pub fn shape(&self) -> ModelShape {
        self.shape
    }

    /// The configuration's model type.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// `int4` or another width of the graph's block-quantised products, else its float type.
    pub fn quantization(&self) -> &str {
        &self.quantization
    }

    /// Digest of the graph and of every file that its constants lie in. Reads them all.
    pub fn digest(&self) -> Digest {
        let mut hasher = Sha256::new();
        hasher.update(self.graph_digest.as_bytes());
        for file in &self.data_files {
            // The name ends at a byte that no name has.
            hasher.update(file.name.as_bytes());
            hasher.update([0]);
            hasher.update(Digest::of(file.bytes()).as_bytes());
        }
        Digest::from_hasher(hasher)
    }

    /// What became of each preferred execution provider.
    pub fn providers(&self) -> &[ProviderOutcome] {
        &self.loaded.providers
    }

    pub(crate) fn special_ids(&self) -> &SpecialIds {
        &self.special_ids
    }

    /// A sequence for up to `capacity` tokens, with a side path if `lora` is one.
    ///
    /// # Errors
    /// [`Error::InvalidOption`](crate::Error::InvalidOption) for a context the graph is not for; those of
    /// [`side_path`](Self::side_path).
    pub fn runner(&self, capacity: usize, lora: Option<Arc<[OnnxLora]>>) -> Result<Box<dyn Runner>> {
        Ok(Box::new(OnnxRunner::new(self.loaded.clone(), capacity, lora)?))
    }

    /// Makes a sequence of this model go on with the side path `lora`, or without any, empty; `false` if it is of another.
    pub fn put_into(&self, lora: Option<Arc<[OnnxLora]>>, runner: &mut dyn Runner) -> bool {
        match (runner as &mut dyn Any).downcast_mut::<OnnxRunner>() {
            Some(runner) if runner.is_on(&self.loaded) => runner.put_in(lora).is_ok(),
            _ => false,
        }
    }

    /// The pairs of `lora`, ready to be bound to the graph's inputs.
    ///
    /// # Errors
    /// [`Error::PackNeedsInput`](crate::Error::PackNeedsInput) if the graph has no inputs for a pair,
    /// [`Error::TargetMissing`](crate::Error::TargetMissing), [`Error::ShapeMismatch`](crate::Error::ShapeMismatch).
    pub fn side_path(&self, lora: &Arc<LoraSet>) -> Result<Arc<[OnnxLora]>> {
        self.loaded.wiring.check_side_path(lora.layers.iter())?;
        Ok(OnnxLora::all(lora, &self.pairs))
    }
}

impl SpecialIds {
    fn of(model: &ModelSection) -> Self {
        let id = |id: i64| u32::try_from(id).ok();
        let ends = model.eos_token_id.as_ref().map(OneOrMore::ids).unwrap_or_default();
        Self {
            bos: model.bos_token_id.and_then(id),
            ends: ends.iter().copied().filter_map(id).collect(),
            padding: model.pad_token_id.and_then(id),
        }
    }
}

/// The graph's inputs and outputs by name.
struct Wires<'a> {
    folder: &'a Folder,
    graph: &'a Graph,
    inputs: HashMap<&'a str, &'a TensorType>,
    outputs: HashMap<&'a str, &'a TensorType>,
}

impl<'a> Wires<'a> {
    fn of(folder: &'a Folder) -> Self {
        let graph = folder.graph();
        let tensors = |values: &'a [ValueInfo]| {
            let tensor = |value: &'a ValueInfo| Some((&*value.name, value.r#type.as_ref()?.tensor.as_ref()?));
            values.iter().filter_map(tensor).collect()
        };
        Self { folder, graph, inputs: tensors(&graph.input), outputs: tensors(&graph.output) }
    }

    fn wiring(&self, config: &GenaiConfig) -> Result<Wiring> {
        let (names, outputs) = (&config.model.decoder.inputs, &config.model.decoder.outputs);
        let layer_count = config.model.decoder.num_hidden_layers;
        let mut cache = Vec::new();
        for layer in 0..layer_count {
            for (past, present) in [
                (&names.past_key_names, &outputs.present_key_names),
                (&names.past_value_names, &outputs.present_value_names),
            ] {
                cache.push(self.cache(of_layer(past, layer), of_layer(present, layer), config)?);
            }
        }
        let logits = self.output(&outputs.logits)?;
        let vocab_size = config.model.vocab_size;
        let dims = extents(logits);
        if dims.len() != 3 || dims[2].is_some_and(|extent| extent != vocab_size) {
            let reason = format!("is {dims:?}, expected logits of {vocab_size} tokens");
            return Err(self.wrong_shape(&outputs.logits, reason));
        }
        let logit_rows = match self.inputs.get(LOGIT_START) {
            Some(_) => RowsWithLogits::FromStart,
            None if dims[1] == Some(1) => RowsWithLogits::Last,
            None => RowsWithLogits::All,
        };
        let wiring = Wiring {
            ids: self.integers(&names.input_ids)?,
            mask: self.opt_integers(&names.attention_mask)?,
            positions: self.opt_integers(&names.position_ids)?,
            logits: outputs.logits.clone(),
            logits_type: self.floats(&outputs.logits, logits)?,
            logit_rows,
            cache_type: self.floats(&cache[0].past, self.input(&cache[0].past)?)?,
            cache,
            appends_in_place: config.search.past_present_share_buffer,
            pair_inputs: PairInputs::Tensors,
            side_path: (0..layer_count).map(|layer| Target::ALL.map(|target| self.pair(layer, target))).collect(),
            vocab_size,
            positions_max: config.model.context_length,
        };
        self.refuse_unknown_inputs(&wiring)?;
        Ok(wiring)
    }

    fn cache(&self, past: String, present: String, config: &GenaiConfig) -> Result<CacheWires> {
        let (input, output) = (self.input(&past)?, self.output(&present)?);
        let dims = extents(input);
        let &[_, heads, tokens, width] = &dims[..] else {
            return Err(self.wrong_shape(&past, format!("is {dims:?}, expected [batch, heads, tokens, width]")));
        };
        if tokens.is_some() {
            return Err(self.wrong_shape(&past, format!("is {dims:?}: caches of a fixed length are not supported")));
        }
        let of_first = self.input(&of_layer(&config.model.decoder.inputs.past_key_names, 0))?.element;
        if input.element != of_first || output.element != of_first {
            return Err(self.folder.invalid(GraphDefect::UnsupportedType { name: past, element: input.element }));
        }
        let head_count = heads.unwrap_or(config.kv_head_count());
        Ok(CacheWires { past, present, head_count, head_dim: width.unwrap_or(config.model.decoder.head_size) })
    }

    /// `[out, in]` of a target that has inputs for a pair.
    fn pair(&self, layer: usize, target: Target) -> Option<[usize; 2]> {
        let [a, b] =
            ["a", "b"].map(|part| self.inputs.get(&*input_name(layer, target, part)).map(|input| extents(input)));
        match (&a?[..], &b?[..]) {
            ([_, Some(cols)], [Some(rows), _]) => Some([*rows, *cols]),
            _ => None,
        }
    }

    /// An input without a default that nothing here knows would leave every run to fail.
    fn refuse_unknown_inputs(&self, wiring: &Wiring) -> Result<()> {
        let has_default = |name: &str| self.graph.initializer.iter().any(|tensor| tensor.name == name);
        let integers = [Some(&wiring.ids), wiring.mask.as_ref(), wiring.positions.as_ref()];
        let known = |name: &str| {
            integers.iter().flatten().any(|input| input.name == name)
                || wiring.cache.iter().any(|tensor| tensor.past == name)
        };
        match self.graph.input.iter().find(|input| !known(&input.name) && !has_default(&input.name)) {
            Some(input) => Err(self.folder.invalid(GraphDefect::UnknownInput { name: input.name.clone() })),
            None => Ok(()),
        }
    }

    fn quantization(&self) -> String {
        let bits = self.graph.node.iter().filter(|node| node.op_type == "MatMulNBits").find_map(|node| {
            node.attribute.iter().find(|attribute| attribute.name == "bits").and_then(|attribute| attribute.i)
        });
        let f16 = || self.graph.initializer.iter().any(|tensor| tensor.data_type == FLOAT16);
        match bits {
            Some(bits) => format!("int{bits}"),
            None => if f16() { "fp16" } else { "fp32" }.to_owned(),
        }
    }

    fn input(&self, name: &str) -> Result<&'a TensorType> {
        let missing = || self.folder.invalid(GraphDefect::MissingInput { name: name.to_owned() });
        self.inputs.get(name).copied().ok_or_else(missing)
    }

    fn output(&self, name: &str) -> Result<&'a TensorType> {
        let missing = || self.folder.invalid(GraphDefect::MissingOutput { name: name.to_owned() });
        self.outputs.get(name).copied().ok_or_else(missing)
    }

    fn opt_integers(&self, name: &str) -> Result<Option<Integers>> {
        self.inputs.contains_key(name).then(|| self.integers(name)).transpose()
    }

    fn integers(&self, name: &str) -> Result<Integers> {
        let element = match self.input(name)?.element {
            INT32 => TensorElementType::Int32,
            INT64 => TensorElementType::Int64,
            element => return Err(self.unsupported(name, element)),
        };
        Ok(Integers { name: name.to_owned(), element })
    }

    fn floats(&self, name: &str, tensor: &TensorType) -> Result<TensorElementType> {
        match tensor.element {
            FLOAT => Ok(TensorElementType::Float32),
            FLOAT16 => Ok(TensorElementType::Float16),
            element => Err(self.unsupported(name, element)),
        }
    }

    fn unsupported(&self, name: &str, element: i32) -> crate::Error {
        self.folder.invalid(GraphDefect::UnsupportedType { name: name.to_owned(), element })
    }

    fn wrong_shape(&self, name: &str, reason: String) -> crate::Error {
        self.folder.invalid(GraphDefect::WrongShape { name: name.to_owned(), reason })
    }
}

/// Numbers of `onnx.proto`'s element types.
const FLOAT: i32 = super::proto::DataType::Float as i32;
const FLOAT16: i32 = super::proto::DataType::Float16 as i32;
const INT32: i32 = super::proto::DataType::Int32 as i32;
const INT64: i32 = super::proto::DataType::Int64 as i32;

/// Extents of a shape; `None` for those that vary, and for such as no tensor has.
fn extents(tensor: &TensorType) -> Vec<Option<usize>> {
    let extent = |dim: &super::proto::Dimension| match &dim.extent {
        Some(Extent::Fixed(extent)) => usize::try_from(*extent).ok().filter(|extent| (1..=EXTENT_MAX).contains(extent)),
        _ => None,
    };
    tensor.shape.iter().flat_map(|shape| &shape.dim).map(extent).collect()
}

/// No language model has a wider extent.
const EXTENT_MAX: usize = 1 << 24;
