//! How does output reach its reader: data on stdout, all else on stderr?

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write as _};

use clap::ValueEnum;
use serde::Serialize;

use crate::exit::Exit;

/// The form of the data on stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// One JSON value
    Json,
    /// One JSON value a line
    Jsonl,
    /// Addresses only, one a line
    Name,
    /// The table with all columns
    Wide,
}

impl Format {
    /// Whether the reader is a program that parses JSON.
    pub(crate) fn is_json(self) -> bool {
        matches!(self, Self::Json | Self::Jsonl)
    }
}

/// Prints data and a line's end, at once: whoever waits for a first line gets it.
pub(crate) fn print(text: &str) -> Result<(), Exit> {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.write_all(b"\n"))
        .and_then(|()| stdout.flush());
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Exit::unread(),
        _ => Exit::failed(format!("standard output: {error}")),
    })
}

/// Prints a value as one line of JSON.
pub(crate) fn print_json<T: Serialize + ?Sized>(value: &T) -> Result<(), Exit> {
    let text = serde_json::to_string(value)
        .map_err(|error| Exit::failed(format!("no JSON for the output: {error}")))?;
    print(&inert(&text))
}

/// A server's first line.
pub(crate) fn print_listening(format: Format, at: &str) -> Result<(), Exit> {
    #[derive(Serialize)]
    struct Listening<'a> {
        listening: &'a str,
    }
    if format.is_json() {
        print_json(&Listening { listening: at })
    } else {
        print(&format!("listening on {}", printable(at)))
    }
}

/// Says something beside the data.
pub(crate) fn note(text: &str) {
    // There is nobody left to tell that nobody can be told.
    let _ = writeln!(io::stderr(), "srpc: {}", printable(text));
}

/// Says why a command failed: on stderr, and for a program that parses stdout there too.
pub(crate) fn failed(format: Format, exit: &Exit) {
    if exit.message().is_empty() {
        return;
    }
    print_failed(format, exit);
    note(exit.message());
}

/// Prints a failure in place of data, if the format is JSON.
pub(crate) fn print_failed(format: Format, exit: &Exit) {
    if let Some(failed) = exit.as_data().filter(|_| format.is_json()) {
        // The exit code says it too, if stdout cannot be written.
        let _ = print_json(&failed);
    }
}

/// The format that a command line asks for which was not understood as a whole.
pub(crate) fn format_in(args: impl IntoIterator<Item = String>) -> Format {
    let mut is_next = false;
    for arg in args {
        let value = match arg.strip_prefix("--output").or_else(|| arg.strip_prefix("-o")) {
            Some("") => {
                is_next = true;
                continue;
            }
            Some(value) => value.strip_prefix('=').unwrap_or(value),
            None if is_next => arg.as_str(),
            None => continue,
        };
        match value {
            "json" => return Format::Json,
            "jsonl" => return Format::Jsonl,
            _ => is_next = false,
        }
    }
    Format::Table
}

/// Columns aligned by spaces, without a line's end at the end. An empty header is left out.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let header: Vec<String> = header.iter().map(|&name| name.to_owned()).collect();
    let lines: Vec<Vec<String>> = (!header.is_empty())
        .then_some(&header)
        .into_iter()
        .chain(rows)
        .map(|row| row.iter().map(|cell| printable(cell)).collect())
        .collect();
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = lines.iter().filter_map(|line| line.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let lines: Vec<String> = lines
        .iter()
        .map(|line| {
            let mut text = String::new();
            for (cell, &width) in line.iter().zip(&widths) {
                // Writing to a string cannot fail.
                let _ = write!(text, "{cell:width$}  ");
            }
            text.truncate(text.trim_end().len());
            text
        })
        .collect();
    lines.join("\n")
}

/// Whether a character changes how the text around it is shown, or is not seen: control characters, line
/// separators, direction marks, characters without width, tags.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{34f}'
                | '\u{61c}'
                | '\u{115f}'
                | '\u{1160}'
                | '\u{17b4}'
                | '\u{17b5}'
                | '\u{180b}'..='\u{180f}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{fe00}'..='\u{fe0f}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff0}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

/// Text that may come from a peer, made harmless to a terminal.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// JSON of the same value on one line, harmless to a terminal.
pub(crate) fn inert(json: &str) -> Cow<'_, str> {
    if !json.contains(steers) {
        return Cow::Borrowed(json);
    }
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            // White space between tokens: within a string JSON has escaped it.
            '\t' | '\n' | '\r' => text.push(' '),
            c if steers(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a string cannot fail.
                    let _ = write!(text, "\\u{unit:04x}");
                }
            }
            c => text.push(c),
        }
    }
    Cow::Owned(text)
}

/// Standard error for log lines: what peers say in them neither steers the terminal nor starts a line.
#[derive(Debug)]
pub(crate) struct LogWriter;

impl io::Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let (text, end) = match text.strip_suffix('\n') {
            Some(text) => (text, "\n"),
            None => (&*text, ""),
        };
        // In one write, so that lines of several threads do not mix.
        io::stderr().write_all(format!("{}{end}", printable(text)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_found_in_a_line_that_is_not_understood() {
        for (line, format) in [
            ("srpc lst -o json", Format::Json),
            ("srpc -ojsonl lst", Format::Jsonl),
            ("srpc lst --output=json", Format::Json),
            ("srpc lst --output jsonl", Format::Jsonl),
            ("srpc lst -o table json", Format::Table),
            ("srpc registry --open-seed-pat json", Format::Table),
        ] {
            assert_eq!(format_in(line.split(' ').map(str::to_owned)), format, "{line}");
        }
    }

    #[test]
    fn json_says_the_same_and_steers_nothing() {
        let json = "{\"a\u{202e}\":\r\n \"\u{9b}2J\u{200b}\u{2028}\u{e0041}\u{7f}\",\n\"b\": \"\u{e4}\\n\"}";
        let shown = inert(json);
        assert!(!shown.contains(steers), "{shown}");
        assert!(shown.contains("\\u202e") && shown.contains("\\udb40\\udc41"), "{shown}");
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(value(&shown), value(json));
        assert!(matches!(inert("{\"a\": 1}"), Cow::Borrowed(_)));
        let escaped = "\\u{200b}a\\u{feff}\\u{61c}\\u{85}";
        assert_eq!(printable("\u{200b}a\u{feff}\u{61c}\u{85}"), escaped);
    }

    #[test]
    fn columns_line_up_and_peers_cannot_steer_the_terminal() {
        let rows = vec![
            vec!["tcp@a:1".to_owned(), "up".to_owned()],
            vec!["\u{1b}[2J".to_owned(), "draining".to_owned()],
        ];
        assert_eq!(
            table(&["ADDRESS", "HEALTH"], &rows),
            "ADDRESS    HEALTH\ntcp@a:1    up\n\\u{1b}[2J  draining"
        );
        assert_eq!(table(&[], &[]), "");
    }
}
