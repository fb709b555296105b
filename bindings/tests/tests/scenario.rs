//! The scenario in Rust.

use edgeweld_bindings_tests::{Stage, scenario};
use edgeweld_ffi::{GenerateOptions, Message, Role, SdkError, Token, TokenListener};

#[test]
fn the_whole_flow_and_each_error_in_rust() {
    let folder = tempfile::tempdir().unwrap();
    let stage = Stage::new().unwrap();
    let facts = scenario::play(&stage.facts, folder.path());
    assert_ne!(facts["base_text"], facts["pack_text"]);
    assert_eq!(facts["tampered_actual"].len(), "sha256:".len() + 64);
    a_panic_closes_its_session_and_nothing_else(&stage.facts["model"]);
}

struct Panics;

impl TokenListener for Panics {
    fn on_token(&self, _: Token) -> Result<(), SdkError> {
        panic!("in the middle of a turn");
    }

    fn on_prefill(&self, _: u64, _: u64) -> Result<(), SdkError> {
        Ok(())
    }
}

/// Part of the one test, because the live objects that it counts are the process's.
fn a_panic_closes_its_session_and_nothing_else(model: &str) {
    let engine = scenario::load(model);
    let ask = |session: &edgeweld_ffi::Session, listener: Option<std::sync::Arc<dyn TokenListener>>| {
        let options = GenerateOptions { max_tokens: 2, ..Default::default() };
        session.chat_blocking(vec![Message::new(Role::User, "Hello")], options, listener, None)
    };
    let session = engine.session().unwrap();
    let call = std::panic::AssertUnwindSafe(|| ask(&session, Some(std::sync::Arc::new(Panics))));
    assert!(std::panic::catch_unwind(call).is_err());
    let closed = ask(&session, None);
    assert!(matches!(&closed, Err(SdkError::Internal { reason }) if reason.contains("closed")), "{closed:?}");
    assert_eq!(ask(&engine.session().unwrap(), None).unwrap().generated_tokens, 2);
}
