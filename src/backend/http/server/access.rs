//! Who asks, and what may they do?

use std::sync::Arc;

use http::HeaderValue;
use http::header::AUTHORIZATION;
use http::request::Parts;

use super::DEFAULT_PATH;
use super::problem::Refusal;
use super::tokens::{Entry, Tokens};
use crate::instance::ServiceName;
use crate::sync::RwLock;
use crate::transport::Peer;

/// Whom a registry answers.
pub(super) struct Access {
    /// `None`: nobody is asked for one.
    tokens: RwLock<Option<Tokens>>,
    /// Without tokens: whether everybody must have proved who they are.
    identified: bool,
    /// Whether the path of the seed's contract, whose programs have no token, is open all the same.
    open_seed_path: bool,
}

impl Access {
    pub(super) fn new(tokens: Option<Tokens>, identified: bool, open_seed_path: bool) -> Self {
        Self { tokens: RwLock::new(tokens), identified, open_seed_path }
    }

    /// Whether not everybody is answered.
    pub(super) fn is_restricted(&self) -> bool {
        self.identified || self.tokens.read().is_some()
    }

    pub(super) fn replace(&self, tokens: Tokens) {
        *self.tokens.write() = Some(tokens);
    }

    /// Who asks. Everything is behind this, whatever its path and method are: what is not known
    /// here is not even told that it is not known. `exposed`: others than this machine may ask.
    pub(super) fn caller(&self, parts: &Parts, exposed: bool) -> Result<Caller, Refusal> {
        let is_seed_path = parts.uri.path() == DEFAULT_PATH;
        // Who shows who he is, is that also here.
        let shows = parts.headers.contains_key(AUTHORIZATION);
        if is_seed_path && self.open_seed_path && !shows {
            return Ok(Caller { guest: self.is_restricted(), ..Caller::default() });
        }
        let peer = parts.extensions.get::<Peer>();
        let identity = peer.and_then(|peer| peer.identity.as_ref()).filter(|it| !it.is_empty());
        let Some(tokens) = self.tokens.read().clone() else {
            return match identity {
                Some(identity) if self.identified => {
                    Ok(Caller { name: Some(Arc::clone(identity)), ..Caller::default() })
                }
                _ if self.identified => Err(Refusal::unauthorized()),
                _ if is_seed_path && exposed => Err(Refusal::not_allowed(
                    "this path is off where others reach the registry, unless it is opened",
                )),
                _ => Ok(Caller::default()),
            };
        };
        let mut shown = parts.headers.get_all(AUTHORIZATION).iter();
        let entry = match (shown.next(), shown.next()) {
            (Some(shown), None) => tokens.of_token(bearer(shown)),
            (None, _) => identity.and_then(|identity| tokens.of_identity(identity)),
            // Which of the two would count?
            (Some(_), Some(_)) => None,
        };
        let entry = entry.ok_or_else(Refusal::unauthorized)?;
        let (name, entry) = (Some(Arc::clone(&entry.name)), Some(Arc::clone(entry)));
        Ok(Caller { name, entry, guest: false })
    }
}

/// The token of a header; empty, which is none, where it is for another scheme.
fn bearer(header: &HeaderValue) -> &[u8] {
    let header = header.as_bytes();
    match header.iter().position(|&b| b == b' ') {
        Some(end) if header[..end].eq_ignore_ascii_case(b"bearer") => header[end..].trim_ascii(),
        _ => b"",
    }
}

/// Who asks; by default anybody, who may do everything.
#[derive(Default)]
pub(super) struct Caller {
    name: Option<Arc<str>>,
    /// `None`: everything is allowed.
    entry: Option<Arc<Entry>>,
    /// Let in on the open path alone, where others need a token.
    guest: bool,
}

impl Caller {
    /// What is counted by and may be logged. `None`: it is not asked for here.
    pub(super) fn name(&self) -> Option<&Arc<str>> {
        self.name.as_ref()
    }

    /// Let in on the open path alone, where others need a token.
    pub(super) fn is_guest(&self) -> bool {
        self.guest
    }

    pub(super) fn may_read(&self) -> Result<(), Refusal> {
        match &self.entry {
            Some(entry) if !entry.scopes.read => Err(lacks("read")),
            _ => Ok(()),
        }
    }

    /// Changes what is registered for a service, or for no service in particular.
    pub(super) fn may_write(&self, service: Option<&ServiceName>) -> Result<(), Refusal> {
        // The programs that the path is opened for know of no services.
        if let (true, Some(service)) = (self.guest, service) {
            return Err(lacks(&format!("write:{service}")));
        }
        let Some(Entry { scopes, .. }) = self.entry.as_deref() else {
            return Ok(());
        };
        match service {
            _ if scopes.write => Ok(()),
            Some(service) if scopes.services.contains(service) => Ok(()),
            Some(service) => Err(lacks(&format!("write:{service}"))),
            None => Err(lacks("write")),
        }
    }

    /// Whether a body that names services is worth reading.
    pub(super) fn may_write_something(&self) -> Result<(), Refusal> {
        match self.entry.as_deref() {
            Some(Entry { scopes, .. }) if !scopes.write && scopes.services.is_empty() => {
                Err(lacks("write"))
            }
            _ => Ok(()),
        }
    }
}

fn lacks(scope: &str) -> Refusal {
    Refusal::not_allowed(format_args!("the scope `{scope}` is needed"))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn access() -> Access {
        let tokens = format!("one read,write:Foo {TOKEN}; peer write identity:spiffe://a/b");
        Access::new(Some(tokens.parse().unwrap()), false, false)
    }

    fn parts(path: &str, shown: &[&str], identity: Option<&str>) -> Parts {
        let mut request = Request::builder().uri(path);
        for shown in shown {
            request = request.header("authorization", *shown);
        }
        let mut peer = Peer::new("10.0.0.7");
        peer.identity = identity.map(Into::into);
        request.extension(peer).body(()).unwrap().into_parts().0
    }

    fn name(access: &Access, parts: &Parts) -> Option<String> {
        access.caller(parts, true).ok().map(|caller| caller.name().unwrap().to_string())
    }

    #[test]
    fn one_known_token_in_one_header_is_let_in() {
        let access = access();
        for scheme in ["Bearer", "bearer", "BEARER", "Bearer "] {
            let shown = format!("{scheme} {TOKEN}");
            assert_eq!(name(&access, &parts("/v1", &[&shown], None)).as_deref(), Some("one"));
        }
        let good = format!("Bearer {TOKEN}");
        for shown in [
            &[][..],
            &[""],
            &["Bearer"],
            &["Bearer "],
            &[TOKEN],
            &[&format!("Basic {TOKEN}")],
            &[&format!("Bearer:{TOKEN}")],
            &[&format!("Bearer {TOKEN}0")],
            &[&format!("Bearer {}", &TOKEN[1..])],
            &[&format!("Bearer {TOKEN} {TOKEN}")],
            &[&format!("Bearer {TOKEN},{TOKEN}")],
            &[&good, &good],
            &[&good, "Bearer other"],
        ] {
            for path in ["/v1/instances", DEFAULT_PATH, "/", "/nothing"] {
                assert!(name(&access, &parts(path, shown, None)).is_none(), "{path} {shown:?}");
            }
        }
    }

    #[test]
    fn a_proven_identity_stands_in_for_a_token_and_not_beside_a_wrong_one() {
        let access = access();
        let named = |shown: &[&str], identity| name(&access, &parts("/v1", shown, identity));
        assert_eq!(named(&[], Some("spiffe://a/b")).as_deref(), Some("peer"));
        assert_eq!(named(&[], Some("spiffe://a/c")), None);
        assert_eq!(named(&[], None), None);
        assert_eq!(named(&["Bearer fedcba9876543210"], Some("spiffe://a/b")), None);
    }

    #[test]
    fn scopes_do_not_contain_each_other() {
        let access = access();
        let caller = |shown: &[&str], identity| {
            access.caller(&parts("/v1", shown, identity), true).unwrap_or_else(|_| panic!("known"))
        };
        let (foo, bar) = ("Foo".parse().unwrap(), "Bar".parse().unwrap());
        let one = caller(&[&format!("Bearer {TOKEN}")], None);
        assert!(one.may_read().is_ok() && one.may_write_something().is_ok());
        assert!(one.may_write(Some(&foo)).is_ok());
        assert!(one.may_write(Some(&bar)).is_err() && one.may_write(None).is_err());
        let peer = caller(&[], Some("spiffe://a/b"));
        assert!(peer.may_read().is_err() && peer.may_write_something().is_ok());
        assert!(peer.may_write(Some(&bar)).is_ok() && peer.may_write(None).is_ok());
    }

    #[test]
    fn without_tokens_the_seeds_path_is_off_where_others_reach_it() {
        let open = Access::new(None, false, false);
        let (seed, v1) = (parts(DEFAULT_PATH, &[], None), parts("/v1/instances", &[], None));
        assert!(!open.is_restricted());
        assert!(open.caller(&seed, false).is_ok() && open.caller(&v1, true).is_ok());
        assert!(open.caller(&seed, true).is_err());
        assert!(Access::new(None, false, true).caller(&seed, true).is_ok());
        let closed = Access::new(access().tokens.read().clone(), false, true);
        assert!(closed.caller(&seed, true).is_ok());
        for other in
            ["/srpc/registry/", "//srpc/registry", "/srpc//registry", "/srpc/%72egistry", "/v1"]
        {
            assert!(closed.caller(&parts(other, &[], None), true).is_err(), "{other}");
        }
    }

    #[test]
    fn without_tokens_an_identity_may_be_asked_for() {
        let access = Access::new(None, true, false);
        assert!(access.is_restricted());
        assert_eq!(name(&access, &parts("/v1", &[], Some("me"))).as_deref(), Some("me"));
        assert!(access.caller(&parts("/v1", &[], None), false).is_err());
        assert!(access.caller(&parts("/v1", &[], Some("")), false).is_err());
        assert!(access.caller(&parts(DEFAULT_PATH, &[], None), false).is_err());
    }
}
