//! Which browsers' pages may talk to the relay.
//!
//! A page can make its visitor's browser send requests to the LAN. Two checks stand against that:
//! `Host` must be a name that nobody on the internet can point at this machine (DNS rebinding), and
//! `Origin`, which a page cannot forge, must be the relay itself, a listed one, or this machine.
//! Programs that are not browsers send no `Origin`, and are none of this module's business.

use crate::{
    config::settings::OriginSettings,
    http::{
        authority::{Authority, Host},
        shown,
    },
    wire::{codes::Code, request::Refusal},
};

/// Who makes a request that may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A program, or a browser on behalf of its user: there is no origin.
    Direct,
    /// A page of the relay's own.
    SameOrigin,
    /// Another page that is allowed: only with CORS headers may it read the answer.
    CrossOrigin,
}

/// Checks the `Host` and `Origin` of a request.
///
/// # Errors
///
/// `forbidden`, with the setting that would allow it.
pub fn check(
    host: Option<&str>,
    origin: Option<&str>,
    settings: &OriginSettings,
) -> Result<Caller, Refusal> {
    // Without `Host` it is HTTP/1.0, which no browser speaks; some health checks do.
    let host = host.map(|text| check_host(text, settings)).transpose()?;
    let Some(text) = origin else { return Ok(Caller::Direct) };
    let origin = Origin::parse(text);
    if let (Some(origin), Some(host)) = (origin, host)
        && origin.is_web()
    {
        if origin.is_at(host) {
            return Ok(Caller::SameOrigin);
        }
        // A page served by this machine, to a browser on this machine: a development server.
        if origin.authority.host.is_loopback() && host.host.is_loopback() {
            return Ok(Caller::CrossOrigin);
        }
    }
    let listed = |allowed: &String| match (origin, Origin::parse(allowed)) {
        (Some(origin), Some(allowed)) => origin.equals(&allowed),
        // What has no host, such as `null`, is compared as text.
        _ => text.eq_ignore_ascii_case(allowed),
    };
    if settings.allowed_origins.iter().any(listed) {
        return Ok(Caller::CrossOrigin);
    }
    Err(Refusal::new(
        Code::Forbidden,
        format!(
            "pages of the origin {} may not use this relay; its operator can add it to \
             allowed_origins",
            shown(text)
        ),
    ))
}

fn check_host<'a>(text: &'a str, settings: &OriginSettings) -> Result<Authority<'a>, Refusal> {
    let authority = Authority::parse(text);
    authority.filter(|authority| is_host_allowed(authority.host, settings)).ok_or_else(|| {
        Refusal::new(
            Code::Forbidden,
            format!(
                "this relay is not known as {}; use its address, or let its operator add the name \
                 to allowed_hosts",
                shown(text)
            ),
        )
    })
}

fn is_host_allowed(host: Host<'_>, settings: &OriginSettings) -> bool {
    match host {
        // Nobody needs to be asked where an address leads, so nobody can lie about it.
        Host::Ip(_) => true,
        // `localhost` never leaves the machine, `local` (multicast DNS) never the LAN.
        Host::Name(name) => {
            name.eq_ignore_ascii_case("localhost")
                || host.is_below("localhost")
                || host.is_below("local")
                || settings
                    .allowed_hosts
                    .iter()
                    .filter_map(|allowed| Authority::parse(allowed))
                    .any(|allowed| allowed.host == host)
        }
    }
}

/// An origin as browsers write it: `scheme://host` or `scheme://host:port`.
#[derive(Clone, Copy, Debug)]
struct Origin<'a> {
    scheme: &'a str,
    authority: Authority<'a>,
}

impl<'a> Origin<'a> {
    fn parse(text: &'a str) -> Option<Origin<'a>> {
        let (scheme, authority) = text.split_once("://")?;
        Some(Origin { scheme, authority: Authority::parse(authority)? })
    }

    /// Whether pages of it come over the web. Others are applications that show pages, and their
    /// hosts name nothing on a network.
    fn is_web(&self) -> bool {
        self.port_implied().is_some()
    }

    fn port_implied(&self) -> Option<u16> {
        if self.scheme.eq_ignore_ascii_case("http") {
            Some(80)
        } else if self.scheme.eq_ignore_ascii_case("https") {
            Some(443)
        } else {
            None
        }
    }

    fn port(&self) -> Option<u16> {
        self.authority.port.or(self.port_implied())
    }

    /// Whether its pages come from `host`. A `Host` without a port leaves the scheme open, because
    /// a proxy may have taken the TLS off; so it stands for the port of the origin's own scheme.
    fn is_at(&self, host: Authority<'_>) -> bool {
        self.authority.host == host.host && self.port() == host.port.or(self.port_implied())
    }

    fn equals(&self, other: &Origin<'_>) -> bool {
        self.scheme.eq_ignore_ascii_case(other.scheme)
            && self.authority.host == other.authority.host
            && self.port() == other.port()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(origins: &[&str], hosts: &[&str]) -> OriginSettings {
        let owned = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
        OriginSettings { allowed_origins: owned(origins), allowed_hosts: owned(hosts) }
    }

    fn host_passes(host: &str, settings: &OriginSettings) -> bool {
        check(Some(host), None, settings).is_ok()
    }

    #[test]
    fn a_host_that_the_internet_cannot_point_here_passes() {
        let none = OriginSettings::default();
        for host in [
            "127.0.0.1",
            "192.168.1.5:5263",
            "8.8.8.8",
            "[::1]:80",
            "[fe80::1]",
            "localhost",
            "LOCALHOST:5263",
            "localhost.",
            "a.localhost",
            "relay.local",
            "Relay.LOCAL:80",
            "a.b.local.",
        ] {
            assert!(host_passes(host, &none), "{host}");
        }
    }

    #[test]
    fn any_other_host_is_refused_until_it_is_listed() {
        let none = OriginSettings::default();
        let listed = settings(&[], &["relay.example", "PI"]);
        for host in ["relay.example", "Relay.Example:5263", "relay.example.", "pi:1"] {
            assert!(!host_passes(host, &none), "{host}");
            assert!(host_passes(host, &listed), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "relay.example.evil.example",
            "xrelay.example",
            "local",
            ".local",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "relaylocal",
            "127.0.0.1@evil.example",
        ] {
            assert!(!host_passes(host, &listed), "{host}");
        }
        let refusal = check(Some("evil.example"), None, &none).unwrap_err();
        assert_eq!(refusal.code, Code::Forbidden);
        assert!(refusal.message.contains("evil.example"), "{refusal:?}");
        assert!(refusal.message.contains("allowed_hosts"), "{refusal:?}");
    }

    #[test]
    fn the_relays_own_pages_are_its_host_and_port() {
        let none = OriginSettings::default();
        for (host, origin) in [
            ("192.168.1.5:5263", "http://192.168.1.5:5263"),
            ("relay.local", "http://relay.local"),
            ("relay.local", "https://RELAY.local"),
            ("relay.local:80", "http://relay.local"),
            ("relay.local", "http://relay.local:80"),
            ("relay.local:443", "https://relay.local"),
            ("[::1]:5263", "http://[::1]:5263"),
        ] {
            assert_eq!(check(Some(host), Some(origin), &none), Ok(Caller::SameOrigin), "{origin}");
        }
        for (host, origin) in [
            ("192.168.1.5:5263", "http://192.168.1.5"),
            ("192.168.1.5:5263", "http://192.168.1.5:5264"),
            ("192.168.1.5:5263", "http://192.168.1.6:5263"),
            ("relay.local:80", "https://relay.local"),
            ("192.168.1.5:5263", "https://evil.example"),
            ("192.168.1.5:5263", "http://192.168.1.5:5263.evil.example"),
            ("192.168.1.5:5263", "http://192.168.1.5:5263/"),
            ("192.168.1.5:5263", "192.168.1.5:5263"),
            ("192.168.1.5:5263", "app://192.168.1.5:5263"),
            ("192.168.1.5:5263", "null"),
            ("192.168.1.5:5263", ""),
        ] {
            let refusal = check(Some(host), Some(origin), &none).unwrap_err();
            assert_eq!(refusal.code, Code::Forbidden, "{origin}");
        }
    }

    #[test]
    fn a_page_of_this_machine_reaches_this_machine_on_any_port_and_no_other() {
        let none = OriginSettings::default();
        for origin in ["http://localhost:3000", "https://127.0.0.2", "http://[::1]:8080"] {
            for host in ["127.0.0.1:5263", "localhost:5263", "[::1]:5263"] {
                let caller = check(Some(host), Some(origin), &none);
                assert_eq!(caller, Ok(Caller::CrossOrigin), "{origin} {host}");
            }
            for host in ["192.168.1.5:5263", "relay.local:5263"] {
                assert!(check(Some(host), Some(origin), &none).is_err(), "{origin} {host}");
            }
        }
        for origin in ["app://localhost", "http://localhost.evil.example", "http://a.localhost"] {
            assert!(check(Some("localhost:5263"), Some(origin), &none).is_err(), "{origin}");
        }
    }

    #[test]
    fn a_listed_origin_is_compared_whole() {
        let listed = settings(&["https://Panel.example", "app://tablet", "http://a.b:81"], &[]);
        let at = |origin| check(Some("192.168.1.5"), Some(origin), &listed);
        for origin in
            ["https://panel.example", "HTTPS://PANEL.EXAMPLE:443", "app://tablet", "http://a.b:81"]
        {
            assert_eq!(at(origin), Ok(Caller::CrossOrigin), "{origin}");
        }
        for origin in [
            "http://panel.example",
            "https://panel.example:444",
            "https://panel.example.evil.example",
            "https://evil.panel.example",
            "https://xpanel.example",
            "app://tablet:1",
            "http://a.b",
            "null",
        ] {
            assert!(at(origin).is_err(), "{origin}");
        }
        let null = settings(&["null"], &[]);
        assert_eq!(check(Some("10.0.0.1"), Some("null"), &null), Ok(Caller::CrossOrigin));
    }

    #[test]
    fn without_a_host_only_programs_pass() {
        let none = OriginSettings::default();
        assert_eq!(check(None, None, &none), Ok(Caller::Direct));
        assert!(check(None, Some("http://localhost"), &none).is_err());
    }
}
