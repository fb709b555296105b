//! A shorter way for tokens to the JVM.
//!
//! JNA calls a foreign trait's methods by reflection and makes a Java object, with memory of its own, of each struct among their
//! arguments. A function that takes numbers it calls as JNI does. So a token is written here as UniFFI writes it and its
//! address passed on. The other side is `chatBlocking` with a function, in `bindings/kotlin`; ADR 2 has the figures.

use std::sync::Arc;

use uniffi::Lower;

use crate::{SdkError, Token, TokenListener, UniFfiTag};

/// Is given where a token lies during the call and how many bytes it has; returns 0 for the turn to go on.
type OnToken = extern "C" fn(u64, u64) -> i32;

struct DirectListener(OnToken);

impl TokenListener for DirectListener {
    fn on_token(&self, token: Token) -> Result<(), SdkError> {
        let mut bytes = Vec::new();
        <Token as Lower<UniFfiTag>>::write(token, &mut bytes);
        match (self.0)(bytes.as_ptr() as u64, bytes.len() as u64) {
            0 => Ok(()),
            _ => Err(SdkError::Internal { reason: "the listener failed".to_owned() }),
        }
    }

    fn on_prefill(&self, _: u64, _: u64) -> Result<(), SdkError> {
        Ok(())
    }
}

/// The handle of a listener that calls this function, as the generated `TokenListener` takes it over.
#[unsafe(no_mangle)]
extern "C" fn edgeweld_ffi_direct_listener(on_token: OnToken) -> u64 {
    let listener: Arc<dyn TokenListener> = Arc::new(DirectListener(on_token));
    <Arc<dyn TokenListener> as Lower<UniFfiTag>>::lower(listener).as_raw()
}

#[cfg(test)]
mod tests {
    use uniffi::Lift;

    use super::*;

    /// Goes on after the token that it expects.
    extern "C" fn expects_paris(address: u64, size_bytes: u64) -> i32 {
        // SAFETY: it is called with bytes that live until it returns.
        let mut bytes = unsafe { std::slice::from_raw_parts(address as *const u8, size_bytes as usize) };
        let token = <Token as Lift<UniFfiTag>>::try_read(&mut bytes).unwrap();
        i32::from(!(bytes.is_empty() && token == paris()))
    }

    fn paris() -> Token {
        Token { id: 7042, text: " Paris".to_owned(), logprob: Some(-0.25), top_logprobs: Vec::new() }
    }

    #[test]
    fn a_token_arrives_whole() {
        assert_eq!(DirectListener(expects_paris).on_token(paris()), Ok(()));
    }

    #[test]
    fn a_function_that_does_not_want_to_go_on_fails_the_turn() {
        let other = Token { text: " Rome".to_owned(), ..paris() };
        assert!(matches!(DirectListener(expects_paris).on_token(other), Err(SdkError::Internal { .. })));
    }
}
