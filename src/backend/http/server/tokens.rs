//! Which tokens and which proven identities may do what?

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use subtle::{Choice, ConditionallySelectable};

use crate::backend::http::token::{InvalidToken, Token};
use crate::instance::ServiceName;
use crate::sync::event;

/// The longest name of a token and the longest identity, in bytes.
const MAX_NAME: usize = 64;
const MAX_IDENTITY: usize = 512;
/// Each of them is compared with what every request shows.
const MAX_ENTRIES: usize = 1000;
/// The largest file.
const MAX_FILE: u64 = 1024 * 1024;
const IDENTITY: &str = "identity:";

/// Who may do what at a registry: a list of tokens, and of identities that the transport proves.
///
/// One entry a line, or several between semicolons; `#` starts a line that says nothing:
///
/// ```text
/// # name   scopes                       token, or identity:...
/// ops      read,write                   mBRuzJ5pZ0y3Vw9nM1Qk
/// shop     read,write:Cart,write:Till   p8Qd2LhXc6VtEr7sYf4a
/// nightly  read                         identity:spiffe://example.org/nightly
/// ```
///
/// - The *name* is what limits are counted by and what may be logged: at most 64 of
///   `A-Z a-z 0-9 _ . -`. It may stand in several lines, as while a token is being replaced.
/// - *Scopes*: `read` lists; `write` registers, renews, drains and deregisters; `write:Foo` does so
///   for the service `Foo` alone. None contains another.
/// - A *token* is a [`Token`]; a line with `identity:` is for the [`Peer`](crate::transport::Peer)
///   of exactly this identity.
///
/// Clones share one list. `Debug` shows names and scopes, and no secret.
#[derive(Clone)]
pub struct Tokens {
    entries: Arc<[Arc<Entry>]>,
}

/// Why a text is no list of [`Tokens`]. It names the line, and shows nothing of it.
#[derive(Debug, thiserror::Error)]
#[error("{}{reason}", .line.map(|line| format!("line {line}: ")).unwrap_or_default())]
pub struct InvalidTokens {
    line: Option<usize>,
    reason: String,
}

/// What may be done.
#[derive(Debug, Default)]
pub(super) struct Scopes {
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) services: BTreeSet<ServiceName>,
}

/// One line.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Arc<str>,
    pub(super) scopes: Scopes,
    proof: Proof,
}

#[derive(Debug)]
enum Proof {
    Token(Token),
    Identity(String),
}

impl Tokens {
    /// Reads a list. An empty one is an error: nobody could do anything.
    ///
    /// # Errors
    /// [`InvalidTokens`]: a line that is none, or a token or an identity that is there twice.
    pub fn parse(text: &str) -> Result<Self, InvalidTokens> {
        let mut entries: Vec<Arc<Entry>> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let invalid = |reason: String| InvalidTokens { line: Some(index + 1), reason };
            if line.trim_start().starts_with('#') {
                continue;
            }
            for part in line.split(';').map(str::trim).filter(|part| !part.is_empty()) {
                let entry = Entry::parse(part).map_err(invalid)?;
                if entries.iter().any(|known| known.is_proven_as(&entry)) {
                    return Err(invalid("the same token or identity is there twice".to_owned()));
                }
                if entries.len() == MAX_ENTRIES {
                    return Err(invalid(format!("more than {MAX_ENTRIES} entries")));
                }
                entries.push(entry.into());
            }
        }
        if entries.is_empty() {
            let reason = "no token: one a line, as NAME SCOPES TOKEN".to_owned();
            return Err(InvalidTokens { line: None, reason });
        }
        Ok(Self { entries: entries.into() })
    }

    /// Reads a file. One that others than its owner may read is taken, with a warning among the
    /// events.
    ///
    /// # Errors
    /// What the system says, and [`InvalidTokens`] as `InvalidData`.
    pub fn read(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let file = std::fs::File::open(path)?;
        warn_if_others_may_read(&file, path);
        let mut text = String::new();
        file.take(MAX_FILE + 1).read_to_string(&mut text)?;
        if text.len() as u64 > MAX_FILE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "larger than 1 MiB"));
        }
        Self::parse(&text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Both lists as one.
    ///
    /// # Errors
    /// A token or an identity is in both.
    pub fn and(self, other: Self) -> Result<Self, InvalidTokens> {
        let is_known = |entry: &Entry| self.entries.iter().any(|known| known.is_proven_as(entry));
        if let Some(twice) = other.entries.iter().find(|entry| is_known(entry)) {
            let reason = format!("what {:?} shows is in both lists", twice.name);
            return Err(InvalidTokens { line: None, reason });
        }
        Ok(Self { entries: self.entries.iter().chain(&*other.entries).cloned().collect() })
    }

    /// The entry of this token. It is compared with every one, whichever it equals.
    pub(super) fn of_token(&self, shown: &[u8]) -> Option<&Arc<Entry>> {
        let shown = Token::shown(shown);
        let mut found = u64::MAX;
        for (index, entry) in self.entries.iter().enumerate() {
            let equal = match &entry.proof {
                Proof::Token(token) => token.equals(&shown),
                Proof::Identity(_) => Choice::from(0),
            };
            found.conditional_assign(&(index as u64), equal);
        }
        usize::try_from(found).ok().and_then(|index| self.entries.get(index))
    }

    /// The entry of an identity, which is no secret.
    pub(super) fn of_identity(&self, identity: &str) -> Option<&Arc<Entry>> {
        self.entries
            .iter()
            .find(|entry| matches!(&entry.proof, Proof::Identity(known) if known == identity))
    }
}

impl FromStr for Tokens {
    type Err = InvalidTokens;

    fn from_str(text: &str) -> Result<Self, InvalidTokens> {
        Self::parse(text)
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries.iter()).finish()
    }
}

impl Entry {
    fn parse(line: &str) -> Result<Self, String> {
        let mut fields = line.split_whitespace();
        let (Some(name), Some(scopes), Some(proof), None) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return Err("three fields are wanted: NAME SCOPES TOKEN".to_owned());
        };
        let is_name = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
        if name.len() > MAX_NAME || !name.bytes().all(is_name) {
            return Err(format!("a name is at most {MAX_NAME} of A-Z a-z 0-9 _ . -"));
        }
        let scopes = Scopes::parse(scopes)?;
        let proof = match proof.strip_prefix(IDENTITY) {
            Some(identity) if identity.is_empty() || identity.len() > MAX_IDENTITY => {
                return Err(format!("an identity has 1 to {MAX_IDENTITY} bytes"));
            }
            Some(identity) => Proof::Identity(identity.to_owned()),
            None => {
                Proof::Token(Token::new(proof).map_err(|error: InvalidToken| error.to_string())?)
            }
        };
        Ok(Self { name: name.into(), scopes, proof })
    }

    fn is_proven_as(&self, other: &Self) -> bool {
        match (&self.proof, &other.proof) {
            (Proof::Token(one), Proof::Token(other)) => one.equals(other).into(),
            (Proof::Identity(one), Proof::Identity(other)) => one == other,
            _ => false,
        }
    }
}

impl Scopes {
    /// Nothing of the text is shown: a secret may have got into the wrong field.
    fn parse(text: &str) -> Result<Self, String> {
        let mut scopes = Self::default();
        for scope in text.split(',') {
            match scope {
                "read" => scopes.read = true,
                "write" => scopes.write = true,
                _ => {
                    let service = scope.strip_prefix("write:").and_then(|name| name.parse().ok());
                    let wrong = "scopes are `read`, `write` and `write:SERVICE`, between commas";
                    scopes.services.insert(service.ok_or(wrong)?);
                }
            }
        }
        Ok(scopes)
    }
}

#[cfg(unix)]
fn warn_if_others_may_read(file: &std::fs::File, path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    if let Ok(metadata) = file.metadata()
        && metadata.permissions().mode() & 0o077 != 0
    {
        event!(WARN, path = %path.display(), "others may read the file of tokens: chmod 600");
    }
}

#[cfg(not(unix))]
fn warn_if_others_may_read(_: &std::fs::File, _: &Path) {}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "0123456789abcdef";
    const TWO: &str = "fedcba9876543210";

    #[test]
    fn lines_are_read_and_comments_are_not() {
        let text = format!(
            "# a comment; not two\n\n  ops read,write {ONE}\r\n\tshop\twrite:Cart,write:shop.Till {TWO};\
             peer read identity:spiffe://a/b ; ;\n"
        );
        let tokens = Tokens::parse(&text).unwrap();
        let ops = tokens.of_token(ONE.as_bytes()).unwrap();
        assert_eq!((&*ops.name, ops.scopes.read, ops.scopes.write), ("ops", true, true));
        let shop = tokens.of_token(TWO.as_bytes()).unwrap();
        assert!(!shop.scopes.read && !shop.scopes.write);
        let services: Vec<_> = shop.scopes.services.iter().map(ServiceName::as_str).collect();
        assert_eq!(services, ["Cart", "shop.Till"]);
        assert_eq!(&*tokens.of_identity("spiffe://a/b").unwrap().name, "peer");
        for none in ["", "spiffe://a/b", "identity:spiffe://a/b", &ONE[1..], "ops"] {
            assert!(tokens.of_token(none.as_bytes()).is_none(), "{none:?}");
        }
        for none in ["", ONE, "spiffe://a/", "spiffe://a/b/", "SPIFFE://a/b"] {
            assert!(tokens.of_identity(none).is_none(), "{none:?}");
        }
    }

    #[test]
    fn a_bad_line_is_named_and_not_shown() {
        for (line, reason) in [
            (format!("ops {ONE}"), "three fields"),
            (format!("ops read {ONE} more"), "three fields"),
            (format!("ops {ONE} read"), "scopes are"),
            (format!("ops read,, {ONE}"), "scopes are"),
            (format!("ops Read {ONE}"), "scopes are"),
            (format!("ops write: {ONE}"), "scopes are"),
            (format!("ops write:a/b {ONE}"), "scopes are"),
            (format!("ops read:Foo {ONE}"), "scopes are"),
            (format!("o/ps read {ONE}"), "a name is"),
            (format!("{} read {ONE}", "n".repeat(65)), "a name is"),
            ("ops read 0123456789abcde".to_owned(), "at least 16"),
            (format!("ops read {ONE}\u{e4}"), "A-Z"),
            ("ops read identity:".to_owned(), "an identity"),
            (format!("two write {TWO}"), "twice"),
        ] {
            let text = format!("# first\ntwo read {TWO}\n{line}\n");
            let error = Tokens::parse(&text).unwrap_err().to_string();
            assert!(error.starts_with("line 3: ") && error.contains(reason), "{line:?}: {error}");
            assert!(!error.contains("0123456789"), "{error}");
        }
        for empty in ["", "\n", "# nothing", ";;"] {
            assert!(Tokens::parse(empty).unwrap_err().to_string().starts_with("no token"));
        }
    }

    #[test]
    fn two_lists_become_one() {
        let list = |text: String| Tokens::parse(&text).unwrap();
        let one = list(format!("one read {ONE}"));
        let both = one.clone().and(list(format!("two write {TWO}"))).unwrap();
        assert!(both.of_token(ONE.as_bytes()).is_some() && both.of_token(TWO.as_bytes()).is_some());
        assert!(one.and(list(format!("again write {ONE}"))).is_err());
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?}", Tokens::parse(&format!("ops write:Foo {ONE}")).unwrap());
        assert!(shown.contains("ops") && shown.contains("Foo") && !shown.contains(ONE), "{shown}");
    }
}
