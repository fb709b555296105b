//! Sessions of ONNX Runtime over recorded graphs.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use ort::environment::Environment;
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use ort::value::{DynValue, Tensor};
use prost::Message;

use super::folder::{Folder, POSITIONS_KEY};
use super::graph::{Data, Initializer};
use super::library::{environment, failed};
use super::proto::{self, DataType};
use super::side_path::PairInputs;
use super::weight::{self, Part};
use super::wiring::Wiring;
use super::{Onnx, OnnxOptions, record, side_operator};
use crate::Result;
use crate::model::decoder::Decoder;
use crate::model::{Provider, ProviderOutcome};
use crate::quant::{QMatrix, WeightBytes};

/// Where ONNX Runtime looks for constants of a graph that it gets as bytes.
const DATA_FOLDER_KEY: &str = "session.model_external_initializers_file_folder_path";

/// Builds sessions of graphs whose constants lie in one folder.
pub(super) struct SessionSource {
    environment: Environment,
    folder: PathBuf,
    providers: Vec<Provider>,
    threads: usize,
}

/// Records and keeps the graphs of decoders over one exported folder.
pub(super) struct Sessions {
    source: SessionSource,
    folder: Folder,
    /// Positions that the folder's rotation tables are for.
    pub(super) positions: usize,
    built: Mutex<Vec<Built>>,
}

struct Built {
    decoder: Weak<Decoder<Onnx>>,
    session: Arc<Loaded>,
}

/// A session, what it runs on, and how it is fed.
pub(super) struct Loaded {
    pub(super) session: Mutex<Session>,
    pub(super) wiring: Wiring,
    pub(super) providers: Vec<ProviderOutcome>,
}

impl Loaded {
    fn has_side_path(&self) -> bool {
        self.wiring.has_side_path()
    }
}

impl SessionSource {
    /// # Errors
    /// [`Error::LibraryMissing`](crate::Error::LibraryMissing), [`Error::LibraryTooOld`](crate::Error::LibraryTooOld).
    pub(super) fn new(folder: PathBuf, options: &OnnxOptions, threads: usize) -> Result<Self> {
        let environment = environment(options.library.as_deref())?;
        Ok(Self { environment, folder, providers: options.providers.clone(), threads })
    }

    /// The session of an encoded graph, with `values` in the place of constants. Providers that refuse the graph are passed
    /// over. Only a graph of our own may use our operators: they trust the addresses they are given.
    ///
    /// # Errors
    /// [`Error::Backend`](crate::Error::Backend) with what ONNX Runtime said.
    pub(super) fn load(
        &self,
        graph: &[u8],
        values: &[(String, Arc<DynValue>)],
        is_own: bool,
    ) -> Result<(Session, Vec<ProviderOutcome>)> {
        let mut outcomes: Vec<_> =
            self.providers.iter().map(|provider| ProviderOutcome { provider: *provider, refusal: None }).collect();
        loop {
            let mut builder = self.builder(values, is_own)?;
            for outcome in outcomes.iter_mut().filter(|outcome| outcome.refusal.is_none()) {
                outcome.refusal = outcome.provider.register(&mut builder, self.threads).err();
            }
            let error = match commit(&mut builder, graph, is_own) {
                Ok(session) => {
                    log_outcomes(&outcomes);
                    return Ok((session, outcomes));
                }
                Err(error) => failed(error),
            };
            // A provider that registers may still refuse the graph; the CPU alone is the last resort.
            let used = |outcome: &&mut ProviderOutcome| outcome.refusal.is_none() && outcome.provider != Provider::Cpu;
            match outcomes.iter_mut().find(used) {
                Some(outcome) => outcome.refusal = Some(format!("cannot run this graph: {error}")),
                None => return Err(error),
            }
        }
    }

    fn builder(&self, values: &[(String, Arc<DynValue>)], is_own: bool) -> Result<SessionBuilder> {
        let folder = self.folder.to_string_lossy();
        let mut builder = SessionBuilder::new(&self.environment)
            .map_err(failed)?
            .with_intra_threads(self.threads)
            .map_err(failed)?
            .with_config_entry(DATA_FOLDER_KEY, folder.as_ref())
            .map_err(failed)?
            // The one that puts weights into huge pages.
            .with_env_allocators()
            .map_err(failed)?;
        if is_own {
            let operators = side_operator::domain(self.threads).map_err(failed)?;
            builder = builder.with_operators(operators).map_err(failed)?;
        }
        for (name, value) in values {
            builder = builder.with_external_initializer(name, value.clone()).map_err(failed)?;
        }
        Ok(builder)
    }
}

impl Sessions {
    /// # Errors
    /// Those of [`SessionSource::new`]; [`Error::InvalidGraph`](crate::Error::InvalidGraph).
    pub(super) fn new(folder: Folder, options: &OnnxOptions, threads: usize) -> Result<Self> {
        let positions = folder.number(POSITIONS_KEY)? as usize;
        let source = SessionSource::new(folder.path.clone(), options, threads)?;
        Ok(Self { source, folder, positions, built: Mutex::default() })
    }

    pub(super) fn threads(&self) -> usize {
        self.source.threads
    }

    /// The session of `decoder` if it is built already and has inputs for a side path where that is asked for.
    pub(super) fn built(&self, decoder: &Arc<Decoder<Onnx>>, with_side_path: bool) -> Option<Arc<Loaded>> {
        let built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        let of_decoder = built.iter().find(|built| std::ptr::eq(built.decoder.as_ptr(), Arc::as_ptr(decoder)))?;
        (of_decoder.session.has_side_path() || !with_side_path).then(|| of_decoder.session.clone())
    }

    /// The session of `decoder`, built at its first use. One that has a side path serves runners without one too, and
    /// then replaces the session that has none, so that the weights are in memory once.
    pub(super) fn of(&self, decoder: &Arc<Decoder<Onnx>>, with_side_path: bool) -> Result<Arc<Loaded>> {
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        built.retain(|built| built.decoder.strong_count() > 0);
        let known = built.iter().position(|built| std::ptr::eq(built.decoder.as_ptr(), Arc::as_ptr(decoder)));
        if let Some(index) = known
            && (built[index].session.has_side_path() || !with_side_path)
        {
            return Ok(built[index].session.clone());
        }
        let session = Arc::new(self.build(decoder, with_side_path)?);
        if let Some(index) = known {
            built.swap_remove(index);
        }
        built.push(Built { decoder: Arc::downgrade(decoder), session: session.clone() });
        Ok(session)
    }

    fn build(&self, decoder: &Decoder<Onnx>, with_side_path: bool) -> Result<Loaded> {
        let graph = record::record(decoder, self.positions, with_side_path.then_some(PairInputs::Place))?;
        let has_merged = graph.weights().any(is_merged);
        let mut values = Vec::new();
        let model = graph.into_model(&[], |initializer| match &initializer.data {
            // A promoted weight may part from one that the folder has it stacked with.
            Data::Weight(matrices, part)
                if matrices.iter().any(is_merged) || has_merged && !self.folder.has(&initializer.name) =>
            {
                values.push((initializer.name.clone(), value(initializer, *part)?));
                Ok(in_memory(initializer))
            }
            _ => self.folder.place(initializer),
        })?;
        let bytes = model.encode_to_vec();
        drop(model);
        let (session, providers) = self.source.load(&bytes, &values, true)?;
        let wiring = Wiring::recorded(&decoder.config, self.positions, with_side_path);
        Ok(Loaded { session: Mutex::new(session), wiring, providers })
    }
}

fn log_outcomes(outcomes: &[ProviderOutcome]) {
    for ProviderOutcome { provider, refusal } in outcomes {
        match refusal {
            Some(reason) => log::warn!("{} is not used: {reason}", provider.name()),
            None => log::info!("{} is used", provider.name()),
        }
    }
}

/// Makes a session, one at a time until one has our operators: ONNX Runtime looks up and enters an operator domain in a
/// list of the process without a lock, so that of two sessions that enter it at once the second fails.
fn commit(builder: &mut SessionBuilder, graph: &[u8], is_own: bool) -> ort::Result<Session> {
    static REGISTERED: Mutex<bool> = Mutex::new(false);
    let mut registered = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
    if *registered {
        drop(registered);
        return builder.commit_from_memory(graph);
    }
    let session = builder.commit_from_memory(graph);
    *registered = is_own && session.is_ok();
    session
}

/// Whether a weight is not the file's own.
fn is_merged(matrix: &QMatrix) -> bool {
    !matches!(matrix.weight_bytes(), WeightBytes::Mapped { .. })
}

/// The operand of weights of which some are merged, for a session that is being built.
fn value(initializer: &Initializer, part: Part) -> Result<Arc<DynValue>> {
    let Data::Weight(matrices, _) = &initializer.data else { unreachable!("only weights are merged") };
    let mut bytes = Vec::new();
    for matrix in matrices {
        weight::write(matrix, part, &mut bytes).expect("a Vec takes every byte");
    }
    let dims = initializer.dims.clone();
    let value = match initializer.element {
        DataType::Uint8 => Tensor::from_array((dims, bytes)).map_err(failed)?.into_dyn(),
        _ => {
            let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect();
            Tensor::from_array((dims, values)).map_err(failed)?.into_dyn()
        }
    };
    Ok(Arc::new(value))
}

/// Stands in the graph for a constant that the session gets as a value.
fn in_memory(initializer: &Initializer) -> proto::Tensor {
    let entry = |key: &str, value: &str| proto::Entry { key: key.to_owned(), value: value.to_owned() };
    proto::Tensor {
        dims: initializer.dims.clone(),
        data_type: initializer.element.into(),
        name: initializer.name.clone(),
        external_data: vec![entry("location", "merged"), entry("offset", "0")],
        data_location: Some(1),
        ..proto::Tensor::default()
    }
}
