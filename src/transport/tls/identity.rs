//! Whom does a client's certificate name?

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

/// The longest identity, in bytes: that of a SPIFFE ID.
const LONGEST: usize = 2048;
/// The object identifier of a common name, 2.5.4.3, in DER.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// The one URI name, else the first DNS name, else the subject's one common name. `None`: it names
/// nobody, or by what no log should show, or by several URIs; and a host or a common name that looks
/// like a URI is none, since whoever issues it may not have checked it as one.
pub(super) fn of(certificate: &CertificateDer<'_>) -> Option<Arc<str>> {
    let certificate = EndEntityCert::try_from(certificate).ok()?;
    let mut uris = certificate.valid_uri_names();
    let mut hosts = certificate.valid_dns_names();
    let subject = certificate.subject();
    let name = match (uris.next(), uris.next()) {
        (Some(_), Some(_)) => return None,
        (Some(uri), None) => uri,
        _ => hosts
            .next()
            .or_else(|| common_name(subject))
            .filter(|name| !name.contains([':', '/']))?,
    };
    let sound = (1..=LONGEST).contains(&name.len()) && !name.chars().any(char::is_control);
    sound.then(|| name.into())
}

/// The common name of a subject, given without its outermost header. With several of them it is
/// anybody's guess which one is meant, so there is none.
fn common_name(mut subject: &[u8]) -> Option<&str> {
    let mut found = None;
    while !subject.is_empty() {
        // A set of attributes, each a sequence of an identifier and a value.
        let (SET, mut attributes, rest) = split(subject)? else { return None };
        subject = rest;
        while !attributes.is_empty() {
            let (SEQUENCE, attribute, rest) = split(attributes)? else { return None };
            attributes = rest;
            let (OBJECT_ID, id, value) = split(attribute)? else { return None };
            if id != COMMON_NAME {
                continue;
            }
            let (UTF8_STRING | PRINTABLE_STRING | IA5_STRING, name, _) = split(value)? else {
                return None;
            };
            let name = str::from_utf8(name).ok()?;
            if found.replace(name).is_some() {
                return None;
            }
        }
    }
    found
}

const OBJECT_ID: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const IA5_STRING: u8 = 0x16;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;

/// The tag and the content of the first DER value, and what follows it.
fn split(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = der.split_first_chunk()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => {
            let (&len, rest) = rest.split_first()?;
            (usize::from(len), rest)
        }
        0x82 => {
            let (&len, rest) = rest.split_first_chunk()?;
            (usize::from(u16::from_be_bytes(len)), rest)
        }
        // Nothing that names anybody is that long.
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn identity(change: impl FnOnce(&mut CertificateParams)) -> Option<String> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        change(&mut params);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        of(certificate.der()).map(|name| name.to_string())
    }

    #[test]
    fn the_most_telling_name_is_taken() {
        let uri = || SanType::URI("spiffe://example.org/foo".try_into().unwrap());
        let host = || SanType::DnsName("foo.example.org".try_into().unwrap());
        let named = |params: &mut CertificateParams, names: &[SanType]| {
            params.distinguished_name.push(DnType::OrganizationName, "Example");
            params.distinguished_name.push(DnType::CommonName, "foo, the service");
            params.subject_alt_names = names.to_vec();
        };
        let all = identity(|params| named(params, &[host(), uri()]));
        assert_eq!(all.as_deref(), Some("spiffe://example.org/foo"));
        let without_uri = identity(|params| named(params, &[host()]));
        assert_eq!(without_uri.as_deref(), Some("foo.example.org"));
        let subject_alone = identity(|params| named(params, &[]));
        assert_eq!(subject_alone.as_deref(), Some("foo, the service"));
    }

    #[test]
    fn what_only_looks_like_a_uri_is_none_and_of_several_none_is_taken() {
        let uri = |text: &str| SanType::URI(text.try_into().unwrap());
        let both = |params: &mut CertificateParams| {
            params.subject_alt_names = vec![uri("spiffe://a/one"), uri("spiffe://a/two")];
        };
        assert_eq!(identity(both), None);
        let disguised = |params: &mut CertificateParams| {
            params.distinguished_name.push(DnType::CommonName, "spiffe://example.org/foo");
        };
        assert_eq!(identity(disguised), None);
    }

    #[test]
    fn what_names_nobody_is_no_identity() {
        assert_eq!(identity(|_| ()), None);
        let organization = |params: &mut CertificateParams| {
            params.distinguished_name.push(DnType::OrganizationName, "Example");
        };
        assert_eq!(identity(organization), None);
        let of_lines = |params: &mut CertificateParams| {
            params.distinguished_name.push(DnType::CommonName, "foo\nERROR all is lost");
        };
        assert_eq!(identity(of_lines), None);
        let endless = |params: &mut CertificateParams| {
            params.distinguished_name.push(DnType::CommonName, "x".repeat(LONGEST + 1));
        };
        assert_eq!(identity(endless), None);
        assert_eq!(of(&CertificateDer::from(vec![0x30, 0x82, 0xff])), None);
    }

    #[test]
    fn a_subject_is_read_to_its_end_or_not_at_all() {
        let name = |text: &str| {
            let mut attribute = vec![OBJECT_ID, 3, 0x55, 0x04, 0x03, UTF8_STRING, text.len() as u8];
            attribute.extend_from_slice(text.as_bytes());
            let len = attribute.len() as u8;
            [&[SET, len + 2, SEQUENCE, len][..], &attribute].concat()
        };
        assert_eq!(common_name(&name("a")), Some("a"));
        assert_eq!(common_name(&[name("a"), name("b")].concat()), None);
        let whole = name("abc");
        for end in 1..whole.len() {
            assert_eq!(common_name(&whole[..end]), None, "{end} bytes");
        }
        assert_eq!(common_name(&[SET, 0x83, 0, 0, 1, 0]), None);
    }
}
