//! Whether a request comes from where it may: `Host` against DNS rebinding, `Origin` against
//! other sites. PURE.

use crate::model::cut_after;
use std::net::{IpAddr, SocketAddr};

use http::header::{HOST, ORIGIN};
use http::{HeaderMap, Uri};

/// Why a request was turned away.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ForeignError {
    /// No `Host`, or more than one.
    #[error("the request needs exactly one Host header")]
    HostMissing,
    /// A host that is not ours.
    #[error("the host `{0}` is not served here; add it to http.allowed_hosts if it should be")]
    Host(String),
    /// A site that may not use us.
    #[error(
        "the origin `{0}` may not use this router; add it to http.allowed_origins if it should"
    )]
    Origin(String),
}

/// Checks `Host` (and the authority of an absolute-form target) and `Origin`.
///
/// Loopback names are always served, on any port; so is the address the connection came in on.
/// A missing `Origin` is fine: browsers send one with every request that could do harm.
pub(super) fn check(
    headers: &HeaderMap,
    uri: &Uri,
    local: Option<SocketAddr>,
    allowed_hosts: &[String],
    allowed_origins: &[String],
) -> Result<(), ForeignError> {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(ForeignError::HostMissing);
    };
    let served = |text: &str| host_is_served(text, local, allowed_hosts);
    let host = host.to_str().unwrap_or("\u{fffd}");
    if !served(host) {
        return Err(ForeignError::Host(shown(host)));
    }
    if let Some(authority) = uri.authority()
        && !served(authority.as_str())
    {
        return Err(ForeignError::Host(shown(authority.as_str())));
    }
    for origin in headers.get_all(ORIGIN) {
        let origin = origin.to_str().unwrap_or("\u{fffd}");
        if !origin_is_allowed(origin, local, allowed_hosts, allowed_origins) {
            return Err(ForeignError::Origin(shown(origin)));
        }
    }
    Ok(())
}

fn shown(text: &str) -> String {
    cut_after(text, 128)
}

/// Host name and optional port of an authority; `None` for anything odd, such as userinfo.
fn split_authority(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = if authority.starts_with('[') {
        let (host, rest) = authority.split_once(']')?;
        let host = host.strip_prefix('[')?;
        match rest {
            "" => (host, None),
            rest => (host, Some(rest.strip_prefix(':')?)),
        }
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    let fine = !host.is_empty()
        && host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':'));
    let port = match port {
        None => None,
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => Some(digits.parse().ok()?),
        Some(_) => return None,
    };
    fine.then_some((host, port))
}

fn host_is_served(authority: &str, local: Option<SocketAddr>, allowed: &[String]) -> bool {
    let Some((host, _)) = split_authority(authority) else { return false };
    let host = host.to_ascii_lowercase();
    if is_loopback_name(&host) {
        return true;
    }
    let is_local = local.is_some_and(|local| {
        host.parse::<IpAddr>()
            .is_ok_and(|ip| ip == local.ip().to_canonical() && !ip.is_unspecified())
    });
    is_local || allowed.iter().any(|name| *name == host || name.eq_ignore_ascii_case(authority))
}

fn is_loopback_name(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// An origin is allowed when it is listed, or when it is one of our own pages: `http(s)` and a
/// host that we serve as loopback name or as the connection's own address.
fn origin_is_allowed(
    origin: &str,
    local: Option<SocketAddr>,
    allowed_hosts: &[String],
    allowed_origins: &[String],
) -> bool {
    let origin = origin.to_ascii_lowercase();
    if allowed_origins.contains(&origin) {
        return true;
    }
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    let Some(authority) = authority else { return false };
    let Some((_, port)) = split_authority(authority) else { return false };
    // Another local port is another site: a page of some other local program.
    let own_port = local.is_none_or(|local| port.unwrap_or(80) == local.port());
    own_port && host_is_served(authority, local, allowed_hosts)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const LOCAL: &str = "127.0.0.1:8300";

    fn verdict(host: &str, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_str(host).unwrap());
        if let Some(origin) = origin {
            headers.insert(ORIGIN, HeaderValue::from_str(origin).unwrap());
        }
        let hosts = ["router.example".to_owned()];
        let origins = ["https://console.example".to_owned()];
        check(&headers, &Uri::from_static("/mcp"), Some(LOCAL.parse().unwrap()), &hosts, &origins)
            .is_ok()
    }

    #[test]
    fn own_names_are_served_and_foreign_ones_are_not() {
        for host in [
            "127.0.0.1:8300",
            "127.0.0.1",
            "localhost:8300",
            "LocalHost",
            "[::1]:8300",
            "[::1]",
            "127.0.0.2:1",
            "router.example",
            "Router.Example:443",
        ] {
            assert!(verdict(host, None), "{host}");
        }
        for host in [
            "evil.example.com",
            "evil.example.com:8300",
            "0.0.0.0:8300",
            "localhost.evil.com",
            "user@localhost",
            "localhost:8300:1",
            "localhost:x",
            "",
            "10.0.0.1",
            "[::1",
            "127.0.0.1.evil.com",
            "localhost/",
            "[::]:8300",
        ] {
            assert!(!verdict(host, None), "{host}");
        }
    }

    #[test]
    fn only_own_and_listed_origins_are_let_in() {
        for origin in ["http://127.0.0.1:8300", "http://localhost:8300", "https://console.example"]
        {
            assert!(verdict("localhost:8300", Some(origin)), "{origin}");
        }
        for origin in [
            "null",
            "http://evil.example.com",
            "http://localhost:3000",
            "http://localhost",
            "file://",
            "https://console.example.evil.com",
            "http://user@localhost:8300",
        ] {
            assert!(!verdict("localhost:8300", Some(origin)), "{origin}");
        }
    }

    #[test]
    fn two_hosts_or_none_or_a_foreign_absolute_target_are_refused() {
        let none = HeaderMap::new();
        assert!(check(&none, &Uri::from_static("/"), None, &[], &[]).is_err());
        let mut two = HeaderMap::new();
        two.append(HOST, HeaderValue::from_static("localhost"));
        two.append(HOST, HeaderValue::from_static("localhost"));
        assert!(check(&two, &Uri::from_static("/"), None, &[], &[]).is_err());
        let mut one = HeaderMap::new();
        one.insert(HOST, HeaderValue::from_static("localhost"));
        let absolute = Uri::from_static("http://evil.example.com/mcp");
        assert!(check(&one, &absolute, None, &[], &[]).is_err());
    }

    #[test]
    fn behind_an_unspecified_address_the_address_of_the_connection_counts() {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("10.1.2.3:8300"));
        let local = "10.1.2.3:8300".parse().ok();
        assert!(check(&headers, &Uri::from_static("/"), local, &[], &[]).is_ok());
        assert!(
            check(&headers, &Uri::from_static("/"), "10.9.9.9:8300".parse().ok(), &[], &[])
                .is_err()
        );
    }
}
