use std::sync::{Arc, Once, PoisonError, RwLock};

use crate::SdkError;

/// How much a log line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum LogLevel {
    /// Something failed.
    Error,
    /// Something is not as it should be, and work goes on.
    Warn,
    /// What was chosen, and why.
    Info,
    /// For developers of this library.
    Debug,
}

/// Receives log lines, on whatever thread they arise.
#[uniffi::export(foreign)]
pub trait LogListener: Send + Sync {
    /// A line, and the module it comes from. An exception is ignored.
    fn on_log(&self, level: LogLevel, module: String, line: String) -> Result<(), SdkError>;
}

static LISTENER: RwLock<Option<Arc<dyn LogListener>>> = RwLock::new(None);

/// Sends this process's log lines of Edgeweld, from a level up, to a listener; without one, to nobody.
///
/// Fails if another part of the process has taken Rust's logger.
#[uniffi::export]
pub fn set_log_listener(listener: Option<Arc<dyn LogListener>>, level: LogLevel) -> Result<(), SdkError> {
    static INSTALLED: Once = Once::new();
    let mut result = Ok(());
    INSTALLED.call_once(|| result = log::set_logger(&Forward));
    result.map_err(|error| SdkError::Internal { reason: error.to_string() })?;
    let filter = match level {
        LogLevel::Error => log::LevelFilter::Error,
        LogLevel::Warn => log::LevelFilter::Warn,
        LogLevel::Info => log::LevelFilter::Info,
        LogLevel::Debug => log::LevelFilter::Debug,
    };
    log::set_max_level(if listener.is_some() { filter } else { log::LevelFilter::Off });
    *LISTENER.write().unwrap_or_else(PoisonError::into_inner) = listener;
    Ok(())
}

struct Forward;

impl log::Log for Forward {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("edgeweld")
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // A copy, so that a listener may set another listener.
        let listener = LISTENER.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(listener) = listener else { return };
        let level = match record.level() {
            log::Level::Error => LogLevel::Error,
            log::Level::Warn => LogLevel::Warn,
            log::Level::Info => LogLevel::Info,
            log::Level::Debug | log::Level::Trace => LogLevel::Debug,
        };
        // There is nobody to tell that logging failed.
        let _ = listener.on_log(level, record.target().to_owned(), record.args().to_string());
    }

    fn flush(&self) {}
}
