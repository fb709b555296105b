//! The scenario in Rust, through the same functions that the other languages call. Where it asserts a value, they compare
//! with the one it saw.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use edgeweld_ffi::{
    Arm, DownloadListener, DownloadOptions, DownloadProgress, Engine, FinishReason, GenerateOptions, Generation,
    LoadOptions, MergeListener, MergeMode, MergeOptions, MergeProgress, Message, PackRefusal, PackStore, Role,
    SdkError, Session, StoreOptions, TaskHandle, Token, TokenListener, live_object_count,
};

use crate::Facts;

const QUESTION: &str = "Where is the treasure?";
const MAX_TOKENS: u32 = 12;
const CONTEXT_LENGTH: u32 = 512;

/// Plays the scenario with a store in `folder`; returns the stage's facts and what was seen.
///
/// # Panics
/// If something is not as it should be.
pub fn play(stage: &Facts, folder: &Path) -> Facts {
    let mut seen = stage.clone();
    seen.insert("question", QUESTION.to_owned());
    seen.insert("max_tokens", MAX_TOKENS.to_string());
    seen.insert("context_length", CONTEXT_LENGTH.to_string());
    let before = live_object_count();

    let engine = load(&stage["model"]);
    assert_eq!(engine.info().unwrap().base_digest, stage["base_digest"]);
    let missing = Engine::load_blocking("/no/such/model.gguf".into(), LoadOptions::default(), None, None);
    assert!(matches!(&missing, Err(SdkError::File { path, .. }) if path == "/no/such/model.gguf"));

    let session = engine.session().unwrap();
    let prompted = ask(&session, &stage["prompt"]);
    assert_eq!(prompted.arm, Arm::Prompt);
    seen.insert("base_text", prompted.text.clone());

    let store =
        PackStore::new(folder.display().to_string(), vec![stage["trusted_key"].clone()], StoreOptions::default())
            .unwrap();
    let download = |name: &str, options, listener, task| {
        store.download_blocking(&engine, format!("{}/rust/{name}.pack", stage["url"]), options, listener, task)
    };
    let plain = |name: &str| download(name, DownloadOptions::default(), None, None);
    // The first connection is cut in the middle.
    let pack = plain("good").unwrap();
    assert_eq!(pack.info().digest, stage["pack_digest"]);

    for (name, refusal) in [
        ("stranger", PackRefusal::UntrustedKey),
        ("other-model", PackRefusal::OtherModel),
        ("tampered", PackRefusal::Damaged),
    ] {
        let Err(SdkError::PackRefused { refusal: seen_refusal, expected, actual, .. }) = plain(name) else {
            panic!("{name} was not refused");
        };
        assert_eq!(seen_refusal, refusal);
        let (expected, actual) = (expected.unwrap_or_default(), actual.unwrap_or_default());
        let names = match refusal {
            PackRefusal::UntrustedKey => ("stranger_expected", "stranger_actual"),
            PackRefusal::OtherModel => ("other_model_expected", "other_model_actual"),
            _ => ("tampered_expected", "tampered_actual"),
        };
        seen.extend([(names.0, expected), (names.1, actual)]);
    }
    let unlimited = DownloadOptions { size_bytes_max: Some(u64::MAX), ..Default::default() };
    let full = download("huge", unlimited, None, None);
    let huge: u64 = stage["huge_size_bytes"].parse().unwrap();
    assert!(matches!(full, Err(SdkError::DiskFull { required_bytes, .. }) if required_bytes == huge));

    let download_task = TaskHandle::new();
    let stop = Arc::new(Progress { stop_with: Some(download_task.clone()), ..Default::default() });
    let cancelled = download("slow", DownloadOptions::default(), Some(stop), Some(download_task.clone()));
    assert!(matches!(cancelled, Err(SdkError::Cancelled)) && download_task.is_finished());
    let watch = Arc::new(Progress::default());
    download("slow", DownloadOptions::default(), Some(watch.clone()), None).unwrap();
    assert!(watch.seen.lock().unwrap()[0] > 0, "the second call goes on where the first stopped");

    let task = TaskHandle::new();
    let stop = Arc::new(StopMerge(task.clone()));
    let cancelled = engine.merge_blocking(&pack, MergeOptions::default(), Some(stop), Some(task));
    assert!(matches!(cancelled, Err(SdkError::Cancelled)) && engine.merged_pack().is_none());
    let side_path = MergeOptions { mode: Some(MergeMode::SidePath), ..Default::default() };
    let report = engine.merge_blocking(&pack, side_path, None, None).unwrap();
    assert_eq!((report.chosen, report.gain_min), (MergeMode::SidePath, None));

    let listener = Arc::new(Tokens::default());
    let specialized = stream(&session, &stage["prompt"], listener.clone(), None).unwrap();
    assert_eq!((specialized.arm, specialized.reused_tokens), (Arm::Pack, 0));
    assert!(specialized.prompt_tokens < prompted.prompt_tokens && specialized.text != prompted.text);
    assert_eq!(*listener.text.lock().unwrap(), specialized.text);
    seen.insert("pack_text", specialized.text.clone());

    let task = TaskHandle::new();
    let stop = Arc::new(Tokens { stop_after: Some((3, Stop::Cancel(task.clone()))), ..Default::default() });
    let cut = stream(&session, &stage["prompt"], stop, Some(task)).unwrap();
    assert_eq!((cut.finish_reason, cut.generated_tokens), (FinishReason::Cancelled, 3));
    assert!(specialized.text.starts_with(&cut.text));
    let broken = SdkError::Internal { reason: "the app's own trouble".to_owned() };
    let fail = Arc::new(Tokens { stop_after: Some((1, Stop::Fail(broken.clone()))), ..Default::default() });
    assert_eq!(stream(&session, &stage["prompt"], fail, None), Err(broken));

    engine.unmerge().unwrap();
    assert_eq!(ask(&session, &stage["prompt"]).text, prompted.text);
    let long = vec![Message::new(Role::User, "word ".repeat(1_000))];
    let full = session.chat_blocking(long, GenerateOptions::default(), None, None);
    let Err(SdkError::ContextFull { required_tokens, available_tokens }) = full else { panic!("{full:?}") };
    assert_eq!(available_tokens, u64::from(CONTEXT_LENGTH));
    seen.insert("context_required", required_tokens.to_string());

    drop((pack, session, download_task));
    drop((store, engine));
    assert_eq!(live_object_count(), before, "something is still alive");
    seen
}

/// The model in a context of 512 tokens, on two threads.
pub fn load(model: &str) -> Arc<Engine> {
    let options = LoadOptions { threads: Some(2), context_length: Some(CONTEXT_LENGTH), ..Default::default() };
    Engine::load_blocking(model.to_owned(), options, None, None).unwrap()
}

fn ask(session: &Session, prompt: &str) -> Generation {
    stream(session, prompt, Arc::new(Tokens::default()), None).unwrap()
}

fn stream(
    session: &Session,
    prompt: &str,
    listener: Arc<dyn TokenListener>,
    task: Option<Arc<TaskHandle>>,
) -> Result<Generation, SdkError> {
    let messages = vec![Message::new(Role::System, prompt), Message::new(Role::User, QUESTION)];
    let options = GenerateOptions { max_tokens: MAX_TOKENS, ..Default::default() };
    session.chat_blocking(messages, options, Some(listener), task)
}

enum Stop {
    Cancel(Arc<TaskHandle>),
    Fail(SdkError),
}

#[derive(Default)]
struct Tokens {
    text: Mutex<String>,
    count: AtomicU32,
    stop_after: Option<(u32, Stop)>,
}

impl TokenListener for Tokens {
    fn on_token(&self, token: Token) -> Result<(), SdkError> {
        self.text.lock().unwrap().push_str(&token.text);
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        match &self.stop_after {
            Some((after, Stop::Cancel(task))) if count == *after => task.cancel(),
            Some((after, Stop::Fail(error))) if count == *after => return Err(error.clone()),
            _ => {}
        }
        Ok(())
    }

    fn on_prefill(&self, done_tokens: u64, total_tokens: u64) -> Result<(), SdkError> {
        assert!(done_tokens <= total_tokens);
        Ok(())
    }
}

/// Notes the bytes that were done, and may stop the download at the first that arrived.
#[derive(Default)]
struct Progress {
    seen: Mutex<Vec<u64>>,
    stop_with: Option<Arc<TaskHandle>>,
}

impl DownloadListener for Progress {
    fn on_download(&self, progress: DownloadProgress) -> Result<(), SdkError> {
        self.seen.lock().unwrap().push(progress.bytes_done);
        match &self.stop_with {
            Some(task) if progress.bytes_done > 0 => task.cancel(),
            _ => {}
        }
        Ok(())
    }
}

struct StopMerge(Arc<TaskHandle>);

impl MergeListener for StopMerge {
    fn on_merge(&self, _: MergeProgress) -> Result<(), SdkError> {
        self.0.cancel();
        Ok(())
    }
}
