use edgeweld::chat;

use crate::SdkError;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
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

impl From<Role> for chat::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::System => Self::System,
            Role::User => Self::User,
            Role::Assistant => Self::Assistant,
            Role::Tool => Self::Tool,
        }
    }
}

/// A function that the model asked to be called.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct ToolCall {
    /// Names the call, where the model numbers its calls.
    #[uniffi(default = None)]
    pub id: Option<String>,
    /// The function.
    pub name: String,
    /// Its arguments as JSON text.
    pub arguments_json: String,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; never read as control tokens.
    pub content: String,
    /// Calls the assistant makes in this turn.
    #[uniffi(default = [])]
    pub tool_calls: Vec<ToolCall>,
    /// The function whose result a tool message holds.
    #[uniffi(default = None)]
    pub name: Option<String>,
}

impl Message {
    /// A message without tool calls.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), tool_calls: Vec::new(), name: None }
    }
}

impl TryFrom<ToolCall> for chat::ToolCall {
    type Error = SdkError;

    fn try_from(call: ToolCall) -> Result<Self, SdkError> {
        let arguments = serde_json::from_str(&call.arguments_json).map_err(|error| SdkError::InvalidArgument {
            argument: "arguments_json".into(),
            reason: error.to_string(),
        })?;
        Ok(Self { id: call.id, name: call.name, arguments })
    }
}

impl TryFrom<Message> for chat::Message {
    type Error = SdkError;

    fn try_from(message: Message) -> Result<Self, SdkError> {
        Ok(Self {
            role: message.role.into(),
            content: message.content,
            tool_calls: message.tool_calls.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            name: message.name,
        })
    }
}
