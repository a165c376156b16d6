//! Which methods does the demo service have?

use std::time::Duration;

use serde::Deserialize;
use serde_json::Number;
use srpc::call::Raw;
use srpc::instance::ServiceName;
use srpc::{Kind, Service, Status};

/// The demo service: `Sum`, `Sleep`, `Echo`, `Fail` and `Panic`.
pub(crate) fn service(name: &ServiceName) -> Service {
    Service::new(name.as_str())
        .method("Sum", sum)
        .method("Sleep", sleep)
        .method("Echo", echo)
        .method("Fail", fail)
        .method("Panic", panic)
}

#[derive(Deserialize)]
struct SumArgs {
    num1: i64,
    num2: i64,
}

async fn sum(args: SumArgs) -> Result<i64, Status> {
    args.num1
        .checked_add(args.num2)
        .ok_or_else(|| Status::new(Kind::OutOfRange, "the sum is beyond 64 bits"))
}

#[derive(Deserialize)]
struct SleepArgs {
    /// Seconds, whole or not; answered as they came.
    num1: Number,
}

async fn sleep(args: SleepArgs) -> Result<Number, Status> {
    let seconds = args.num1.as_f64().unwrap_or(f64::NAN);
    let duration = Duration::try_from_secs_f64(seconds)
        .map_err(|error| Status::new(Kind::InvalidArgument, format!("num1: {error}")))?;
    tokio::time::sleep(duration).await;
    Ok(args.num1)
}

async fn echo(argument: Raw) -> Result<Raw, Status> {
    Ok(argument)
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct FailArgs {
    /// The number of the kind to fail with. Default: 2, unknown.
    code: Option<u8>,
    /// The text to fail with. Default: "failed, as asked".
    message: Option<String>,
}

async fn fail(args: Option<FailArgs>) -> Result<(), Status> {
    let args = args.unwrap_or_default();
    let kind = args.code.map_or(Kind::Unknown, Kind::from_code);
    let message = args.message.unwrap_or_else(|| "failed, as asked".to_owned());
    Err(Status::new(kind, message))
}

async fn panic(_: Raw) -> Result<(), Status> {
    panic!("a panic, as asked")
}
