//! Dropping the prompt: which model answers a conversation, and whether it sees the system message.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use super::specialize::MergedPack;
use crate::Digest;
use crate::chat::{Message, Role};

/// What a turn was answered with, and why. `Display` says it as a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Arm {
    /// The base model: no pack is merged and the conversation has no system prompt.
    Base,
    /// The base model with the system prompt in its context: no pack is merged.
    Prompt,
    /// The base model with the system prompt in its context: the merged pack stands for another prompt.
    OtherPrompt,
    /// The merged pack: it stands for the system prompt, which was dropped.
    Pack,
    /// The merged pack: the conversation has no system prompt.
    PackAlone,
}

impl Arm {
    /// Whether the pack's weights answer.
    pub fn uses_pack(self) -> bool {
        matches!(self, Self::Pack | Self::PackAlone)
    }
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Base => "base model: no pack is merged, and there is no system prompt",
            Self::Prompt => "base model with the system prompt in context: no pack is merged",
            Self::OtherPrompt => "base model with the system prompt in context: the merged pack is for another prompt",
            Self::Pack => "merged pack: it stands for the system prompt, which was dropped",
            Self::PackAlone => "merged pack: the conversation has no system prompt",
        })
    }
}

/// How one conversation is answered.
pub(super) struct Choice<'a> {
    pub(super) arm: Arm,
    /// The pack whose weights answer.
    pub(super) pack: Option<Arc<MergedPack>>,
    /// The conversation as that model gets it.
    pub(super) messages: Cow<'a, [Message]>,
}

/// Drops the leading system message if it is the one that `pack` stands for, and puts the pack's residual prompt in
/// its place.
pub(super) fn choose<'a>(pack: Option<Arc<MergedPack>>, messages: &'a [Message]) -> Choice<'a> {
    let system = messages.first().filter(|message| message.role == Role::System);
    let (arm, rest) = match (&pack, system) {
        (None, None) => (Arm::Base, messages),
        (None, Some(_)) => (Arm::Prompt, messages),
        (Some(_), None) => (Arm::PackAlone, messages),
        (Some(pack), Some(system)) if pack.prompt == Some(Digest::of(system.content.as_bytes())) => {
            (Arm::Pack, &messages[1..])
        }
        (Some(_), Some(_)) => (Arm::OtherPrompt, messages),
    };
    let pack = pack.filter(|_| arm.uses_pack());
    let messages = match pack.as_ref().and_then(|pack| pack.residual_prompt.as_ref()) {
        Some(residual) => [&[Message::system(residual)], rest].concat().into(),
        None => rest.into(),
    };
    Choice { arm, pack, messages }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::MergeMode;

    fn pack(residual: Option<&str>) -> Option<Arc<MergedPack>> {
        Some(Arc::new(MergedPack {
            digest: Digest::of(b"pack"),
            prompt: Some(Digest::of(b"long prompt")),
            residual_prompt: residual.map(str::to_owned),
            mode: MergeMode::SidePath,
            report: None,
            model: None,
            engine: std::sync::Weak::new(),
        }))
    }

    fn conversation(system: Option<&str>) -> Vec<Message> {
        system.map(Message::system).into_iter().chain([Message::user("hi")]).collect()
    }

    #[test]
    fn the_packs_own_prompt_is_dropped() {
        let messages = conversation(Some("long prompt"));
        let choice = choose(pack(None), &messages);
        assert_eq!((choice.arm, &choice.messages[..]), (Arm::Pack, &[Message::user("hi")][..]));
        assert!(choice.pack.is_some());
    }

    #[test]
    fn a_residual_prompt_takes_the_place_of_the_dropped_one() {
        for system in [Some("long prompt"), None] {
            let messages = conversation(system);
            let choice = choose(pack(Some("Today is Monday.")), &messages);
            assert_eq!(&choice.messages[..], &[Message::system("Today is Monday."), Message::user("hi")]);
        }
    }

    #[test]
    fn another_prompt_stays_and_the_base_answers() {
        for other in ["long prompt ", "Long prompt", ""] {
            let messages = conversation(Some(other));
            let choice = choose(pack(Some("residual")), &messages);
            assert_eq!((choice.arm, &choice.messages[..]), (Arm::OtherPrompt, &messages[..]));
            assert!(choice.pack.is_none());
        }
    }

    #[test]
    fn without_a_pack_the_base_answers() {
        for (system, arm) in [(Some("long prompt"), Arm::Prompt), (None, Arm::Base)] {
            let messages = conversation(system);
            let choice = choose(None, &messages);
            assert_eq!((choice.arm, &choice.messages[..]), (arm, &messages[..]));
        }
    }

    #[test]
    fn only_the_leading_message_counts_as_the_prompt() {
        let messages = [Message::user("hi"), Message::system("long prompt")];
        assert_eq!(choose(pack(None), &messages).arm, Arm::PackAlone);
    }
}
