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

    /// Whether `method` may be the part after the dot.
    pub fn is_valid_part(method: &str) -> bool {
        !method.is_empty()
            && method.len() <= Self::MAX_PART
            && method.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_dot_splits() {
        let name = MethodName::parse("shop.Cart.Add").unwrap();
        assert_eq!((name.service, name.method), ("shop.Cart", "Add"));
        for bad in ["", "Sum", ".Sum", "Foo.", "Foo.a b", "9.x"] {
            assert!(MethodName::parse(bad).is_err(), "{bad:?}");
        }
    }
}
