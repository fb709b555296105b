use std::fmt;
use std::str::FromStr;

use minijinja::Value;
use minijinja::value::Serde;
use serde::{Deserialize, Serialize};

use super::guard::Guard;
use crate::Error;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The app, to the model; at most one, first.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a call that the model made.
    Tool,
}

impl Role {
    /// `system`, `user`, `assistant` or `tool`, as templates compare it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let roles = [Self::System, Self::User, Self::Assistant, Self::Tool];
        roles.into_iter().find(|role| role.as_str() == text).ok_or_else(|| Error::InvalidOption {
            option: "role",
            reason: format!("{:?} is not system, user, assistant or tool", text.chars().take(100).collect::<String>()),
        })
    }
}

/// A function that the model asked to be called.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Names the call, where the model numbers its calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The function.
    pub name: String,
    /// Its arguments, usually an object.
    pub arguments: serde_json::Value,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; never read as control tokens.
    pub content: String,
    /// Calls the assistant makes in this turn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The function whose result a [`Role::Tool`] message holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Message {
    /// A message without tool calls.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), tool_calls: Vec::new(), name: None }
    }

    /// A system message.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new(Role::System, content)
    }

    /// A user's message.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }

    /// A model's answer.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new(Role::Assistant, content)
    }

    /// What the template sees, in the shape of `transformers`, with suspicious text marked.
    pub(super) fn context(&self, guard: &Guard) -> Value {
        let mut context = serde_json::Map::new();
        context.insert("role".into(), self.role.as_str().into());
        context.insert("content".into(), guard.mark(&self.content).into());
        if let Some(name) = &self.name {
            context.insert("name".into(), guard.mark(name).into());
        }
        if !self.tool_calls.is_empty() {
            let calls = self.tool_calls.iter().map(|call| {
                let function = serde_json::json!({ "name": guard.mark(&call.name), "arguments": guard.mark_json(&call.arguments) });
                let mut entry = serde_json::json!({ "type": "function", "function": function });
                if let Some(id) = &call.id {
                    entry["id"] = guard.mark(id).into();
                }
                entry
            });
            context.insert("tool_calls".into(), calls.collect());
        }
        Value::from(Serde(context))
    }

    /// Every text that someone other than the template wrote.
    pub(super) fn texts(&self) -> impl Iterator<Item = String> + '_ {
        let calls = self
            .tool_calls
            .iter()
            .flat_map(|call| [call.name.clone(), call.id.clone().unwrap_or_default(), json_text(&call.arguments)]);
        [self.content.clone(), self.name.clone().unwrap_or_default()].into_iter().chain(calls)
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.texts().map(|text| text.len()).sum::<usize>() + 16
    }
}

/// Every string in `value`, one after the other.
pub(super) fn json_text(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Array(items) => items.iter().map(json_text).collect(),
        serde_json::Value::Object(fields) => {
            fields.iter().map(|(key, value)| key.clone() + &json_text(value)).collect()
        }
        _ => String::new(),
    }
}
