//! The bodies of requests: read as JSON within their limits, or drained.

use std::pin::{Pin, pin};
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::request::Parts;
use http_body_util::BodyExt;
use hyper::body::{Body, Buf};
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use super::memory::RequestMemory;
use super::problem::Refusal;
use super::usage::{Activity, Usage};
use super::{Shared, api};
use crate::transport::CHARGE_STEP;

/// How many bytes of a body that nobody wants are read, so that its connection can go on.
const MAX_DRAINED: u64 = 64 * 1024;
/// How long that may take.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The body as JSON of this shape. What is nested deeper than 128 is an error, except in a field
/// that is not known, which is skipped without recursion.
pub(super) async fn read<T: DeserializeOwned, B: Body>(
    parts: &Parts,
    body: B,
    shared: &Shared,
) -> Result<T, Refusal> {
    let limits = &shared.limits;
    if !is_json(parts) {
        return Err(Refusal::not_json_type());
    }
    let usage = Usage::of(parts);
    if let Some(usage) = usage {
        usage.begin(Activity::Receiving);
    }
    // Held until it is parsed.
    let mut memory = shared.memory(parts);
    let collected = collect(body, limits.max_body, &mut memory, usage);
    let bytes = tokio::time::timeout(limits.body_timeout, collected)
        .await
        .unwrap_or_else(|_| Err(Refusal::body_timeout()))?;
    if let Some(usage) = usage {
        usage.begin(Activity::Working);
    }
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
/// size. Before more than a step of it is held, the whole is charged: what it says to be its length, or the
/// most that it may have.
async fn collect<B: Body>(
    body: B,
    max: usize,
    memory: &mut RequestMemory,
    usage: Option<&Usage>,
) -> Result<Vec<u8>, Refusal> {
    let mut body = pin!(body);
    let length = body.size_hint().upper().and_then(|length| usize::try_from(length).ok());
    let most = length.unwrap_or(max).min(max);
    let mut is_charged = false;
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Refusal::unreadable_body("it ended early"))?;
        let Ok(mut data) = frame.into_data() else { continue };
        if data.remaining() > max - bytes.len() {
            return Err(Refusal::too_large(max));
        }
        if !is_charged && bytes.len() + data.remaining() >= CHARGE_STEP {
            memory.raise(most).await?;
            is_charged = true;
            if let Some(usage) = usage {
                // It was this server that made it wait.
                usage.begin(Activity::Receiving);
            }
        }
        if let Some(usage) = usage {
            usage.moved(data.remaining());
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

/// Reads what is left of a body that nobody wants. False: it is too long, or does not come.
pub(super) async fn drain<B: Body>(mut body: Pin<&mut B>) -> bool {
    if body.size_hint().lower() > MAX_DRAINED {
        return false;
    }
    let rest = async {
        let mut left = MAX_DRAINED;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return false };
            let bytes = frame.data_ref().map_or(0, |data| data.remaining() as u64);
            match left.checked_sub(bytes) {
                Some(less) => left = less,
                None => return false,
            }
        }
        true
    };
    tokio::time::timeout(DRAIN_TIMEOUT, rest).await.unwrap_or(false)
}
