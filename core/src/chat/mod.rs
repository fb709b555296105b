//! Messages to the text and tokens that a model was trained to see.
//!
//! [`ChatTemplate::from_gguf`] takes the model file's own template, or one for its family when the file has
//! none. [`ChatTemplate::encode`] renders messages and encodes the result so that no message can forge a control
//! token: see [`Rendered::literal`].

mod built_in;
mod examples;
mod folder;
mod guard;
mod jinja;
mod json;
mod message;
mod python;
mod time;

use std::ops::Range;
use std::time::SystemTime;

use minijinja::value::Serde;
use minijinja::{Environment, Value};

use crate::gguf::Metadata;
use crate::tokenizer::{EncodeOptions, Tokenizer};
use crate::{Digest, Error, Result};
use built_in::BuiltIn;
pub use examples::examples_as_turns;
use guard::Guard;
pub use message::{Message, Role, ToolCall};

/// Longest template; the longest published ones have 20 KB.
const TEMPLATE_BYTES_MAX: usize = 1 << 20;

/// How [`ChatTemplate::render`] treats messages.
#[derive(Clone, Debug)]
pub struct RenderOptions {
    /// End with the start of an assistant turn. Default: yes.
    pub add_generation_prompt: bool,
    /// Keep the system turn that some templates invent when no message has the system role (SmolLM2's: "You are a
    /// helpful AI assistant named SmolLM, …"). Default: yes, as `transformers` does. Off, the conversation
    /// starts with its first message, which is what a model that was specialised without a prompt has seen.
    pub default_system: bool,
    /// Tools the model may call, as JSON-schema function descriptions; their strings are treated as untrusted.
    pub tools: Vec<serde_json::Value>,
    /// What `strftime_now` answers, in UTC. Default (`None`): the time of rendering.
    pub now: Option<SystemTime>,
}

impl Default for RenderOptions {
    fn default() -> Self {
        Self { add_generation_prompt: true, default_system: true, tools: Vec::new(), now: None }
    }
}

/// What a template made of messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The text, control tokens written out.
    pub text: String,
    /// Byte ranges of `text`, ascending and disjoint, that came from messages or tools and look like control
    /// tokens, in whole or in part. They must be encoded as plain text
    /// ([`Tokenizer::encode_guarded`]): otherwise whoever writes a message could end the user's turn and speak as
    /// the system.
    pub literal: Vec<Range<usize>>,
}

/// A chat template, compiled. Immutable; share it between threads.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    built_in: Option<BuiltIn>,
}

impl ChatTemplate {
    /// The template of a model file (`tokenizer.chat_template`). Without one, a model whose name says that it was tuned
    /// for chat gets its family's (ChatML, Llama 3, Gemma, Llama 2), and a base model a plain `User: … Assistant: …`
    /// transcript.
    ///
    /// # Errors
    /// [`Error::Template`] when the file's template does not parse.
    pub fn from_gguf(metadata: Metadata<'_>, tokenizer: &Tokenizer) -> Result<Self> {
        if let Some(source) = metadata.opt_str("tokenizer.chat_template")? {
            return Self::new(source);
        }
        let name = |key| Ok::<_, Error>(metadata.opt_str(key)?.unwrap_or_default());
        let name = format!("{} {}", name("general.name")?, name("general.finetune")?);
        let built_in = BuiltIn::for_model(tokenizer, &name);
        Self::built_in(built_in)
    }

    fn built_in(built_in: BuiltIn) -> Result<Self> {
        log::info!("the model has no chat template; using the built-in {built_in:?}");
        let mut template = Self::new(built_in.source())?;
        template.built_in = Some(built_in);
        Ok(template)
    }

    /// Compiles a Jinja template as `transformers` would.
    ///
    /// # Errors
    /// [`Error::Template`] when it does not parse or has more than 1 MiB.
    pub fn new(source: &str) -> Result<Self> {
        if source.len() > TEMPLATE_BYTES_MAX {
            return Err(Error::Template {
                reason: format!("{} bytes, the limit is {TEMPLATE_BYTES_MAX}", source.len()),
            });
        }
        let environment = jinja::environment(source)?;
        Ok(Self { environment, source: source.to_owned(), built_in: None })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the model file had no template and a built-in one is used.
    pub fn is_built_in(&self) -> bool {
        self.built_in.is_some()
    }

    /// SHA-256 of the template's text.
    pub fn digest(&self) -> Digest {
        Digest::of(self.source.as_bytes())
    }

    /// Texts that end the assistant's turn where no control token does: those of the plain transcript.
    pub fn stop_strings(&self) -> &'static [&'static str] {
        self.built_in.map_or(&[], BuiltIn::stop_strings)
    }

    /// Renders `messages`.
    ///
    /// # Errors
    /// [`Error::Template`] when the template fails, refuses the messages (`raise_exception`), or runs longer or
    /// writes more than messages of this size can need.
    pub fn render(&self, tokenizer: &Tokenizer, messages: &[Message], options: &RenderOptions) -> Result<Rendered> {
        let guard = Guard::new(tokenizer, messages, &options.tools)?;
        let mut rendered = guard.unmark(&self.run(tokenizer, &guard, messages, options)?);
        if !options.default_system && messages.iter().all(|message| message.role != Role::System) {
            self.remove_default_system(tokenizer, options, &mut rendered)?;
        }
        Ok(rendered)
    }

    /// Renders and encodes `messages`, with BOS where the model wants it and the template does not write it.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn encode(&self, tokenizer: &Tokenizer, messages: &[Message], options: &RenderOptions) -> Result<Vec<u32>> {
        let rendered = self.render(tokenizer, messages, options)?;
        let as_rendered = EncodeOptions { add_special: false, parse_special: true };
        let mut ids = tokenizer.encode_guarded(&rendered.text, &rendered.literal, as_rendered)?;
        if let Some(bos) = tokenizer.bos().filter(|bos| tokenizer.adds_bos() && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    fn run(
        &self,
        tokenizer: &Tokenizer,
        guard: &Guard,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<String> {
        let text = |id: Option<u32>| {
            id.and_then(|id| tokenizer.token_bytes(id)).and_then(|bytes| std::str::from_utf8(bytes).ok())
        };
        let tools: Vec<_> = options.tools.iter().map(|tool| guard.mark_json(tool)).collect();
        let context = minijinja::context! {
            messages => messages.iter().map(|message| message.context(guard)).collect::<Vec<_>>(),
            add_generation_prompt => options.add_generation_prompt,
            // `transformers` passes none, not an empty list, and templates ask for that.
            tools => if tools.is_empty() { Value::from(()) } else { Value::from(Serde(&tools)) },
            bos_token => text(tokenizer.bos()),
            eos_token => text(tokenizer.eos()),
            pad_token => text(tokenizer.padding()),
        };
        let input_bytes: usize = messages.iter().map(Message::size_bytes).sum::<usize>()
            + options.tools.iter().map(|tool| tool.to_string().len()).sum::<usize>();
        jinja::render(&self.environment, context, input_bytes, options.now.unwrap_or_else(SystemTime::now))
    }

    /// Cuts the turn that the template writes before a conversation without a system message: what ends with an
    /// end-of-turn token before the first message's text.
    fn remove_default_system(
        &self,
        tokenizer: &Tokenizer,
        options: &RenderOptions,
        rendered: &mut Rendered,
    ) -> Result<()> {
        const PROBE: &str = "first message";
        let probe = [Message::new(Role::User, PROBE)];
        let options = RenderOptions { default_system: true, ..options.clone() };
        let Rendered { text: whole, .. } = self.render(tokenizer, &probe, &options)?;
        let Some(end) = whole.rfind(PROBE) else { return Ok(()) };
        let prefix = &whole[..end];
        let mut marks = tokenizer.find_control(prefix);
        let start = match (marks.first(), tokenizer.bos().filter(|_| tokenizer.adds_bos())) {
            (Some(mark), Some(bos))
                if mark.start == 0 && tokenizer.special_token(&prefix[mark.clone()]) == Some(bos) =>
            {
                mark.end
            }
            _ => 0,
        };
        marks.retain(|mark| {
            mark.start >= start && tokenizer.special_token(&prefix[mark.clone()]).is_some_and(|id| tokenizer.is_end(id))
        });
        let Some(turn_end) = marks.last().map(|mark| mark.end) else { return Ok(()) };
        let end = turn_end + prefix[turn_end..].len() - prefix[turn_end..].trim_start().len();
        if rendered.text.starts_with(&prefix[..end]) {
            rendered.text.replace_range(start..end, "");
            for span in &mut rendered.literal {
                *span = span.start - (end - start)..span.end - (end - start);
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("source", &self.source)
            .field("built_in", &self.built_in)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
