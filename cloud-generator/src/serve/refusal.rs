use axum::http::header::{CACHE_CONTROL, CONTENT_RANGE, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::Error;

/// Why a request is refused. The variant's name in snake case is `error` in the answer's JSON, its fields are facts.
#[derive(Debug, PartialEq, thiserror::Error, Serialize)]
#[serde(tag = "error", rename_all = "snake_case")]
pub(super) enum Refusal {
    #[error("the request needs the header Authorization: Bearer <token>")]
    Unauthorized,
    #[error("no such resource")]
    NotFound,
    #[error("this resource does not take that method")]
    MethodNotAllowed,
    #[error("{digest} is not sha256: and 64 lower-case hex digits")]
    MalformedDigest { digest: String },
    #[error("no file {digest} here")]
    UnknownDigest { digest: String },
    #[error("the range is malformed or outside the file's {size_bytes} bytes")]
    RangeNotSatisfiable { size_bytes: u64 },
    #[error("the body has more than {limit_bytes} bytes")]
    BodyTooLarge { limit_bytes: usize },
    #[error("the body did not arrive in {limit_seconds} s")]
    BodyTimeout { limit_seconds: u64 },
    #[error("the connection ended before the body")]
    BodyIncomplete,
    #[error("the body is not the JSON object that this resource takes: {reason}")]
    InvalidRequest { reason: String },
    #[error("packs are made for {available} here, not for {edge:?}")]
    UnknownEdge { edge: String, available: String },
    #[error("the prompt is empty")]
    EmptyPrompt,
    #[error("the prompt has {actual_bytes} bytes, the limit is {limit_bytes}")]
    PromptTooLarge { actual_bytes: usize, limit_bytes: usize },
    #[error("the prompt has {actual} tokens, the generator takes {limit}")]
    PromptTooLong { actual: usize, limit: usize },
    #[error("the residual prompt has {actual} tokens, a pack takes {limit}")]
    ResidualPromptTooLong { actual: usize, limit: usize },
    #[error("{field}: {reason}")]
    InvalidField { field: &'static str, reason: String },
    #[error("too many packs are being made; try again later")]
    Busy,
    #[error("the server is stopping; try again later")]
    Stopping,
    #[error("the server failed; its log says why")]
    Internal,
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::NotFound | Self::UnknownDigest { .. } => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::RangeNotSatisfiable { .. } => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::BodyTooLarge { .. } | Self::PromptTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::MalformedDigest { .. } | Self::InvalidRequest { .. } | Self::BodyIncomplete => {
                StatusCode::BAD_REQUEST
            }
            Self::UnknownEdge { .. }
            | Self::EmptyPrompt
            | Self::PromptTooLong { .. }
            | Self::ResidualPromptTooLong { .. }
            | Self::InvalidField { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Busy | Self::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl From<Error> for Refusal {
    /// What the client can act on keeps its name; anything else is logged here and stays inside.
    fn from(error: Error) -> Self {
        use edgeweld::Error::{Cancelled, InvalidPack};
        use edgeweld::pack::PackDefect::ManifestField;
        match error {
            Error::EmptyPrompt => Self::EmptyPrompt,
            Error::PromptTooLong { actual, limit } => Self::PromptTooLong { actual, limit },
            Error::ResidualPromptTooLong { actual, limit } => Self::ResidualPromptTooLong { actual, limit },
            Error::Edge(InvalidPack { reason: ManifestField { field, reason } }) => {
                Self::InvalidField { field, reason }
            }
            Error::Edge(Cancelled) => Self::Stopping,
            error => {
                log::error!("{error}");
                Self::Internal
            }
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut body = serde_json::to_value(&self).expect("plain values");
        body["message"] = self.to_string().into();
        let mut response = json(self.status(), &body);
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        match self {
            Self::Unauthorized => drop(headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            Self::Busy | Self::Stopping => drop(headers.insert(RETRY_AFTER, HeaderValue::from_static("5"))),
            Self::RangeNotSatisfiable { size_bytes } => {
                let range = HeaderValue::try_from(format!("bytes */{size_bytes}")).expect("digits");
                headers.insert(CONTENT_RANGE, range);
            }
            _ => {}
        }
        response
    }
}

pub(super) fn json(status: StatusCode, body: &serde_json::Value) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}
