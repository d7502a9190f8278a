//! Addresses to listen on, origins and host names: what may be written, and which are loopback.
//!
//! # Place
//!
//! Pure text; nothing is resolved or bound here. Reasons continue "this entry ...".

use std::net::{Ipv6Addr, SocketAddr};

/// Ports that browsers leave out of an origin.
const DEFAULT_PORTS: [(&str, u16); 2] = [("http", 80), ("https", 443)];

/// Checks `host:port`, where the host is an IP address or a name; port 0 lets the system choose.
///
/// # Errors
///
/// What is wrong with it.
pub(super) fn check_listen(text: &str) -> Result<String, String> {
    if text.parse::<SocketAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => (host, port),
        _ => return Err("has no port: write host:port, such as 127.0.0.1:5263".to_owned()),
    };
    if parse_port(port).is_none() {
        return Err(format!("has the port {port:?}: ports are 0 to 65535"));
    }
    if host.is_empty() || host == "*" {
        return Err(format!(
            "names no host: write 127.0.0.1:{port} for this machine alone, or 0.0.0.0:{port} or \
             [::]:{port} for all of its addresses"
        ));
    }
    if host.contains(':') && host.chars().all(|c| c.is_ascii_hexdigit() || ":.".contains(c)) {
        return Err("is an IPv6 address without brackets: write it as [::1]:5263".to_owned());
    }
    let looks_numeric = host.chars().all(|c| c.is_ascii_digit() || c == '.');
    if looks_numeric || !is_host_name(host) {
        return Err(format!("has the host {host:?}, which is no IP address and no host name"));
    }
    Ok(text.to_owned())
}

/// Checks `scheme://host[:port]` and brings it into the form in which browsers send it: lower
/// case, without a default port.
///
/// # Errors
///
/// What is wrong with it.
pub(super) fn check_origin(text: &str) -> Result<String, String> {
    let lower = text.to_ascii_lowercase();
    let shape = "an origin is scheme://host[:port], such as https://panel.example";
    let Some((scheme, authority)) = lower.split_once("://") else {
        return Err(format!("has no scheme: {shape}"));
    };
    let scheme_is_plain = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    if !scheme_is_plain {
        return Err(format!("has the scheme {scheme:?}: {shape}"));
    }
    if authority.contains(['/', '?', '#']) {
        return Err(format!("goes on after the host: {shape}, without path or final slash"));
    }
    let host_end = authority.rfind(']').map_or_else(|| authority.find(':'), |at| Some(at + 1));
    let (host, port) = authority.split_at(host_end.unwrap_or(authority.len()));
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host_is_plain =
        bracketed.map_or_else(|| is_host_name(host), |host| host.parse::<Ipv6Addr>().is_ok());
    if !host_is_plain {
        return Err(format!("has the host {host:?}: {shape}"));
    }
    if port.is_empty() {
        return Ok(lower);
    }
    match port.strip_prefix(':').and_then(parse_port) {
        None | Some(0) => Err(format!("has the port {port:?}: ports are 1 to 65535")),
        Some(number) if DEFAULT_PORTS.contains(&(scheme, number)) => {
            Ok(format!("{scheme}://{host}"))
        }
        Some(_) => Ok(lower),
    }
}

/// Checks a host name as requests address it, without a port, and brings it into lower case.
///
/// # Errors
///
/// What is wrong with it.
pub(super) fn check_host(text: &str) -> Result<String, String> {
    if is_host_name(text) {
        return Ok(text.to_ascii_lowercase());
    }
    Err("is not a host name: that is letters, digits, '-', '_' and dots, without port or scheme"
        .to_owned())
}

/// Whether only this machine can reach the listener `entry`, which passed [`check_listen`].
pub(super) fn is_loopback(entry: &str) -> bool {
    if let Ok(address) = entry.parse::<SocketAddr>() {
        return address.ip().to_canonical().is_loopback();
    }
    // Any other name may resolve to any address, now or after a change in the name service.
    let host = entry.rsplit_once(':').map_or(entry, |(host, _)| host);
    host.eq_ignore_ascii_case("localhost")
}

/// Whether two listeners that passed [`check_listen`] would surely be the same.
pub(super) fn is_same(entry: &str, other: &str) -> bool {
    let any_port = entry.ends_with(":0");
    match (entry.parse::<SocketAddr>(), other.parse::<SocketAddr>()) {
        (Ok(entry), Ok(other)) => entry == other && !any_port,
        _ => entry.eq_ignore_ascii_case(other) && !any_port,
    }
}

fn is_host_name(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let is_label = |label: &str| (1..=63).contains(&label.len()) && label.chars().all(is_plain);
    text.len() <= 253 && text.split('.').all(is_label)
}

fn parse_port(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_host_and_port() {
        for text in [
            "127.0.0.1:5263",
            "0.0.0.0:0",
            "[::1]:5263",
            "[::]:80",
            "[fe80::1%2]:5263",
            "localhost:5263",
            "relay.local:5263",
        ] {
            assert_eq!(check_listen(text).as_deref(), Ok(text));
        }
        for (text, reason) in [
            ("", "has no port"),
            ("127.0.0.1", "has no port"),
            ("5263", "has no port"),
            ("[::1]", "has no port"),
            ("127.0.0.1:", "has the port \"\""),
            ("127.0.0.1:65536", "ports are 0 to 65535"),
            ("127.0.0.1:+5", "has the port \"+5\""),
            (":5263", "names no host"),
            ("*:5263", "0.0.0.0:5263"),
            ("::1:5263", "without brackets"),
            ("256.0.0.1:5263", "has the host \"256.0.0.1\""),
            ("127.1:5263", "has the host"),
            ("a b:5263", "has the host \"a b\""),
            ("http://a:5263", "has the host \"http://a\""),
            ("[::g]:5263", "has the host"),
        ] {
            let error = check_listen(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn only_loopback_literals_and_localhost_are_loopback() {
        for text in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "LocalHost:1"]
        {
            assert!(is_loopback(text), "{text}");
        }
        for text in ["0.0.0.0:1", "[::]:1", "192.168.1.2:1", "localhost.example:1", "relay:1"] {
            assert!(!is_loopback(text), "{text}");
        }
    }

    #[test]
    fn listeners_with_a_port_of_their_own_are_never_the_same() {
        assert!(is_same("[::1]:80", "[0::1]:80"));
        assert!(is_same("Relay:80", "relay:80"));
        assert!(!is_same("127.0.0.1:80", "127.0.0.1:81"));
        assert!(!is_same("127.0.0.1:0", "127.0.0.1:0"));
    }

    #[test]
    fn origins_take_the_form_that_browsers_send() {
        for (text, origin) in [
            ("https://panel.example", "https://panel.example"),
            ("HTTPS://Panel.Example:443", "https://panel.example"),
            ("http://10.0.0.1:80", "http://10.0.0.1"),
            ("http://panel:8080", "http://panel:8080"),
            ("https://panel:80", "https://panel:80"),
            ("http://[::1]:3000", "http://[::1]:3000"),
            ("http://[::1]", "http://[::1]"),
            ("capacitor://localhost", "capacitor://localhost"),
        ] {
            assert_eq!(check_origin(text).as_deref(), Ok(origin));
        }
        for (text, reason) in [
            ("*", "has no scheme"),
            ("null", "has no scheme"),
            ("panel.example", "has no scheme"),
            ("://panel", "has the scheme \"\""),
            ("https://panel/", "final slash"),
            ("https://panel/app", "goes on after the host"),
            ("https://", "has the host \"\""),
            ("https://user@panel", "has the host"),
            ("https://*.example", "has the host"),
            ("https://panel:0", "ports are 1 to 65535"),
            ("https://panel:x", "ports are 1 to 65535"),
            ("https://[::1]80", "ports are 1 to 65535"),
            ("https://[panel]", "has the host"),
        ] {
            let error = check_origin(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn host_names_have_neither_port_nor_scheme() {
        assert_eq!(check_host("Panel.Example").as_deref(), Ok("panel.example"));
        for text in ["", "a:80", "http://a", "a..b", ".a", "a b", &"a".repeat(64)] {
            assert!(check_host(text).is_err(), "{text}");
        }
    }
}
