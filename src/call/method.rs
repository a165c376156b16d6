//! The full name of a method, `Foo.Sum`: what follows the last dot is the method.

use crate::instance::ServiceName;

/// A method's full name, split at its last dot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MethodName<'a> {
    /// The service, such as `shop.Cart`.
    pub service: &'a str,
    /// The method, such as `Add`.
    pub method: &'a str,
}

/// A text is not the full name of a method.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} is no method: it is SERVICE.METHOD, both of [A-Za-z0-9_-], the service with dots"
)]
pub struct InvalidMethod {
    name: String,
}

impl<'a> MethodName<'a> {
    /// The longest full name, in bytes.
    pub const MAX_LEN: usize = 255;

    /// The longest part after the dot, in bytes: the longest service name leaves it this much.
    pub const MAX_PART: usize = 126;

    /// Splits `name` at its last dot.
    ///
    /// # Errors
    /// If there is no dot, or one side is not a valid name.
    pub fn parse(name: &'a str) -> Result<Self, InvalidMethod> {
        if name.len() <= Self::MAX_LEN
            && let Some((service, method)) = name.rsplit_once('.')
            && ServiceName::is_valid(service)
            && Self::is_valid_part(method)
        {
            return Ok(Self { service, method });
        }
        Err(InvalidMethod { name: name.chars().take(Self::MAX_LEN).collect() })
    }

    /// Whether [`parse`](Self::parse) would take `name`: in one pass, for the call path.
    pub(crate) fn is_valid(name: &str) -> bool {
        let bytes = name.as_bytes();
        let mut dot = 0;
        for (at, byte) in bytes.iter().enumerate() {
            match SORTS[usize::from(*byte)] {
                Sort::Word => {}
                Sort::Dot => dot = at,
                Sort::Other => return false,
            }
        }
        let (part, first) = (bytes.len().saturating_sub(dot + 1), bytes.first());
        first.is_some_and(u8::is_ascii_alphabetic)
            && (1..=ServiceName::MAX_LEN).contains(&dot)
            && (1..=Self::MAX_PART).contains(&part)
            && bytes.len() <= Self::MAX_LEN
    }

    /// Whether `method` may be the part after the dot.
    pub fn is_valid_part(method: &str) -> bool {
        !method.is_empty()
            && method.len() <= Self::MAX_PART
            && method.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
    }
}

/// What a byte of a name is.
#[derive(Clone, Copy)]
enum Sort {
    Word,
    Dot,
    Other,
}

const SORTS: [Sort; 256] = {
    let mut sorts = [Sort::Other; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-') {
            sorts[byte as usize] = Sort::Word;
        }
        byte += 1;
    }
    sorts[b'.' as usize] = Sort::Dot;
    sorts
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pass_judges_as_parsing_does() {
        let long =
            |service: usize, part: usize| format!("{}.{}", "a".repeat(service), "b".repeat(part));
        let names = [
            "Foo.Sum",
            "shop.Cart.Add",
            "",
            ".",
            "a",
            "a.",
            ".a",
            "a.b.",
            "9.a",
            "a.9",
            "a-b._",
            "a..b",
            "a b.c",
            "a.b c",
            "é.a",
            "a.é",
            "-a.b",
        ];
        let mut names: Vec<_> = names.map(str::to_owned).into();
        for (service, part) in [(128, 126), (129, 1), (1, 127), (128, 127), (1, 126), (300, 300)] {
            names.push(long(service, part));
        }
        for byte in 0..=127_u8 {
            names.push(format!("a{}.b", char::from(byte)));
            names.push(format!("a.{}", char::from(byte)));
            names.push(format!("{}.a", char::from(byte)));
        }
        for name in names {
            assert_eq!(MethodName::is_valid(&name), MethodName::parse(&name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn the_last_dot_splits() {
        let name = MethodName::parse("shop.Cart.Add").unwrap();
        assert_eq!((name.service, name.method), ("shop.Cart", "Add"));
        for bad in ["", "Sum", ".Sum", "Foo.", "Foo.a b", "9.x"] {
            assert!(MethodName::parse(bad).is_err(), "{bad:?}");
        }
    }
}
