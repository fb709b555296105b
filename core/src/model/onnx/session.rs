//! Sessions of ONNX Runtime over recorded graphs.

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
use super::weight::{self, Part};
use super::{Onnx, OnnxOptions, record};
use crate::Result;
use crate::model::decoder::Decoder;
use crate::model::{Provider, ProviderOutcome};
use crate::quant::WeightBytes;

/// Where ONNX Runtime looks for constants of a graph that it gets as bytes.
const DATA_FOLDER_KEY: &str = "session.model_external_initializers_file_folder_path";

/// Builds sessions over the constants of one folder, and keeps the one of each decoder.
pub(super) struct Sessions {
    environment: Environment,
    folder: Folder,
    /// Positions that the folder's rotation tables are for.
    pub(super) positions: usize,
    providers: Vec<Provider>,
    pub(super) threads: usize,
    built: Mutex<Vec<Built>>,
}

struct Built {
    decoder: Weak<Decoder<Onnx>>,
    session: Arc<Loaded>,
}

/// A session and what it runs on.
pub(super) struct Loaded {
    pub(super) session: Mutex<Session>,
    pub(super) has_side_path: bool,
    pub(super) providers: Vec<ProviderOutcome>,
}

impl Sessions {
    /// # Errors
    /// [`Error::LibraryMissing`], [`Error::LibraryTooOld`], [`Error::InvalidGraph`].
    pub(super) fn new(folder: Folder, options: &OnnxOptions, threads: usize) -> Result<Self> {
        let positions = folder.number(POSITIONS_KEY)? as usize;
        Ok(Self {
            environment: environment(options.library.as_deref())?,
            folder,
            positions,
            providers: options.providers.clone(),
            threads,
            built: Mutex::default(),
        })
    }

    /// The session of `decoder`, built at its first use. One that has a side path serves runners without one too, and
    /// then replaces the session that has none, so that the weights are in memory once.
    pub(super) fn of(&self, decoder: &Arc<Decoder<Onnx>>, with_side_path: bool) -> Result<Arc<Loaded>> {
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        built.retain(|built| built.decoder.strong_count() > 0);
        let known = built.iter().position(|built| std::ptr::eq(built.decoder.as_ptr(), Arc::as_ptr(decoder)));
        if let Some(index) = known
            && (built[index].session.has_side_path || !with_side_path)
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

    /// What became of each preferred provider, if a session of `decoder` was built.
    pub(super) fn providers(&self, decoder: &Arc<Decoder<Onnx>>) -> Option<Vec<ProviderOutcome>> {
        let built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        let built = built.iter().find(|built| std::ptr::eq(built.decoder.as_ptr(), Arc::as_ptr(decoder)))?;
        Some(built.session.providers.clone())
    }

    fn build(&self, decoder: &Decoder<Onnx>, with_side_path: bool) -> Result<Loaded> {
        let graph = record::record(decoder, self.positions, with_side_path)?;
        let mut merged = Vec::new();
        let model = graph.into_model(&[], |initializer| match &initializer.data {
            Data::Weight(matrix, part) if !matches!(matrix.weight_bytes(), WeightBytes::Mapped { .. }) => {
                merged.push((initializer.name.clone(), value(initializer, *part)?));
                Ok(in_memory(initializer))
            }
            _ => self.folder.place(initializer),
        })?;
        let bytes = model.encode_to_vec();
        drop(model);

        let mut outcomes: Vec<_> =
            self.providers.iter().map(|provider| ProviderOutcome { provider: *provider, refusal: None }).collect();
        loop {
            let mut builder = self.builder(&merged)?;
            for outcome in outcomes.iter_mut().filter(|outcome| outcome.refusal.is_none()) {
                outcome.refusal = outcome.provider.register(&mut builder, self.threads).err();
            }
            let error = match builder.commit_from_memory(&bytes) {
                Ok(session) => {
                    log_outcomes(&outcomes);
                    let session = Mutex::new(session);
                    return Ok(Loaded { session, has_side_path: with_side_path, providers: outcomes });
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

    fn builder(&self, merged: &[(String, Arc<DynValue>)]) -> Result<SessionBuilder> {
        let folder = self.folder.path.to_string_lossy();
        let mut builder = SessionBuilder::new(&self.environment)
            .map_err(failed)?
            .with_intra_threads(self.threads)
            .map_err(failed)?
            .with_config_entry(DATA_FOLDER_KEY, folder.as_ref())
            .map_err(failed)?;
        for (name, value) in merged {
            builder = builder.with_external_initializer(name, value.clone()).map_err(failed)?;
        }
        Ok(builder)
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

/// A merged weight's operand, for a session that is being built.
fn value(initializer: &Initializer, part: Part) -> Result<Arc<DynValue>> {
    let Data::Weight(matrix, _) = &initializer.data else { unreachable!("only weights are merged") };
    let mut bytes = Vec::new();
    weight::write(matrix, part, &mut bytes).expect("a Vec takes every byte");
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
