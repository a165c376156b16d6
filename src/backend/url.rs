//! What the URLs of all backends have in common.

/// A text is not the URL of a registry or a source, or of one that this build lacks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{url:?} cannot be opened: {reason}")]
pub struct InvalidUrl {
    url: String,
    reason: String,
}

impl InvalidUrl {
    pub(crate) fn new(url: &str, reason: impl Into<String>) -> Self {
        Self { url: masked(url), reason: reason.into() }
    }

    /// What is wrong, in a few words.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

/// A URL, or several, without what may be a secret in it: user information, query and fragment. For messages.
pub fn masked(url: &str) -> String {
    let is_list = url.trim_start().get(..9).is_some_and(|it| it.eq_ignore_ascii_case("static://"));
    // In a list an `@` is a part of each address.
    let url = match url.rsplit_once('@').filter(|_| !is_list) {
        Some((before, host)) => match before.split_once("://") {
            Some((scheme, _)) => format!("{scheme}://***@{host}"),
            None => format!("***@{host}"),
        },
        None => url.to_owned(),
    };
    match url.find(['?', '#']) {
        Some(at) => format!("{}***", &url[..=at]),
        None => url,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_a_secret_is_not_shown() {
        for (url, told) in [
            ("http://u:secret@a/x", "http://***@a/x"),
            ("http://a/?token=secret", "http://a/?***"),
            ("http://a/#secret", "http://a/#***"),
            ("http://u:se?cret@a/x?t=secret", "http://***@a/x?***"),
            ("http://a/?t=sec@ret", "http://***@ret"),
            ("http://a,http://b/?t=secret,http://c", "http://a,http://b/?***"),
            ("static://tcp@a:1,unix@/b", "static://tcp@a:1,unix@/b"),
            ("u:secret@a", "***@a"),
            ("http://a:9/srpc/registry", "http://a:9/srpc/registry"),
        ] {
            assert_eq!(masked(url), told, "{url}");
        }
    }
}
