//! What is a bearer token, and how are two of them compared?

use std::fmt;
use std::io;
use std::path::Path;
use std::str::FromStr;

use http::HeaderValue;
use subtle::{Choice, ConstantTimeEq};

/// The shortest token, in bytes: 128 random bits are 22 characters of base 64.
const MIN: usize = 16;
/// The longest token, in bytes.
pub(super) const MAX: usize = 256;
/// More of a file is not read for a token.
const MAX_FILE: u64 = 4096;

/// A secret that a client of the registry shows: 16 to 256 of `A-Z a-z 0-9 - . _ ~ + / =`.
///
/// `Debug` does not show it, and nothing else does. Make one with `openssl rand -hex 24`.
#[derive(Clone)]
pub struct Token {
    /// Filled up with zeros, so that every comparison takes the same time.
    bytes: Box<[u8; MAX]>,
    length: u64,
}

/// Why a text, or a file, is no [`Token`]. The text itself is not shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidToken {
    /// Fewer than 16 characters.
    #[error("a token is at least {MIN} characters long")]
    TooShort,
    /// More than 256 characters.
    #[error("a token is at most {MAX} characters long")]
    TooLong,
    /// A character that does not fit the header.
    #[error("a token is made of A-Z a-z 0-9 - . _ ~ + / =")]
    Character,
    /// The file cannot be read.
    #[error("{0}")]
    File(#[from] io::Error),
}

impl Token {
    /// A token of this text, white space around it apart.
    ///
    /// # Errors
    /// [`InvalidToken`], without the text.
    pub fn new(text: &str) -> Result<Self, InvalidToken> {
        let text = text.trim().as_bytes();
        match text.len() {
            ..MIN => return Err(InvalidToken::TooShort),
            MIN..=MAX => {}
            _ => return Err(InvalidToken::TooLong),
        }
        if !text.iter().all(|&b| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b)) {
            return Err(InvalidToken::Character);
        }
        Ok(Self::padded(text))
    }

    /// The token that a file contains, and nothing else.
    ///
    /// # Errors
    /// [`InvalidToken`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self, InvalidToken> {
        use std::io::Read;
        let mut text = String::new();
        std::fs::File::open(path)?.take(MAX_FILE).read_to_string(&mut text)?;
        Self::new(&text)
    }

    /// What a peer shows. What can be no token is one that equals none.
    pub(super) fn shown(bytes: &[u8]) -> Self {
        Self::padded(if bytes.len() > MAX { &[] } else { bytes })
    }

    /// Takes as long whatever the two are.
    pub(super) fn equals(&self, other: &Self) -> Choice {
        // Words instead of bytes: whoever has no token makes all of them be looked at.
        let same = self.length.ct_eq(&other.length);
        self.words().zip(other.words()).fold(same, |same, (a, b)| same & a.ct_eq(&b))
    }

    fn words(&self) -> impl Iterator<Item = u64> {
        self.bytes
            .chunks_exact(8)
            .map(|word| word.iter().fold(0, |word, byte| (word << 8) | u64::from(*byte)))
    }

    /// The value of the header `Authorization`.
    pub(super) fn header(&self) -> HeaderValue {
        let token = self.bytes.get(..self.length as usize).unwrap_or_default();
        let mut value = HeaderValue::from_bytes(&[b"Bearer ", token].concat())
            // A token's characters all fit.
            .unwrap_or_else(|_| HeaderValue::from_static("Bearer"));
        value.set_sensitive(true);
        value
    }

    /// At most as long as `MAX`.
    fn padded(text: &[u8]) -> Self {
        let mut bytes = Box::new([0; MAX]);
        for (byte, given) in bytes.iter_mut().zip(text) {
            *byte = *given;
        }
        Self { bytes, length: text.len() as u64 }
    }
}

impl FromStr for Token {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        Self::new(text)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_long_enough_and_fits_a_header() {
        for good in
            ["0123456789abcdef", " 0123456789abcdef\n", "a.b-c_d~e+f/g==========", &"x".repeat(256)]
        {
            assert!(Token::new(good).is_ok(), "{good:?}");
        }
        for bad in [
            "",
            "0123456789abcde",
            "0123456789 abcdef",
            "0123456789;abcdef",
            "0123456789äbcdef",
            &"x".repeat(257),
        ] {
            let error = Token::new(bad).unwrap_err().to_string();
            assert!(bad.is_empty() || !error.contains(bad), "{error}");
        }
    }

    #[test]
    fn tokens_are_equal_whole_or_not_at_all() {
        let token = Token::new("0123456789abcdef").unwrap();
        let is = |shown: &[u8]| bool::from(token.equals(&Token::shown(shown)));
        assert!(is(b"0123456789abcdef"));
        for other in [
            &b""[..],
            b"0123456789abcde",
            b"0123456789abcdeg",
            b"1123456789abcdef",
            b"0123456789abcdef\0",
            b"0123456789abcdef0",
            &[b'0'; 300],
        ] {
            assert!(!is(other), "{other:?}");
        }
    }

    #[test]
    fn nothing_shows_it() {
        let token = Token::new("0123456789abcdef").unwrap();
        assert_eq!(token.header(), "Bearer 0123456789abcdef");
        assert!(!format!("{token:?} {:?}", token.header()).contains("0123"));
    }
}
