use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use edgeweld::CancelToken;

use crate::live::Live;

/// Cancels one blocking call from another thread. Make one per call and keep it while the call runs: **a handle that
/// is dropped or closed cancels its call.**
#[derive(uniffi::Object)]
pub struct TaskHandle {
    state: Arc<State>,
    _live: Live,
}

#[derive(Default)]
struct State {
    cancel: CancelToken,
    finished: AtomicBool,
}

#[uniffi::export]
impl TaskHandle {
    /// A handle to pass to one call.
    #[uniffi::constructor]
    pub fn new() -> Arc<Self> {
        Arc::new(Self { state: Arc::default(), _live: Live::new() })
    }

    /// Asks the call to stop and returns at once. The call ends within one token, chunk or tensor and leaves everything
    /// as it was.
    pub fn cancel(&self) {
        self.state.cancel.cancel();
    }

    /// Whether `cancel` was called.
    pub fn is_cancelled(&self) -> bool {
        self.state.cancel.is_cancelled()
    }

    /// Whether the call has ended, in whatever way.
    pub fn is_finished(&self) -> bool {
        self.state.finished.load(Ordering::Acquire)
    }
}

impl Drop for TaskHandle {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// A call in progress. It holds the handle's state, not the handle: so that dropping the handle is seen.
pub(crate) struct Running(Arc<State>);

impl Running {
    pub(crate) fn new(task: Option<Arc<TaskHandle>>) -> Self {
        Self(task.map_or_else(Arc::default, |task| task.state.clone()))
    }

    pub(crate) fn cancel(&self) -> &CancelToken {
        &self.0.cancel
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.finished.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_handle_cancels_its_call() {
        let task = TaskHandle::new();
        let running = Running::new(Some(task.clone()));
        assert!(!running.cancel().is_cancelled());
        drop(task);
        assert!(running.cancel().is_cancelled());
    }

    #[test]
    fn a_call_is_finished_when_it_returns() {
        let task = TaskHandle::new();
        let running = Running::new(Some(task.clone()));
        assert!(!task.is_finished());
        drop(running);
        assert!(task.is_finished() && !task.is_cancelled());
    }
}
