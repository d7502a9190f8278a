//! A host with an optional port, as it stands in `Host`, in an origin and in a request target.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest host name (RFC 1035).
const NAME_BYTES_MAX: usize = 255;

/// A host and the port that was written beside it, if one was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authority<'a> {
    pub host: Host<'a>,
    pub port: Option<u16>,
}

/// A host. Names compare without regard to case and to the dot that may end them.
#[derive(Clone, Copy, Debug)]
pub enum Host<'a> {
    Ip(IpAddr),
    Name(&'a str),
}

impl<'a> Authority<'a> {
    /// Parses `name`, `192.0.2.1` or `[2001:db8::1]`, each with `:port` or without.
    ///
    /// Stricter than RFC 3986: no user, no percent-encoding, no zone, only the characters that
    /// occur in names on a network. `None` is everything else.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Authority<'a>> {
        if let Some(rest) = text.strip_prefix('[') {
            let (address, rest) = rest.split_once(']')?;
            let host = Host::Ip(address.parse::<Ipv6Addr>().ok()?.into());
            let port = if rest.is_empty() { None } else { parse_port(rest.strip_prefix(':')?)? };
            return Some(Authority { host, port });
        }
        let (name, port) = match text.split_once(':') {
            Some((name, port)) => (name, parse_port(port)?),
            None => (text, None),
        };
        let host = match name.parse::<Ipv4Addr>() {
            Ok(address) => Host::Ip(address.into()),
            Err(_) => Host::Name(parse_name(name)?),
        };
        Some(Authority { host, port })
    }
}

impl Host<'_> {
    /// Whether it is this machine and cannot be another: 127.0.0.0/8, `::1` or `localhost`.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        match self {
            Host::Ip(address) => address.to_canonical().is_loopback(),
            Host::Name(name) => name.eq_ignore_ascii_case("localhost"),
        }
    }

    /// Whether it is a name below the top-level domain `domain`.
    #[must_use]
    pub fn is_below(&self, domain: &str) -> bool {
        match self {
            Host::Ip(_) => false,
            Host::Name(name) => match name.rsplit_once('.') {
                Some((label, last)) => !label.is_empty() && last.eq_ignore_ascii_case(domain),
                None => false,
            },
        }
    }
}

impl PartialEq for Host<'_> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Host::Ip(this), Host::Ip(other)) => this == other,
            (Host::Name(this), Host::Name(other)) => this.eq_ignore_ascii_case(other),
            (Host::Ip(_), Host::Name(_)) | (Host::Name(_), Host::Ip(_)) => false,
        }
    }
}

impl Eq for Host<'_> {}

/// A host name without the dot that may end it.
fn parse_name(text: &str) -> Option<&str> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let is_label = |label: &str| !label.is_empty() && label.bytes().all(known);
    let valid = name.len() <= NAME_BYTES_MAX && name.split('.').all(is_label);
    valid.then_some(name)
}

/// A port; the outer `None` is no port number, the inner one the empty text that RFC 3986 allows.
fn parse_port(text: &str) -> Option<Option<u16>> {
    if text.is_empty() {
        return Some(None);
    }
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok().map(Some) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_told_apart() {
        let port = |text| Authority::parse(text).map(|authority| authority.port);
        assert_eq!(port("relay"), Some(None));
        assert_eq!(port("relay:"), Some(None));
        assert_eq!(port("relay:80"), Some(Some(80)));
        assert_eq!(port("[::1]:5263"), Some(Some(5263)));
        assert!(matches!(Authority::parse("127.0.0.1").unwrap().host, Host::Ip(_)));
        assert!(matches!(Authority::parse("[fe80::1]").unwrap().host, Host::Ip(_)));
        assert!(matches!(Authority::parse("127.1").unwrap().host, Host::Name(_)));
        assert_eq!(Authority::parse("Relay.Local."), Authority::parse("relay.local"));
    }

    #[test]
    fn what_is_not_a_host_is_refused() {
        let long = "a".repeat(256);
        for text in [
            "",
            ".",
            "..",
            "a..b",
            ".local",
            ":80",
            "a:b",
            "a:+80",
            "a:65536",
            "a:80:80",
            "a b",
            "a/b",
            "user@a",
            "a%41",
            "[::1",
            "[::1]80",
            "[127.0.0.1]",
            "[fe80::1%eth0]",
            "::1",
            "k\u{fc}che",
            &long,
        ] {
            assert_eq!(Authority::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn only_this_machine_is_loopback() {
        let loopback = |text| Authority::parse(text).unwrap().host.is_loopback();
        for text in ["127.0.0.1", "127.9.9.9:1", "[::1]", "[::ffff:127.0.0.1]", "LOCALHOST"] {
            assert!(loopback(text), "{text}");
        }
        for text in ["128.0.0.1", "[::2]", "localhost.example", "a.localhost", "0.0.0.0"] {
            assert!(!loopback(text), "{text}");
        }
    }
}
