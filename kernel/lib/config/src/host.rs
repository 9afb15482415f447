//! The table `[host]`.

use alloc::{format, string::ToString};
use core::{net::Ipv4Addr, str::FromStr};

use crate::{ControlKey, Error, Invalid, Key, Name, section::Section};

/// What the configuration says about the host itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Host {
    /// What the host calls itself, towards the DHCP server too.
    pub name: Name,
    /// Where the management address comes from.
    pub management: Management,
    /// The key that leaves a guest's console.
    pub detach_key: ControlKey,
    /// Its private key, by which other hosts know it.
    pub key: Option<Key>,
}

/// Where the management address comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Management {
    /// From a DHCP server.
    #[default]
    Dhcp,
    /// From the configuration.
    Static(StaticAddress),
}

/// An address of the host, its network, and the way out of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StaticAddress {
    /// The address, which a host can have in its network.
    pub address: Ipv4Addr,
    /// How many leading bits name the network, 1 to 31.
    pub prefix_bits: u8,
    /// The default gateway, in the same network and not the host itself.
    pub gateway: Option<Ipv4Addr>,
}

pub(crate) const KEYS: &[&str] = &["name", "management", "address", "gateway", "detach_key", "key"];

impl Default for Host {
    fn default() -> Self {
        let name = "pollux".parse().expect("a good name");
        Self { name, management: Management::default(), detach_key: ControlKey::default(), key: None }
    }
}

impl Host {
    pub(crate) fn parse(section: &Section<'_>) -> Result<Self, Error> {
        let default = Self::default();
        Ok(Self {
            name: section.parsed("name")?.unwrap_or(default.name),
            management: Management::parse(section)?,
            detach_key: section.parsed("detach_key")?.unwrap_or(default.detach_key),
            key: section.parsed("key")?,
        })
    }
}

impl Management {
    fn parse(section: &Section<'_>) -> Result<Self, Error> {
        let is_static = match section.text("management")? {
            None | Some("dhcp") => false,
            Some("static") => true,
            Some(other) => {
                let cause =
                    Invalid::new(format!("`{other}` is not a way to an address"), "write \"dhcp\" or \"static\"");
                return Err(section.error_at("management", cause));
            }
        };
        let stray = ["address", "gateway"].into_iter().find(|key| section.has(key));
        match (is_static, stray) {
            (true, _) => StaticAddress::parse(section).map(Self::Static),
            (false, None) => Ok(Self::Dhcp),
            (false, Some(key)) => {
                let cause =
                    Invalid::new(format!("DHCP gives the `{key}`"), "remove it, or write management = \"static\"");
                Err(section.error_at(key, cause))
            }
        }
    }
}

impl StaticAddress {
    fn parse(section: &Section<'_>) -> Result<Self, Error> {
        let example = "\"192.168.7.20/24\"";
        let network: Network = section.required("address", section.parsed("address")?, example)?;
        let this = Self { address: network.address, prefix_bits: network.prefix_bits, gateway: None };
        let Some(text) = section.text("gateway")? else { return Ok(this) };
        let gateway = text.parse().map_err(|_| {
            let cause = Invalid::new(format!("`{text}` is not an IPv4 address"), "write one such as \"192.168.7.1\"");
            section.error_at("gateway", cause)
        })?;
        if !network.has_host(gateway) || gateway == network.address {
            let cause = Invalid::new(
                format!("the gateway {gateway} cannot be reached from {}/{}", network.address, network.prefix_bits),
                "give another address of that network",
            );
            return Err(section.error_at("gateway", cause));
        }
        Ok(Self { gateway: Some(gateway), ..this })
    }
}

/// An address with the length of its network's prefix.
struct Network {
    address: Ipv4Addr,
    prefix_bits: u8,
}

impl Network {
    /// Whether a host of this network can have `address`: neither the network's own nor its broadcast address, except
    /// in a network of two (RFC 3021).
    fn has_host(&self, address: Ipv4Addr) -> bool {
        let host_mask = u32::MAX >> self.prefix_bits;
        let host = address.to_bits() & host_mask;
        let same = (address.to_bits() ^ self.address.to_bits()) & !host_mask == 0;
        same && (self.prefix_bits == 31 || (host != 0 && host != host_mask))
    }
}

impl FromStr for Network {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let invalid = |what: &str| Invalid::new(format!("`{text}` {what}"), "write one such as 192.168.7.20/24");
        let (address, prefix) = text.split_once('/').ok_or_else(|| invalid("has no prefix length"))?;
        let address: Ipv4Addr = address.parse().map_err(|_| invalid("is not an IPv4 address"))?;
        let prefix_bits = prefix.parse().ok().filter(|bits: &u8| (1..=31).contains(bits) && bits.to_string() == prefix);
        let network =
            Self { address, prefix_bits: prefix_bits.ok_or_else(|| invalid("needs a prefix of 1 to 31 bits"))? };
        let unusable =
            address.is_unspecified() || address.is_loopback() || address.is_multicast() || address.is_broadcast();
        if unusable || !network.has_host(address) {
            return Err(invalid("is not an address for a host"));
        }
        Ok(network)
    }
}
