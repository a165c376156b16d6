//! What the part of a URL after the `?` asks for.

use std::time::Duration;

use http::Uri;

use super::api;
use crate::instance::ServiceName;

/// The parameters of a request. Unknown ones are ignored.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// # Errors
    /// What is wrong, in words, as of all of these.
    pub(super) fn parse(uri: &Uri) -> Result<Self, String> {
        let pairs = uri.query().unwrap_or("").split('&').filter(|pair| !pair.is_empty());
        pairs
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                Ok((decoded(name)?, decoded(value)?))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The one value of a parameter.
    pub(super) fn one(&self, name: &str) -> Result<Option<&str>, String> {
        let mut values = self.0.iter().filter(|(given, _)| given == name).map(|(_, value)| value);
        let value = values.next();
        if values.next().is_some() {
            return Err(format!("{name} is given twice"));
        }
        Ok(value.map(String::as_str))
    }

    pub(super) fn service(&self) -> Result<Option<ServiceName>, String> {
        let Some(name) = self.one("service")? else { return Ok(None) };
        name.parse::<ServiceName>().map(Some).map_err(|error| format!("service: {error}"))
    }

    /// How long a long poll may be held.
    pub(super) fn wait(&self) -> Result<Option<Duration>, String> {
        let Some(text) = self.one("wait")? else { return Ok(None) };
        let millis = millis(text)
            .ok_or("wait is no time: `30s`, `500ms`, or milliseconds without a unit")?;
        Ok(Some(Duration::from_millis(millis.min(api::MAX_WAIT_MS))))
    }
}

fn millis(text: &str) -> Option<u64> {
    let (digits, unit) = if let Some(digits) = text.strip_suffix("ms") {
        (digits, 1)
    } else if let Some(digits) = text.strip_suffix('s') {
        (digits, 1000)
    } else {
        (text, 1)
    };
    // `u64::from_str` would take a sign.
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok().map(|number| number.saturating_mul(unit))
}

fn decoded(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => match (rest.next().and_then(hex), rest.next().and_then(hex)) {
                (Some(high), Some(low)) => high * 16 + low,
                _ => return Err("a `%` without two hexadecimal digits".to_owned()),
            },
            other => other,
        });
    }
    String::from_utf8(bytes).map_err(|_| "the query is not UTF-8".to_owned())
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Result<Query, String> {
        Query::parse(&Uri::try_from(format!("/v1/instances?{text}")).unwrap())
    }

    #[test]
    fn parameters_are_decoded_and_given_once() {
        let good = query("service=shop.C%61rt&x&revision=a%2Fb+c&wait=1500ms").unwrap();
        assert_eq!(good.service().unwrap().unwrap().as_str(), "shop.Cart");
        assert_eq!(good.one("revision").unwrap(), Some("a/b c"));
        assert_eq!(good.wait().unwrap(), Some(Duration::from_millis(1500)));
        assert_eq!(good.one("y").unwrap(), None);
        assert!(query("service=A&service=B").unwrap().service().is_err());
        assert!(query("service=").unwrap().service().is_err());
        assert!(query("service=%2").is_err());
        assert!(query("service=%ff").is_err());
    }

    #[test]
    fn a_wait_is_a_time_and_capped() {
        for (text, millis) in [("30s", 30_000), ("250", 250), ("1h0s", 0), ("9999999s", 60_000)] {
            let wait = query(&format!("wait={text}")).unwrap().wait();
            match millis {
                0 => assert!(wait.is_err(), "{text}"),
                millis => assert_eq!(wait, Ok(Some(Duration::from_millis(millis))), "{text}"),
            }
        }
        for bad in ["", "s", "-1", "+1s", "NaN", "1.5s", "30 s"] {
            let text = format!("wait={}", bad.replace(' ', "%20").replace('+', "%2B"));
            assert!(query(&text).unwrap().wait().is_err(), "{bad:?}");
        }
    }
}
