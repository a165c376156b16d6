//! The rules that a registration must keep, beyond its JSON being well formed.

use std::sync::Arc;
use std::time::Duration;

use super::api::{HeldLease, Register, Said};
use super::problem::Refusal;
use crate::instance::{Instance, InstanceId};
use crate::registry::{HealthOverride, Held, Lease, Registration};

/// The longest id, zone or version, in bytes.
const MAX_TEXT: usize = 128;
/// The longest reason of an operator, in bytes.
const MAX_REASON: usize = 512;
/// The longest name of a lease, in bytes.
const MAX_LEASE: usize = 256;
const MAX_METADATA: usize = 64;
/// All keys and values of an instance's metadata, in bytes.
const MAX_METADATA_BYTES: usize = 8 * 1024;
/// More than this is no different: a year, so that no clock overflows.
const MAX_TTL: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// What would mean something in a path or a page.
const MARKUP: &[u8] = b"/\\<>&\"'`%";

pub(super) fn registration(asked: Register) -> Result<Registration, Refusal> {
    let Register { service, ttl_ms, instance } = asked;
    if ttl_ms == 0 {
        return Err(Refusal::invalid_registration("ttl_ms must be positive"));
    }
    check(&instance).map_err(Refusal::invalid_registration)?;
    let ttl = Duration::from_millis(ttl_ms).min(MAX_TTL);
    Ok(Registration::new(service, instance).ttl(ttl))
}

pub(super) fn held(asked: HeldLease) -> Result<Held, Refusal> {
    let HeldLease { lease_id, service, ttl_ms, instance } = asked;
    if lease_id.len() > MAX_LEASE {
        return Err(Refusal::unknown_lease());
    }
    let registration = registration(Register { service, ttl_ms, instance })?;
    Ok(Held { registration, lease: Lease::new(lease_id, None) })
}

/// Who shows a token is named by it: the text of a request is only a claim.
pub(super) fn health_override(
    said: Said,
    token: Option<&Arc<str>>,
) -> Result<HealthOverride, Refusal> {
    let Said { health, by, reason, for_ms } = said;
    for (name, text, max) in [("by", &by, MAX_TEXT), ("reason", &reason, MAX_REASON)] {
        let Some(text) = text else { continue };
        if text.len() > max || text.chars().any(char::is_control) {
            let detail = format!("{name}: longer than {max} bytes, or with a control character");
            return Err(Refusal::invalid(detail));
        }
    }
    if for_ms == Some(0) {
        return Err(Refusal::invalid("for_ms must be positive"));
    }
    let mut word = HealthOverride::new(health);
    word.by = token.map(|name| name.to_string()).or(by);
    word.reason = reason;
    word.duration = for_ms.map(|millis| Duration::from_millis(millis).min(MAX_TTL));
    Ok(word)
}

fn check(instance: &Instance) -> Result<(), String> {
    // An address is a good id too: it was checked as an address.
    let is_address = instance.id.as_str() == instance.address.identity();
    if !is_address && !is_id(&instance.id) {
        return Err(format!(
            "id: {:?} is no id: 1 to {MAX_TEXT} printable ASCII characters without spaces, \
             slashes, `..` or markup",
            instance.id.as_str().chars().take(MAX_TEXT).collect::<String>()
        ));
    }
    if instance.address.is_unspecified() {
        return Err(format!(
            "address: others cannot dial {}: name the address that they can, with `--advertise`",
            instance.address
        ));
    }
    for (name, text) in [("zone", &instance.zone), ("version", &instance.version)] {
        let Some(text) = text else { continue };
        if text.len() > MAX_TEXT || text.chars().any(char::is_control) {
            return Err(format!(
                "{name}: longer than {MAX_TEXT} bytes, or with a control character"
            ));
        }
    }
    if instance.metadata.len() > MAX_METADATA {
        return Err(format!("metadata: more than {MAX_METADATA} entries"));
    }
    if instance.metadata.contains_key("") {
        return Err("metadata: an empty key".to_owned());
    }
    let bytes: usize = instance.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MAX_METADATA_BYTES {
        return Err(format!("metadata: more than {MAX_METADATA_BYTES} bytes"));
    }
    Ok(())
}

fn is_id(id: &InstanceId) -> bool {
    let id = id.as_str();
    (1..=MAX_TEXT).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_graphic() && !MARKUP.contains(&b))
        && !id.contains("..")
        && id != "."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_printable_and_mean_nothing_in_a_path() {
        for good in ["a", "7f3a-1", "host:7001", "tcp@a:1", "a.b", &"x".repeat(128)] {
            assert!(is_id(&InstanceId::from(good)), "{good:?}");
        }
        for bad in [
            "", " ", "a b", "a/b", "a\\b", "..", ".", "a..b", "<b>", "%2e", "\0", "ä", "a\"", "a\n",
        ] {
            assert!(!is_id(&InstanceId::from(bad)), "{bad:?}");
        }
        assert!(!is_id(&InstanceId::from("x".repeat(129))));
    }

    #[test]
    fn an_address_is_an_id() {
        let at = |text: &str| Instance::at(text.parse().unwrap());
        assert_eq!(check(&at("unix@/run/foo.sock")), Ok(()));
        assert!(check(&at("tcp@0.0.0.0:1")).unwrap_err().contains("--advertise"));
    }
}
