//! Suggestions for mistyped names: commands, options and services.

use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command};
use srpc::discovery::Discovery;
use srpc::instance::ServiceName;
use tokio::time::timeout;

/// How long a registry is asked which services there are: for a hint alone.
const SERVICES_TIMEOUT: Duration = Duration::from_secs(1);
/// How many known names are compared.
const MAX_COMPARED: usize = 10_000;

/// `; did you mean "Foo"?`, or nothing if no known name is close.
pub(crate) fn hint<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known = known.into_iter().take(MAX_COMPARED);
    let near = known.filter_map(|name| Some((distance_of(given, name)?, name)));
    match near.min() {
        Some((_, name)) => format!("; did you mean {name:?}?"),
        None => String::new(),
    }
}

/// The same for a service that the source does not know.
pub(crate) async fn service(discovery: &dyn Discovery, service: &ServiceName) -> String {
    match timeout(SERVICES_TIMEOUT, discovery.services()).await {
        Ok(Ok(known)) => hint(service.as_str(), known.iter().map(ServiceName::as_str)),
        _ => String::new(),
    }
}

/// The same for what is wrong on the command line.
pub(crate) fn command_line(
    error: &clap::Error,
    command: &Command,
    args: impl IntoIterator<Item = String>,
) -> String {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    if let Some(given) = text(ContextKind::InvalidSubcommand) {
        return hint(given, command.get_subcommands().map(Command::get_name));
    }
    if let (Some(given), Some(ContextValue::Strings(known))) =
        (text(ContextKind::InvalidValue), error.get(ContextKind::ValidValue))
    {
        return hint(given, known.iter().map(String::as_str));
    }
    let Some(given) = text(ContextKind::InvalidArg)
        .filter(|arg| error.kind() == ErrorKind::UnknownArgument && arg.starts_with("--"))
    else {
        return String::new();
    };
    let chosen = args.into_iter().find_map(|arg| command.find_subcommand(arg));
    let options =
        command.get_arguments().chain(chosen.into_iter().flat_map(Command::get_arguments));
    let known: Vec<String> =
        options.filter_map(Arg::get_long).map(|name| format!("--{name}")).collect();
    hint(given, known.iter().map(String::as_str))
}

/// How far a known name is from the one given; `None`: too far to be meant.
fn distance_of(given: &str, known: &str) -> Option<usize> {
    // A service's name may be given without what comes before its last dot.
    if known.rsplit_once('.').is_some_and(|(_, last)| last.eq_ignore_ascii_case(given)) {
        return Some(1);
    }
    let lower = |text: &str| text.to_lowercase().chars().collect::<Vec<char>>();
    let (given, known) = (lower(given), lower(known));
    let most = (given.len() / 3).clamp(1, 3).min(given.len().saturating_sub(1));
    if given.len().abs_diff(known.len()) > most {
        return None;
    }
    let distance = edits(&given, &known);
    (distance <= most).then_some(distance)
}

/// How many characters are inserted, removed, replaced, or swapped with the next one.
fn edits(one: &[char], other: &[char]) -> usize {
    let mut rows = vec![vec![0; other.len() + 1]; one.len() + 1];
    for (at, row) in rows.iter_mut().enumerate() {
        row[0] = at;
    }
    for (at, cell) in rows[0].iter_mut().enumerate() {
        *cell = at;
    }
    for i in 1..=one.len() {
        for j in 1..=other.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(one[i - 1] != other[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[one.len()][other.len()]
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::args::Cli;

    #[test]
    fn what_is_close_is_suggested() {
        for (given, known, meant) in [
            ("lst", &["list", "call", "serve"][..], "list"),
            ("foo", &["Bar", "Foo"], "Foo"),
            ("Cart", &["shop.Cart", "Foo"], "shop.Cart"),
            ("Crat", &["Cart", "Carts"], "Cart"),
            ("--regsitry", &["--registry", "--rate"], "--registry"),
        ] {
            assert_eq!(hint(given, known.iter().copied()), format!("; did you mean {meant:?}?"));
        }
        assert_eq!(hint("Nobody", ["Foo", "Bar"]), "");
        assert_eq!(hint("x", ["y", "xyz"]), "");
        assert_eq!(hint("x", std::iter::empty()), "");
    }

    #[test]
    fn a_command_line_that_is_close_is_told() {
        for (line, meant) in [
            ("srpc lst", "; did you mean \"list\"?"),
            ("srpc list --regsitry http://a", "; did you mean \"--registry\"?"),
            ("srpc registry --bnd 127.0.0.1:0", "; did you mean \"--bind\"?"),
            ("srpc list -o jsn", "; did you mean \"json\"?"),
            ("srpc list --nothing-like-it", ""),
        ] {
            let args = || line.split(' ').map(str::to_owned);
            let error = Cli::try_parse_from(args()).unwrap_err();
            assert_eq!(command_line(&error, &Cli::command(), args()), meant, "{line}");
        }
    }
}
