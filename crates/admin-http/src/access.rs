//! Which requests are served: none of a web page in a browser, which may reach this program through
//! a forwarded port or the loopback interface of the browser's machine.

use std::net::IpAddr;

use http::{HeaderMap, HeaderValue, header};

use crate::HostNames;

/// A request was not served. Likely cause: a web page sent it, or a name that this listener does
/// not expect was used for it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("requests of web pages are not served: use a client that sends no {0} header")]
    WebPage(&'static str),
    #[error("unexpected Host header: use an IP address or localhost in the URL")]
    Host,
}

/// Checks the headers of a request.
pub(crate) fn check(names: HostNames, headers: &HeaderMap) -> Result<(), Refused> {
    if headers.contains_key(header::ORIGIN) {
        return Err(Refused::WebPage("Origin"));
    }
    // Browsers send it with every request; `none` means that a person entered the URL.
    let site = headers.get("sec-fetch-site");
    if site.is_some_and(|site| site != "none") {
        return Err(Refused::WebPage("Sec-Fetch-Site"));
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    match names {
        HostNames::Local if !hosts.all(is_local) => Err(Refused::Host),
        _ => Ok(()),
    }
}

/// Whether a `Host` header has an IP address or a name without a dot, such as `localhost`, with or
/// without a port. No web page can have such a name.
fn is_local(host: &HeaderValue) -> bool {
    let Ok(host) = host.to_str() else {
        return false;
    };
    let without_port = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let bracketed = without_port
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'));
    let name = bracketed.unwrap_or(without_port);
    !name.contains('.') || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(names: HostNames, name: &'static str, value: &'static str) -> Result<(), Refused> {
        check(
            names,
            &HeaderMap::from_iter([(
                header::HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )]),
        )
    }

    #[test]
    fn web_pages_and_foreign_names_are_refused() {
        let local = |name, value| checked(HostNames::Local, name, value);
        for host in [
            "127.0.0.1:15000",
            "localhost",
            "LOCALHOST:15000",
            "[::1]:15000",
            "10.0.0.7",
            "ztunnel:15000",
            "",
        ] {
            assert_eq!(local("host", host), Ok(()), "{host}");
        }
        for host in [
            "attacker.example:15000",
            "localhost.attacker.example",
            "127.0.0.1.nip.io",
        ] {
            assert_eq!(local("host", host), Err(Refused::Host), "{host}");
            assert_eq!(checked(HostNames::Any, "host", host), Ok(()), "{host}");
        }
        for names in [HostNames::Local, HostNames::Any] {
            for origin in ["https://attacker.example", "null", "http://127.0.0.1:15000"] {
                assert_eq!(
                    checked(names, "origin", origin),
                    Err(Refused::WebPage("Origin"))
                );
            }
            assert!(checked(names, "sec-fetch-site", "cross-site").is_err());
            assert_eq!(checked(names, "sec-fetch-site", "none"), Ok(()));
        }
    }
}
