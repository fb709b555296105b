//! The ONNX Runtime backend: the same decoder, run as a graph.
//!
//! A pass of the [`Decoder`](super::Decoder) over [`Onnx`] does not compute, it *records*: each operator becomes nodes of a
//! graph. So every model family that the decoder covers is exported by it, and there is no second description of any.
//! [`export_onnx`] writes that graph and its constants as a folder; a loaded folder's graphs (the base model's, the
//! one with inputs for a side path, one with merged weights) are recorded when they are first needed, over the
//! folder's constants. [`GenaiModel`] runs the graph of a folder that another program made. ADR 6 has the reasons,
//! docs/onnx.md the use.

mod answer;
mod cache;
mod export;
mod folder;
mod genai;
mod genai_config;
mod graph;
mod input;
mod library;
mod memory;
mod proto;
mod provider;
mod record;
mod runner;
mod session;
mod side_operator;
mod side_path;
mod value;
mod weight;
mod wiring;

use std::path::Path;
use std::sync::Arc;

pub use export::{ExportOptions, Exported, export_onnx};
use folder::{Folder, GRAPH_FILE};
pub use genai::GenaiModel;
pub use record::Positions;
use session::Sessions;
pub use side_path::OnnxLora;
use side_path::{PairInputs, PairMemory};
pub use value::Value;

use super::cpu::{THREADS_MAX, performance_cores};
use super::decoder::Decoder;
use super::onnx_options::OnnxOptions;
use crate::gguf::GgufFile;
use crate::{Error, Result};

/// How a graph's products see their input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activations {
    /// As f32 by 4-bit weights, as the sum of two 8-bit terms by 8-bit ones: log-probabilities within 0.002 of float32's.
    #[default]
    Exact,
    /// In 8 bits per group of 16 or 32, the way most int4 models for ONNX Runtime are: decodes 1.2 to 1.4 times as fast, and
    /// moves log-probabilities by up to 0.7, which changes answers of small models.
    Int8,
}

impl Activations {
    const ALL: [Self; 2] = [Self::Exact, Self::Int8];

    /// `exact` or `int8`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Int8 => "int8",
        }
    }
}

/// The ONNX Runtime backend over one exported folder.
pub struct Onnx {
    /// `None` while exporting.
    sessions: Option<Sessions>,
    /// What the folder was exported for.
    activations: Activations,
    pairs: Arc<PairMemory>,
}

impl Onnx {
    /// Opens the folder that [`export_onnx`] wrote; `file` is the model file in it, which is read once to digest it.
    ///
    /// # Errors
    /// [`Error::LibraryMissing`], [`Error::LibraryTooOld`]; [`Error::InvalidGraph`]; [`Error::Io`].
    pub fn open(folder: &Path, file: &GgufFile, options: &OnnxOptions, threads: Option<usize>) -> Result<Self> {
        let threads = thread_count(threads)?;
        let folder = Folder::open(folder, GRAPH_FILE)?;
        let names = |names: [&str; 2]| names.map(str::to_owned);
        folder.check_names(&names(["input_ids", "attention_mask"]), &names(["logits", "present.0.key"]))?;
        folder.check_model(file)?;
        let activations = folder.activations()?;
        Ok(Self { sessions: Some(Sessions::new(folder, options, threads)?), ..Self::recording(activations) })
    }

    /// Builds the session of a freshly loaded `decoder`, so that what is wrong with its graph is an error of the load.
    ///
    /// # Errors
    /// [`Error::InvalidGraph`]; [`Error::Backend`] with what ONNX Runtime said.
    pub fn prepare(&self, decoder: &Arc<Decoder<Self>>) -> Result<()> {
        self.sessions()?.of(decoder, false).map(|_| ())
    }

    /// Longest context of the folder's graph, in tokens.
    pub fn context_length(&self) -> Option<usize> {
        self.sessions.as_ref().map(|sessions| sessions.positions)
    }

    fn recording(activations: Activations) -> Self {
        Self { sessions: None, activations, pairs: PairMemory::new(PairInputs::Place) }
    }

    fn sessions(&self) -> Result<&Sessions> {
        let reason = || "a backend that only records has no sessions".to_owned();
        self.sessions.as_ref().ok_or_else(|| Error::Backend { backend: "onnx", reason: reason() })
    }
}

/// The threads that were asked for, else one per performance core.
fn thread_count(threads: Option<usize>) -> Result<usize> {
    let threads = threads.unwrap_or_else(performance_cores);
    if (1..=THREADS_MAX).contains(&threads) {
        return Ok(threads);
    }
    let reason = format!("{threads} is not between 1 and {THREADS_MAX}");
    Err(Error::InvalidOption { option: "threads", reason })
}
