//! From where the vault may be asked: a list of networks. Pure: no I/O.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Most rules (1000 in Key Vault).
pub const RULES_MAX: usize = 1000;

/// Networks that may ask. An empty list that is switched on lets nobody in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Firewall {
    /// Whether the list is heeded; off, everybody may ask.
    pub enabled: bool,
    /// The networks, each once, without host bits.
    pub allow: Vec<IpNet>,
}

/// The reason that a rule was not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Neither an address nor a network.
    #[error(
        "{0:?} is no IP address and no network; write 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32"
    )]
    Syntax(String),
    /// There are [`RULES_MAX`] already.
    #[error("there are {RULES_MAX} rules already; allow larger networks")]
    TooMany,
}

/// An address or network as written by people; host bits are dropped.
///
/// # Errors
/// [`RuleError::Syntax`].
pub fn parse_network(text: &str) -> Result<IpNet, RuleError> {
    let network = match text.parse::<IpNet>() {
        Ok(network) => network,
        Err(_) => {
            IpNet::from(text.parse::<IpAddr>().map_err(|_| RuleError::Syntax(text.to_owned()))?)
        }
    };
    Ok(network.trunc())
}

impl Firewall {
    /// Whether a request from `address` is let in. IPv4 addresses in IPv6 ones (RFC 4291,
    /// 2.5.5.2), as sockets for both report them, are IPv4 addresses.
    pub fn permits(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        !self.enabled || self.allow.iter().any(|network| network.contains(&address))
    }

    /// Adds a network; returns whether it is new.
    ///
    /// # Errors
    /// [`RuleError`].
    pub fn add(&mut self, text: &str) -> Result<bool, RuleError> {
        let network = parse_network(text)?;
        if self.allow.contains(&network) {
            return Ok(false);
        }
        if self.allow.len() >= RULES_MAX {
            return Err(RuleError::TooMany);
        }
        self.allow.push(network);
        Ok(true)
    }

    /// Removes a network; returns whether it was there.
    ///
    /// # Errors
    /// [`RuleError::Syntax`].
    pub fn remove(&mut self, text: &str) -> Result<bool, RuleError> {
        let network = parse_network(text)?;
        let before = self.allow.len();
        self.allow.retain(|other| *other != network);
        Ok(self.allow.len() < before)
    }
}

/// The message for the caller; the inner code is `ForbiddenByFirewall`.
pub fn refusal(address: IpAddr, vault: &str) -> String {
    format!(
        "Client address is not authorized.\r\nClient address: {}\r\nVault: {vault}\r\n\
         Allow it with: atrest vault firewall allow",
        address.to_canonical(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// Off: everybody. On and empty: nobody. On: who is in a network, also as IPv4 in IPv6.
    #[test]
    fn permits() {
        let mut firewall = Firewall::default();
        assert!(firewall.permits(address("203.0.113.9")));
        firewall.enabled = true;
        assert!(!firewall.permits(address("203.0.113.9")));
        for rule in ["192.0.2.0/24", "203.0.113.9", "2001:db8::/32"] {
            assert_eq!(firewall.add(rule), Ok(true));
        }
        for (text, expected) in [
            ("192.0.2.255", true),
            ("192.0.3.0", false),
            ("203.0.113.9", true),
            ("203.0.113.8", false),
            ("::ffff:192.0.2.1", true),
            ("::ffff:192.0.3.1", false),
            ("2001:db8:1::1", true),
            ("2001:db9::1", false),
            ("::1", false),
        ] {
            assert_eq!(firewall.permits(address(text)), expected, "{text}");
        }
        assert!(refusal(address("::ffff:192.0.3.1"), "v").contains("address: 192.0.3.1\r"));
    }

    /// A network is there once, however it is written, and goes.
    #[test]
    fn rules() {
        let mut firewall = Firewall { enabled: true, ..Firewall::default() };
        assert_eq!(firewall.add("192.0.2.7/24"), Ok(true));
        assert_eq!(firewall.add("192.0.2.0/24"), Ok(false));
        assert_eq!(firewall.remove("192.0.2.9/24"), Ok(true));
        assert_eq!(firewall.remove("192.0.2.0/24"), Ok(false));
        for bad in ["", "localhost", "192.0.2.0/33", "192.0.2", "0x7f.1", "192.0.2.1 "] {
            assert_eq!(firewall.add(bad), Err(RuleError::Syntax(bad.into())));
        }
        for n in 0..RULES_MAX {
            let rule = format!("10.{}.{}.0/24", n / 256, n % 256);
            assert_eq!(firewall.add(&rule), Ok(true));
        }
        assert_eq!(firewall.add("192.0.2.0/24"), Err(RuleError::TooMany));
    }
}
