use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::thread::ThreadId;
use std::time::Duration;

use edgeweld::{CancelToken, generate};

use crate::generate::Relay;
use crate::live::Live;
use crate::task::Running;
use crate::{GenerateOptions, Generation, Message, SdkError, TaskHandle, TokenListener};

/// Pause between two looks at a session that answers another call.
const BUSY_INTERVAL: Duration = Duration::from_millis(1);

/// One conversation and its memory of it. It answers one call at a time; a second one waits for the first.
#[derive(uniffi::Object)]
pub struct Session {
    inner: Mutex<generate::Session>,
    /// The thread whose call is being answered.
    owner: Mutex<Option<ThreadId>>,
    _live: Live,
}

#[uniffi::export]
impl Session {
    /// Answers a conversation: all of it, as the app keeps it, the system prompt included. What an earlier turn read is
    /// not read again. If a pack is merged that stands for the system prompt, the prompt is dropped.
    ///
    /// Blocks for seconds. A cancelled turn is no error: it ends with the finish reason "cancelled".
    #[uniffi::method(default(listener = None, task = None, options))]
    pub fn chat_blocking(
        &self,
        messages: Vec<Message>,
        options: GenerateOptions,
        listener: Option<Arc<dyn TokenListener>>,
        task: Option<Arc<TaskHandle>>,
    ) -> Result<Generation, SdkError> {
        let messages = messages.into_iter().map(TryInto::try_into).collect::<Result<Vec<_>, _>>()?;
        self.answer(options, listener, task, |session, options, relay| session.chat(&messages, options, relay))
    }

    /// Continues a text without a chat template. Blocks for seconds.
    #[uniffi::method(default(listener = None, task = None, options))]
    pub fn complete_blocking(
        &self,
        text: String,
        options: GenerateOptions,
        listener: Option<Arc<dyn TokenListener>>,
        task: Option<Arc<TaskHandle>>,
    ) -> Result<Generation, SdkError> {
        self.answer(options, listener, task, |session, options, relay| session.complete(&text, options, relay))
    }

    /// Forgets the conversation.
    pub fn clear(&self) -> Result<(), SdkError> {
        self.with(&CancelToken::new(), |session| {
            session.clear();
            Ok(())
        })
    }

    /// Tokens of the conversation that are remembered.
    pub fn cached_tokens(&self) -> Result<u64, SdkError> {
        self.with(&CancelToken::new(), |session| Ok(session.cached_tokens() as u64))
    }

    /// Bytes that the memory of the conversation takes.
    pub fn cache_size_bytes(&self) -> Result<u64, SdkError> {
        self.with(&CancelToken::new(), |session| Ok(session.cache_size_bytes() as u64))
    }

    /// Saves the memory of the conversation, so that a later session need not read it again.
    pub fn save_prefix(&self, path: String) -> Result<(), SdkError> {
        self.with(&CancelToken::new(), |session| Ok(session.save_prefix(path)?))
    }

    /// Replaces the memory of the conversation by a saved one of the same model and pack; returns its tokens.
    pub fn load_prefix(&self, path: String) -> Result<u64, SdkError> {
        self.with(&CancelToken::new(), |session| Ok(session.load_prefix(path)? as u64))
    }
}

impl Session {
    pub(crate) fn new(inner: generate::Session) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::new(inner), owner: Mutex::new(None), _live: Live::new() })
    }

    fn answer(
        &self,
        options: GenerateOptions,
        listener: Option<Arc<dyn TokenListener>>,
        task: Option<Arc<TaskHandle>>,
        answer: impl FnOnce(
            &mut generate::Session,
            &generate::GenerateOptions,
            &mut Relay,
        ) -> edgeweld::Result<generate::Generation>,
    ) -> Result<Generation, SdkError> {
        let running = Running::new(task);
        let options = options.into_core(running.cancel().clone());
        let mut relay = Relay::new(listener, running.cancel().clone());
        let result = self.with(running.cancel(), |session| Ok(answer(session, &options, &mut relay)?));
        // A listener that throws cancels the turn, so its failure goes before the result.
        let listener_us = relay.end()?;
        Ok(Generation::new(result?, listener_us))
    }

    fn with<T>(
        &self,
        cancel: &CancelToken,
        call: impl FnOnce(&mut generate::Session) -> Result<T, SdkError>,
    ) -> Result<T, SdkError> {
        let mut session = self.lock(cancel)?;
        let _owner = Owner::new(&self.owner);
        call(&mut session)
    }

    /// Waits for the call before this one, for as long as this one is not cancelled.
    fn lock(&self, cancel: &CancelToken) -> Result<MutexGuard<'_, generate::Session>, SdkError> {
        loop {
            match self.inner.try_lock() {
                Ok(session) => return Ok(session),
                Err(TryLockError::Poisoned(_)) => {
                    // The panic may have come in the middle of a write to the cache.
                    let reason = "the session is closed: an earlier call of it panicked; open another".to_owned();
                    return Err(SdkError::Internal { reason });
                }
                Err(TryLockError::WouldBlock) => {}
            }
            if *owner(&self.owner) == Some(std::thread::current().id()) {
                let reason = "a listener must not call the session that calls it".to_owned();
                return Err(SdkError::InvalidArgument { argument: "listener".to_owned(), reason });
            }
            cancel.check()?;
            std::thread::sleep(BUSY_INTERVAL);
        }
    }
}

/// Notes whose call is being answered until it is.
struct Owner<'a>(&'a Mutex<Option<ThreadId>>);

impl<'a> Owner<'a> {
    fn new(place: &'a Mutex<Option<ThreadId>>) -> Self {
        *owner(place) = Some(std::thread::current().id());
        Self(place)
    }
}

impl Drop for Owner<'_> {
    fn drop(&mut self) {
        *owner(self.0) = None;
    }
}

fn owner(place: &Mutex<Option<ThreadId>>) -> MutexGuard<'_, Option<ThreadId>> {
    place.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
