//! Reads a request's JSON, within its limits.

use std::pin::pin;

use http::header::CONTENT_TYPE;
use http::request::Parts;
use http_body_util::BodyExt;
use hyper::body::{Body, Buf};
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use super::problem::Refusal;
use super::{Limits, api};

/// The body as JSON of this shape. What is nested deeper than 128 is an error, except in a field
/// that is not known, which is skipped without recursion.
pub(super) async fn read<T: DeserializeOwned, B: Body>(
    parts: &Parts,
    body: B,
    limits: &Limits,
) -> Result<T, Refusal> {
    if !is_json(parts) {
        return Err(Refusal::not_json_type());
    }
    let bytes = tokio::time::timeout(limits.body_timeout, collect(body, limits.max_body))
        .await
        .unwrap_or_else(|_| Err(Refusal::body_timeout()))?;
    serde_json::from_slice(&bytes).map_err(|error| match error.classify() {
        Category::Data => Refusal::invalid(error),
        Category::Io | Category::Syntax | Category::Eof => Refusal::not_json(error),
    })
}

fn is_json(parts: &Parts) -> bool {
    let Some(Ok(content_type)) = parts.headers.get(CONTENT_TYPE).map(|value| value.to_str()) else {
        return false;
    };
    let (media_type, _parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
    media_type.trim().eq_ignore_ascii_case(api::JSON)
}

/// Copies, instead of keeping the chunks: a body of chunks of one byte would cost many times its
/// size.
async fn collect<B: Body>(body: B, max: usize) -> Result<Vec<u8>, Refusal> {
    let mut body = pin!(body);
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Refusal::unreadable_body("it ended early"))?;
        let Ok(mut data) = frame.into_data() else { continue };
        if data.remaining() > max - bytes.len() {
            return Err(Refusal::too_large(max));
        }
        while data.has_remaining() {
            let chunk = data.chunk();
            let length = chunk.len();
            bytes.extend_from_slice(chunk);
            data.advance(length);
        }
    }
    Ok(bytes)
}
