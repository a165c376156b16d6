//! Which names are asked for, one after the other.

use hickory_resolver::config::ResolverConfig;
use hickory_resolver::proto::rr::Name;

/// The names that a name may stand for, as resolv.conf says: one with a dot at its end for itself alone,
/// others also with each domain of the search list behind them, before or after the name as it is.
pub(super) fn candidates(name: &Name, config: &ResolverConfig, ndots: usize) -> Vec<Name> {
    let mut itself = name.clone();
    itself.set_fqdn(true);
    if name.is_fqdn() {
        return vec![itself];
    }
    let domains = config.domain().into_iter().chain(config.search());
    let mut names: Vec<Name> = Vec::new();
    for domain in domains {
        if let Ok(mut longer) = name.clone().append_domain(domain) {
            longer.set_fqdn(true);
            if !names.contains(&longer) {
                names.push(longer);
            }
        }
    }
    let dots = usize::from(name.num_labels()).saturating_sub(1);
    let at = if dots >= ndots { 0 } else { names.len() };
    if !names.contains(&itself) {
        names.insert(at, itself);
    }
    names
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use super::*;

    fn asked(name: &str, ndots: usize) -> Vec<String> {
        let search = ["svc.example.", "example."].map(|name| Name::from_str(name).unwrap());
        let config = ResolverConfig::from_parts(None, search.to_vec(), Vec::new());
        let names = candidates(&Name::from_str(name).unwrap(), &config, ndots);
        names.iter().map(Name::to_string).collect()
    }

    #[test]
    fn the_search_list_is_walked_as_resolv_conf_says() {
        assert_eq!(asked("foo.", 1), ["foo."]);
        assert_eq!(asked("foo", 1), ["foo.svc.example.", "foo.example.", "foo."]);
        assert_eq!(asked("foo.bar", 1), ["foo.bar.", "foo.bar.svc.example.", "foo.bar.example."]);
        assert_eq!(asked("foo.bar", 5)[2], "foo.bar.");
    }
}
