use super::options::{Token, TokenListener};
use super::stop::StopStrings;
use crate::sample::Sampled;
use crate::tokenizer::{DecodeStream, Tokenizer};

/// The text of a turn as it grows: tokens become whole characters, text that may yet become a stop string is held
/// back, and the listener sees the rest.
pub(super) struct Answer<'a> {
    tokenizer: &'a Tokenizer,
    characters: DecodeStream,
    stop: StopStrings<'a>,
    pub(super) listener: &'a mut dyn TokenListener,
    text: String,
    /// Carries the text that was held back for nothing.
    last: Option<Token>,
    stopped: bool,
}

impl<'a> Answer<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, stop: &'a [String], listener: &'a mut dyn TokenListener) -> Self {
        let (characters, stop) = (tokenizer.decode_stream(), StopStrings::new(stop));
        Self { tokenizer, characters, stop, listener, text: String::new(), last: None, stopped: false }
    }

    /// Adds a token and shows it. `false` once a stop string is complete.
    pub(super) fn push(&mut self, sampled: Sampled) -> bool {
        let (text, stopped) = self.stop.push(&self.characters.push(self.tokenizer, sampled.id));
        self.stopped = stopped;
        self.text += &text;
        let token = Token { id: sampled.id, text, logprob: sampled.logprob, top_logprobs: sampled.top };
        self.listener.on_token(&token);
        self.last = Some(token);
        !stopped
    }

    /// Shows what was held back; answers the whole text, and whether a stop string ended it.
    pub(super) fn finish(mut self) -> (String, bool) {
        if !self.stopped {
            let (mut rest, stopped) = self.stop.push(&self.characters.finish());
            rest += &self.stop.finish();
            self.stopped = stopped;
            if let Some(last) = self.last.take().filter(|_| !rest.is_empty()) {
                self.text += &rest;
                self.listener.on_token(&Token { text: rest, ..last });
            }
        }
        (self.text, self.stopped)
    }
}
