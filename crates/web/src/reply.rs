//! Responses that carry nothing that a terminal or a browser would obey.

use std::borrow::Cow;
use std::fmt::Write as _;

use axum::response::{IntoResponse, Response};
use base::console::printable;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde_json::{Value, json};

/// A response.
#[derive(Debug, PartialEq)]
pub struct Reply {
    /// HTTP's number.
    pub status: u16,
    /// Type of the body.
    pub content_type: &'static str,
    /// The body.
    pub body: String,
}

impl Reply {
    /// JSON.
    pub fn json(status: u16, value: &Value) -> Self {
        Self {
            status,
            content_type: "application/json",
            body: format!("{}\n", escaped(&value.to_string())),
        }
    }

    /// A refusal that says why: `{"error": "why"}`.
    pub fn refusal(status: u16, why: &str) -> Self {
        Self::json(status, &json!({"error": why}))
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let mut response = self.body.into_response();
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let content_type = HeaderValue::from_static(self.content_type);
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        response
    }
}

/// JSON of the same meaning without a character that a terminal obeys: who asks by `curl` sees what others wrote.
fn escaped(json: &str) -> Cow<'_, str> {
    if let Cow::Borrowed(same) = printable(json) {
        return Cow::Borrowed(same);
    }
    let mut escaped = String::with_capacity(json.len() + 16);
    let mut buffer = [0; 4];
    for c in json.chars() {
        match printable(c.encode_utf8(&mut buffer)) {
            Cow::Borrowed(same) => escaped.push_str(same),
            // Such characters stand in texts only, and none is beyond 16 bits.
            Cow::Owned(_) => {
                // A text takes all that is written to it.
                let _ = write!(escaped, "\\u{:04x}", c as u32);
            }
        }
    }
    Cow::Owned(escaped)
}
