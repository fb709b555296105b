//! ONNX Runtime's shared library: found and loaded once per process.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ort::LoadDynamicError;
use ort::environment::Environment;
use ort::logging::LogLevel;

use super::memory;
use crate::{Error, Result};

/// The library is the process's, and ONNX Runtime allows one environment in it, so this is the process's too.
static ENVIRONMENT: Mutex<Option<(PathBuf, Environment)>> = Mutex::new(None);

/// The environment of the library at `path`, or under its usual name on the system's search path. The first call of
/// a process decides which library it is.
///
/// # Errors
/// [`Error::LibraryMissing`], [`Error::LibraryTooOld`].
pub(super) fn environment(path: Option<&Path>) -> Result<Environment> {
    let mut place = ENVIRONMENT.lock().unwrap_or_else(PoisonError::into_inner);
    let usual = || format!("{}onnxruntime{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX).into();
    let wanted = path.map_or_else(usual, Path::to_owned);
    if let Some((loaded, environment)) = &*place {
        if path.is_some() && wanted != *loaded {
            log::warn!("ONNX Runtime is loaded from {}; {} is ignored", loaded.display(), wanted.display());
        }
        return Ok(environment.clone());
    }
    let environment = ort::init_from(&wanted)
        .map_err(|error| not_loaded(error, &wanted))?
        .with_name("edgeweld")
        .with_telemetry(false)
        .with_logger(Arc::new(|level, _, _, _, text| log::log!(to_level(level), "ONNX Runtime: {text}")))
        .build()
        .map_err(failed)?;
    environment.set_log_level(LogLevel::Warning);
    if let Err(error) = memory::register(&environment) {
        log::warn!("weights stay out of huge pages: {error}");
    }
    log::info!("ONNX Runtime from {}: {}", wanted.display(), ort::info());
    *place = Some((wanted, environment.clone()));
    Ok(environment)
}

/// Shapes and constants that a graph overrides on purpose make ONNX Runtime warn: that is no warning to an app.
fn to_level(level: LogLevel) -> log::Level {
    match level {
        LogLevel::Fatal | LogLevel::Error => log::Level::Warn,
        LogLevel::Warning | LogLevel::Info => log::Level::Debug,
        LogLevel::Verbose => log::Level::Trace,
    }
}

fn not_loaded(error: LoadDynamicError, path: &Path) -> Error {
    let path = path.to_owned();
    match error {
        LoadDynamicError::BadVersion { version_str, .. } => {
            Error::LibraryTooOld { path, actual: version_str, required: format!("1.{}", ort::MINOR_VERSION) }
        }
        error => Error::LibraryMissing { path, reason: error.to_string() },
    }
}

/// What ONNX Runtime said.
pub(super) fn failed<R>(error: ort::Error<R>) -> Error {
    Error::Backend { backend: "onnx", reason: error.message().to_owned() }
}
