use std::sync::atomic::{AtomicU64, Ordering};

static LIVE: AtomicU64 = AtomicU64::new(0);

/// Counts one object of this library for as long as it lives.
pub(crate) struct Live(());

impl Live {
    pub(crate) fn new() -> Self {
        LIVE.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Engines, sessions, stores, packs and task handles that are alive in this process. An app that closed everything
/// and still sees more than zero holds a reference somewhere.
#[uniffi::export]
pub fn live_object_count() -> u64 {
    LIVE.load(Ordering::Relaxed)
}
