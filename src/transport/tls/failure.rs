//! Why a TLS connection failed, in words.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

/// How many of a certificate's names are shown.
const NAMES: usize = 4;

/// A handshake's failure.
pub(super) fn handshake_failed(error: io::Error) -> io::Error {
    explained(error, "the peer closed the connection during the TLS handshake")
}

/// The failure of a connection that was open.
pub(super) fn broken(error: io::Error) -> io::Error {
    explained(error, "the peer closed the connection without a word")
}

pub(super) fn unsupported(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, why)
}

fn explained(error: io::Error, closed: &str) -> io::Error {
    let kind = error.kind();
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(tls) => io::Error::new(kind, words(tls)),
        None if kind == io::ErrorKind::UnexpectedEof => io::Error::new(kind, closed),
        None => error,
    }
}

fn words(error: &Error) -> String {
    let words = match error {
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::UnknownProtocolVersion
            | InvalidMessage::MessageTooLarge
            | InvalidMessage::InvalidEmptyPayload,
        ) => "the peer does not speak TLS",
        Error::NoCertificatesPresented => "the client shows no certificate, and needs one",
        Error::InvalidCertificate(error) => return of_certificate(error),
        Error::AlertReceived(alert) => return of_alert(*alert),
        other => return format!("TLS: {other}"),
    };
    words.to_owned()
}

/// What is wrong with the peer's certificate.
fn of_certificate(error: &CertificateError) -> String {
    use CertificateError as Wrong;
    let words = match error {
        Wrong::UnknownIssuer => "no authority that is trusted here has signed it",
        Wrong::Expired | Wrong::ExpiredContext { .. } => "it has expired",
        Wrong::NotValidYet | Wrong::NotValidYetContext { .. } => "it is not valid yet",
        Wrong::NotValidForName => "it is for another name",
        Wrong::NotValidForNameContext { expected, presented } => {
            let (expected, names) = (expected.to_str(), shown(presented));
            return format!(
                "the peer's certificate is refused: it is for {names}, and not for {expected}"
            );
        }
        Wrong::Revoked => "it was revoked",
        Wrong::InvalidPurpose | Wrong::InvalidPurposeContext { .. } => {
            "it may not be used for this side of a connection"
        }
        Wrong::ApplicationVerificationFailure => {
            "it names nobody: not one URI, no DNS name, no common name"
        }
        other => return format!("the peer's certificate is refused: {other}"),
    };
    format!("the peer's certificate is refused: {words}")
}

/// Some of a certificate's names, which come as `DnsName("foo")` and as the peer wrote them.
fn shown(names: &[String]) -> String {
    let plain = |name: &String| {
        let inner = name.split_once('(').and_then(|(_, inner)| inner.strip_suffix(')'));
        inner.unwrap_or(name).trim_matches('"').escape_debug().to_string()
    };
    let mut shown = names.iter().take(NAMES).map(plain).collect::<Vec<_>>().join(", ");
    if names.len() > NAMES {
        shown.push_str(", ...");
    }
    shown
}

/// What the peer says of us.
fn of_alert(alert: AlertDescription) -> String {
    let words = match alert {
        AlertDescription::CertificateRequired => "it asks for a client certificate",
        AlertDescription::UnknownCA => {
            "it trusts no authority that has signed the certificate shown to it"
        }
        AlertDescription::CertificateExpired => "the certificate shown to it has expired",
        AlertDescription::CertificateRevoked => "the certificate shown to it was revoked",
        AlertDescription::UnsupportedCertificate => {
            "the certificate shown to it may not be used for this side of a connection"
        }
        AlertDescription::AccessDenied => {
            "the certificate shown to it names nobody it could let in"
        }
        AlertDescription::BadCertificate | AlertDescription::CertificateUnknown => {
            "it does not take the certificate shown to it"
        }
        AlertDescription::ProtocolVersion => "it speaks neither TLS 1.2 nor 1.3",
        other => return format!("the peer refuses TLS: {other:?}"),
    };
    format!("the peer refuses TLS: {words}")
}
