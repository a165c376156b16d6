//! What can be said on the command line?

use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use srpc::instance::{Address, InvalidAddress, ServiceName};
use srpc::server::Concurrency;

use crate::access::Access;
use crate::caps::Caps;
use crate::credentials::Credentials;
use crate::exit::{self, Exit};
use crate::output::Format;
use crate::tls::{Dialling, Listening};

/// Nothing that runs or waits is given longer than a year.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Each worker of a bench is a task with a call in flight.
const MOST_WORKERS: u64 = 100_000;

/// Services that run as several instances: a registry, a demo service, calls and measurements
#[derive(Debug, Parser)]
#[command(name = "srpc", version, after_help = exit::CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) shared: Shared,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where the registry's URL comes from if no option gives it.
pub(crate) const REGISTRY_VARIABLE: &str = "SRPC_REGISTRY";

// What every subcommand takes.
#[derive(Debug, Args)]
pub(crate) struct Shared {
    /// Where the registry is: http://, etcd://, zookeeper://, dns://, dns+srv://, file:// or static://;
    /// several of http://, separated by commas, stand in for each other
    #[arg(long, global = true, env = REGISTRY_VARIABLE, hide_env_values = true,
        value_name = "URL[,URL]")]
    pub(crate) registry: Option<String>,
    /// Each call's deadline in `call` and `bench`, else each registry request's limit
    #[arg(long, global = true, default_value = "5s", value_name = "DURATION",
        value_parser = positive_duration)]
    pub(crate) timeout: Duration,
    /// The form of the output; `name` and `wide` are the table where they have no meaning
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT",
        default_value_t = Format::Table)]
    pub(crate) output: Format,
    /// What is logged to stderr, such as `debug` or `srpc=info`
    #[arg(long, global = true, env = "SRPC_LOG", value_name = "FILTER")]
    pub(crate) log: Option<String>,
}

impl Shared {
    /// The registry's URL, if one was given.
    pub(crate) fn registry(&self) -> Option<&str> {
        self.registry.as_deref().filter(|urls| !urls.is_empty())
    }

    /// The registry's URL, which the command cannot do without.
    pub(crate) fn required_registry(&self) -> Result<&str, Exit> {
        let missing = || Exit::usage("no registry: give --registry URL, or set SRPC_REGISTRY");
        self.registry().ok_or_else(missing)
    }
}

// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a registry
    Registry(Registry),
    /// Run the demo service: Sum {"num1","num2"}, Sleep {"num1": seconds}, Echo ANY, Fail
    /// {"code","message"} and Panic
    Serve(Serve),
    /// List the instances that a registry knows
    List(List),
    /// Make one call
    Call(Call),
    /// Make many calls and measure them
    Bench(Bench),
}

// `srpc registry`
#[derive(Debug, Args)]
pub(crate) struct Registry {
    /// Where to listen; port 0 is any free port
    #[arg(long, default_value = "127.0.0.1:9999", value_name = "ADDR",
        value_parser = address_to_bind)]
    pub(crate) bind: Address,
    /// The longest lease, and that of an instance which asks for none; 0: the latter never expires
    #[arg(long, default_value = "5m", value_name = "DURATION", value_parser = duration)]
    pub(crate) ttl: Duration,
    /// Another registry, etcd:// or zookeeper:// or http://, that all is kept in: then this one is a
    /// front, of which several may run, and any may be killed
    #[arg(long, value_name = "URL")]
    pub(crate) backend: Option<String>,
    #[command(flatten)]
    pub(crate) access: Access,
    #[command(flatten)]
    pub(crate) caps: Caps,
    #[command(flatten)]
    pub(crate) listening: Listening,
}

// `srpc serve`
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// The service's name
    #[arg(long, default_value = "Foo", value_name = "NAME")]
    pub(crate) service: ServiceName,
    /// Where to listen; port 0 is any free port
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDR",
        value_parser = address_to_bind)]
    pub(crate) bind: Address,
    /// The lease asked for
    #[arg(long, default_value = "15s", value_name = "DURATION",
        value_parser = positive_duration)]
    pub(crate) ttl: Duration,
    /// The address that others dial, where it is not the one listened on
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub(crate) advertise: Option<Address>,
    /// The failure domain it runs in
    #[arg(long)]
    pub(crate) zone: Option<String>,
    /// Its share of calls relative to its peers'
    #[arg(long, default_value_t = 1)]
    pub(crate) weight: u32,
    /// Metadata; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) meta: Vec<(String, String)>,
    /// How long a registered server still takes calls once it drains [default: 2s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) drain_delay: Option<Duration>,
    /// How long calls in flight may go on after that [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) grace: Option<Duration>,
    /// How many calls may be at work at once: a number, or `adaptive`; more are turned away
    /// [default: no limit]
    #[arg(long, value_name = "N|adaptive", value_parser = concurrency)]
    pub(crate) concurrency: Option<Concurrency>,
    /// The most connections from one address [default: 256]
    #[arg(long, value_name = "N", value_parser = positive_count)]
    pub(crate) max_connections_per_host: Option<u64>,
    #[command(flatten)]
    pub(crate) credentials: Credentials,
    #[command(flatten)]
    pub(crate) listening: Listening,
    #[command(flatten)]
    pub(crate) dialling: Dialling,
}

// `srpc list`
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only this service's instances
    pub(crate) service: Option<ServiceName>,
    #[command(flatten)]
    pub(crate) credentials: Credentials,
    #[command(flatten)]
    pub(crate) dialling: Dialling,
}

// `srpc call`
#[derive(Debug, Args)]
pub(crate) struct Call {
    /// A service's name, or the address of an instance
    pub(crate) target: String,
    /// `Foo.Sum`, or `Sum` alone if the target is a service's name
    pub(crate) method: String,
    /// The argument: JSON, `@file`, or `-` for standard input
    #[arg(allow_negative_numbers = true)]
    pub(crate) json: String,
    /// Call every instance and show each one's outcome
    #[arg(long)]
    pub(crate) broadcast: bool,
    /// A second execution does no harm: send it again when its fate is unknown
    #[arg(long)]
    pub(crate) idempotent: bool,
    /// Calls with the same key go to the same instance
    #[arg(long, value_name = "KEY", conflicts_with = "broadcast")]
    pub(crate) hash_key: Option<String>,
    /// Metadata that travels with the call; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) meta: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) credentials: Credentials,
    #[command(flatten)]
    pub(crate) dialling: Dialling,
}

// `srpc bench`
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// A service's name, or the address of an instance
    pub(crate) target: String,
    /// `Foo.Sum`, or `Sum` alone if the target is a service's name
    pub(crate) method: String,
    /// The argument: JSON, `@file`, or `-` for standard input
    #[arg(allow_negative_numbers = true)]
    pub(crate) json: String,
    /// Ends after this many calls, such as `10k` [default: 200, unless -z is given]
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = positive_count)]
    pub(crate) calls: Option<u64>,
    /// Ends after this long, such as `30s`
    #[arg(short = 'z', long, value_name = "DURATION", value_parser = positive_duration)]
    pub(crate) duration: Option<Duration>,
    /// How many calls are in flight at most
    #[arg(short = 'c', long, default_value = "50", value_name = "COUNT",
        value_parser = workers)]
    pub(crate) concurrency: u64,
    /// Calls a second, on a schedule: latency counts from when each call was due. Without it each
    /// worker makes its next call when the last one has ended
    #[arg(long, value_name = "COUNT", value_parser = positive_count)]
    pub(crate) rate: Option<u64>,
    /// A second execution does no harm: send calls again when their fate is unknown
    #[arg(long)]
    pub(crate) idempotent: bool,
    #[command(flatten)]
    pub(crate) credentials: Credentials,
    #[command(flatten)]
    pub(crate) dialling: Dialling,
}

/// `300ms`, `2s`, `5m`, `1h` or a bare `0`.
fn duration(text: &str) -> Result<Duration, String> {
    const WRONG: &str = "a duration is `300ms`, `2s`, `5m`, `1h` or `0`, and at most a year";
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).ok_or(WRONG)?;
    let (number, unit) = text.split_at(unit_at);
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        _ => return Err(WRONG.into()),
    };
    let number: u64 = number.parse().map_err(|_| WRONG)?;
    number
        .checked_mul(milliseconds)
        .map(Duration::from_millis)
        .filter(|duration| *duration <= LONGEST)
        .ok_or_else(|| WRONG.into())
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration.is_zero() { Err("it must be more than 0".into()) } else { Ok(duration) }
}

/// `200`, `10k` or `2m`.
pub(crate) fn positive_count(text: &str) -> Result<u64, String> {
    let (digits, times) = match text.strip_suffix('k') {
        Some(digits) => (digits, 1000),
        None => text.strip_suffix('m').map_or((text, 1), |digits| (digits, 1_000_000)),
    };
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let number = digits.parse::<u64>().ok().filter(|_| is_number);
    match number.and_then(|number| number.checked_mul(times)) {
        None => Err("a count is a whole number such as `200`, `10k` or `2m`".into()),
        Some(0) => Err("it must be more than 0".into()),
        Some(count) => Ok(count),
    }
}

fn concurrency(text: &str) -> Result<Concurrency, String> {
    if text == "adaptive" {
        return Ok(Concurrency::adaptive());
    }
    let count = positive_count(text)
        .map_err(|_| "it is `adaptive`, or a whole number above 0 such as `200` or `1k`")?;
    Ok(Concurrency::Fixed(count.try_into().unwrap_or(usize::MAX)))
}

fn workers(text: &str) -> Result<u64, String> {
    match positive_count(text)? {
        count if count <= MOST_WORKERS => Ok(count),
        _ => Err(format!("at most {MOST_WORKERS}")),
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("it is KEY=VALUE".into()),
    }
}

fn address_to_bind(text: &str) -> Result<Address, InvalidAddress> {
    Address::to_bind(&with_protocol(text))
}

fn address(text: &str) -> Result<Address, InvalidAddress> {
    Address::to_dial(&with_protocol(text))
}

/// `host:port` is TCP's.
fn with_protocol(text: &str) -> String {
    if text.contains('@') { text.to_owned() } else { format!("tcp@{text}") }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations() {
        for (text, milliseconds) in
            [("0", 0), ("0s", 0), ("300ms", 300), ("2s", 2000), ("5m", 300_000), ("1h", 3_600_000)]
        {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(milliseconds), "{text}");
        }
        for wrong in ["", "5", "s", "-1s", "+1s", "1.5s", "1 s", "1d", "9000h", "1s1s"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
        assert!(positive_duration("0").is_err());
    }

    #[test]
    fn counts() {
        for (text, count) in [("200", 200), ("10k", 10_000), ("2m", 2_000_000)] {
            assert_eq!(positive_count(text).unwrap(), count, "{text}");
        }
        for wrong in ["", "0", "k", "-1", "+1", "1.5k", "10kk", "18446744073709551615k"] {
            assert!(positive_count(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_shared_may_follow_the_subcommand() {
        let cli = Cli::try_parse_from([
            "srpc",
            "call",
            "Foo",
            "Sum",
            "-5",
            "--timeout",
            "300ms",
            "-o",
            "json",
        ])
        .unwrap();
        assert_eq!(cli.shared.timeout, Duration::from_millis(300));
        assert_eq!(cli.shared.output, Format::Json);
        let Command::Call(call) = cli.command else { panic!("not a call") };
        assert_eq!(call.json, "-5");
    }
}
