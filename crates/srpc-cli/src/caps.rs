//! What may the peers of `srpc registry` cost?

use clap::Args;
use srpc::backend::http::RegistryServerBuilder;

use crate::args::positive_count as count;

// Each cap is the library's unless it is given.
#[derive(Debug, Args)]
#[command(next_help_heading = "Caps")]
pub(crate) struct Caps {
    /// Instances in all [default: 100k]
    #[arg(long, value_name = "N", value_parser = count)]
    max_instances: Option<u64>,
    /// Instances registered from one address [default: 10k]
    #[arg(long, value_name = "N", value_parser = count)]
    max_instances_per_host: Option<u64>,
    /// Instances registered with one token [default: 10k]
    #[arg(long, value_name = "N", value_parser = count)]
    max_instances_per_token: Option<u64>,
    /// Memory for all that is registered [default: 256MiB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_registered_bytes: Option<u64>,
    /// Connections in all [default: 10k]
    #[arg(long, value_name = "N", value_parser = count)]
    max_connections: Option<u64>,
    /// Connections from one address [default: 256]
    #[arg(long, value_name = "N", value_parser = count)]
    max_connections_per_host: Option<u64>,
    /// Long polls of one address that are held [default: half of its connections]
    #[arg(long, value_name = "N", value_parser = count)]
    max_polls_per_host: Option<u64>,
    /// Requests with one token that are under way [default: 5k]
    #[arg(long, value_name = "N", value_parser = count)]
    max_in_flight_per_token: Option<u64>,
    /// Requests a second in all; renewals may be as many again [default: 10k]
    #[arg(long, value_name = "N", value_parser = count)]
    rate: Option<u64>,
    /// Requests a second from one address [default: 1k]
    #[arg(long, value_name = "N", value_parser = count)]
    rate_per_host: Option<u64>,
    /// Requests a second with one token [default: 5k]
    #[arg(long, value_name = "N", value_parser = count)]
    rate_per_token: Option<u64>,
    /// Memory for bodies that are read and answers that their readers have not taken yet [default: 256MiB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_bytes_in_flight: Option<u64>,
    /// The same for one address, before its slowest connections are closed [default: a quarter]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_bytes_in_flight_per_host: Option<u64>,
}

impl Caps {
    pub(crate) fn apply(&self, builder: RegistryServerBuilder) -> RegistryServerBuilder {
        type Set<T> = fn(RegistryServerBuilder, T) -> RegistryServerBuilder;
        let sizes: [(Option<u64>, Set<usize>); 10] = [
            (self.max_instances, RegistryServerBuilder::max_instances),
            (self.max_instances_per_host, RegistryServerBuilder::max_instances_per_host),
            (self.max_instances_per_token, RegistryServerBuilder::max_instances_per_token),
            (self.max_registered_bytes, RegistryServerBuilder::max_registered_bytes),
            (self.max_connections, RegistryServerBuilder::max_connections),
            (self.max_connections_per_host, RegistryServerBuilder::max_connections_per_host),
            (self.max_polls_per_host, RegistryServerBuilder::max_polls_per_host),
            (self.max_in_flight_per_token, RegistryServerBuilder::max_in_flight_per_token),
            (self.max_bytes_in_flight, RegistryServerBuilder::max_bytes_in_flight),
            (
                self.max_bytes_in_flight_per_host,
                RegistryServerBuilder::max_bytes_in_flight_per_host,
            ),
        ];
        let rates: [(Option<u64>, Set<u32>); 3] = [
            (self.rate, RegistryServerBuilder::rate),
            (self.rate_per_host, RegistryServerBuilder::rate_per_host),
            (self.rate_per_token, RegistryServerBuilder::rate_per_token),
        ];
        let builder = sizes.into_iter().fold(builder, |builder, (given, set)| match given {
            Some(given) => set(builder, given.try_into().unwrap_or(usize::MAX)),
            None => builder,
        });
        rates.into_iter().fold(builder, |builder, (given, set)| match given {
            Some(given) => set(builder, given.try_into().unwrap_or(u32::MAX)),
            None => builder,
        })
    }
}

/// `1048576`, `64KiB`, `256MiB` or `1GiB`.
fn size(text: &str) -> Result<u64, String> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30)];
    let unit = units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)));
    let (digits, shift) = unit.unwrap_or((text, 0));
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let number = digits.parse::<u64>().ok().filter(|number| is_number && *number > 0);
    let bytes = number.and_then(|number| number.checked_mul(1 << shift));
    bytes.ok_or_else(|| "a size is a whole number of bytes, KiB, MiB or GiB: `256MiB`".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [("1", 1), ("4KiB", 4096), ("2MiB", 2 << 20), ("1GiB", 1 << 30)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "0", "MiB", "1MB", "-1", "+1", "1.5GiB", "18446744073709551615GiB"] {
            assert!(size(wrong).is_err(), "{wrong:?}");
        }
    }
}
