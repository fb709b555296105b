use std::ops::Range;

use super::Rendered;
use super::message::{Message, json_text};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Finds, after rendering, the text of messages that looks like control tokens.
///
/// Templates trim, split and join what they are given, so positions cannot be tracked through them. Instead the
/// suspicious parts of each string are wrapped in two characters that occur in none of the strings; everything
/// else is rendered untouched. Suspicious is a control token's text, and a piece of one at the end or start of a
/// string, which the template could complete.
pub(super) struct Guard<'a> {
    tokenizer: &'a Tokenizer,
    open: char,
    close: char,
}

impl<'a> Guard<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, messages: &[Message], tools: &[serde_json::Value]) -> Result<Self> {
        let texts: Vec<String> = messages.iter().flat_map(Message::texts).chain(tools.iter().map(json_text)).collect();
        // Noncharacters first, which text should not have; then private use.
        let candidates = ('\u{fdd0}'..='\u{fdef}').chain('\u{f0000}'..='\u{ffffd}');
        let mut unused = candidates.filter(|&candidate| !texts.iter().any(|text| text.contains(candidate)));
        match (unused.next(), unused.next()) {
            (Some(open), Some(close)) => Ok(Self { tokenizer, open, close }),
            _ => Err(Error::Template { reason: "the messages use every private character".to_owned() }),
        }
    }

    /// `text` with its suspicious parts wrapped.
    pub(super) fn mark(&self, text: &str) -> String {
        let mut spans = self.tokenizer.find_control(text);
        if let Some(end) = self.start_of_partial(text) {
            spans.push(end..text.len());
        }
        if let Some(start) = self.end_of_partial(text) {
            spans.push(0..start);
        }
        let mut marked = String::with_capacity(text.len() + spans.len() * 8);
        let mut done = 0;
        for span in merged(spans) {
            marked.push_str(&text[done..span.start]);
            marked.push(self.open);
            marked.push_str(&text[span.clone()]);
            marked.push(self.close);
            done = span.end;
        }
        marked.push_str(&text[done..]);
        marked
    }

    /// Where a control token begins that `text` ends in the middle of.
    fn start_of_partial(&self, text: &str) -> Option<usize> {
        let longest = |(_, token): (u32, &str)| {
            token.char_indices().rev().map(|(at, _)| at).find(|&at| at > 0 && text.ends_with(&token[..at]))
        };
        self.tokenizer.control_tokens().filter_map(longest).max().map(|length| text.len() - length)
    }

    /// Where a control token ends that `text` starts in the middle of.
    fn end_of_partial(&self, text: &str) -> Option<usize> {
        let longest = |(_, token): (u32, &str)| {
            token.char_indices().skip(1).find(|&(at, _)| text.starts_with(&token[at..])).map(|(at, _)| token.len() - at)
        };
        self.tokenizer.control_tokens().filter_map(longest).max()
    }

    /// As [`mark`](Self::mark), for every string in `value`, keys included.
    pub(super) fn mark_json(&self, value: &serde_json::Value) -> serde_json::Value {
        match value {
            serde_json::Value::String(text) => self.mark(text).into(),
            serde_json::Value::Array(items) => items.iter().map(|item| self.mark_json(item)).collect(),
            serde_json::Value::Object(fields) => {
                fields.iter().map(|(key, value)| (self.mark(key), self.mark_json(value))).collect()
            }
            other => other.clone(),
        }
    }

    /// Takes the marks out and notes where they were. A template may have cut a string between its marks: what is
    /// open at the end counts as suspicious up to there.
    pub(super) fn unmark(&self, marked: &str) -> Rendered {
        let mut text = String::with_capacity(marked.len());
        let mut spans = Vec::new();
        let mut opened: Option<usize> = None;
        for character in marked.chars() {
            if character == self.open {
                opened.get_or_insert(text.len());
            } else if character == self.close {
                spans.extend(opened.take().map(|start| start..text.len()));
            } else {
                text.push(character);
            }
        }
        spans.extend(opened.map(|start| start..text.len()));
        Rendered { literal: merged(spans), text }
    }
}

/// Sorts spans and joins those that overlap.
fn merged(mut spans: Vec<Range<usize>>) -> Vec<Range<usize>> {
    spans.sort_by_key(|span| span.start);
    let mut out: Vec<Range<usize>> = Vec::with_capacity(spans.len());
    for span in spans.into_iter().filter(|span| !span.is_empty()) {
        match out.last_mut() {
            Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
            _ => out.push(span),
        }
    }
    out
}
