//! The `forwarded` header (RFC 7239) of a CONNECT request: the client's address, and the host name
//! of the service that it connects to.

use http::HeaderMap;
use mesh::{ClientAddr, Text};

/// The name of the header.
pub(crate) const FORWARDED: &str = "forwarded";

/// The header's value for a client that connects to the service with this host name, or to an
/// address.
pub fn forwarded(client: ClientAddr, host: Option<&Text>) -> String {
    match host {
        Some(host) => format!("for=\"{client}\";host={host}"),
        None => format!("for=\"{client}\""),
    }
}

/// The host name that the last of the proxies before this one reports. It is a claim, for
/// telemetry only.
pub fn forwarded_host(headers: &HeaderMap) -> Option<String> {
    let values = headers.get_all(FORWARDED).iter();
    let mut hosts = values.filter_map(|value| last_host(value.to_str().ok()?));
    hosts.next_back()
}

/// The last `host` parameter of a value; none if a quoted string does not end.
fn last_host(mut rest: &str) -> Option<String> {
    let mut host = None;
    while let Some((before, after)) = rest.split_once('=') {
        let name = before.rsplit([';', ',']).next().unwrap_or(before);
        let (value, left) = split_value(after.trim_start())?;
        if name.trim().eq_ignore_ascii_case("host") {
            host = Some(value);
        }
        rest = left;
    }
    host
}

/// Splits a token or a quoted string from what follows it.
fn split_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([';', ',']).unwrap_or(text.len());
        return Some((text[..end].trim().to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            _ => value.push(character),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn host_of(values: &[&'static str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(FORWARDED, HeaderValue::from_static(value));
        }
        forwarded_host(&headers)
    }

    #[test]
    fn the_host_of_every_valid_form_is_read() {
        for value in [
            "for=\"10.0.0.1:80\";host=web.shop",
            "host=web.shop",
            "HOST = web.shop ; for=x",
            "for=\"[::1]:80\"; host=\"web.shop\"",
            "host=\"web\\.shop\"",
            "for=1.2.3.4;host=other, for=\"a;host=b,c\";host=web.shop",
            "secret;host=web.shop",
        ] {
            assert_eq!(host_of(&[value]).as_deref(), Some("web.shop"), "{value}");
        }
        let values = ["host=first", "for=1.2.3.4", "host=last"];
        assert_eq!(host_of(&values).as_deref(), Some("last"));
    }

    #[test]
    fn anything_else_has_no_host() {
        for value in [
            "",
            "=",
            "host",
            "for=\"host=web\"",
            "for=\"unterminated;host=web",
            "xhost=web",
            "for=\"a\\",
        ] {
            assert_eq!(host_of(&[value]), None, "{value}");
        }
        assert_eq!(host_of(&[]), None);
    }

    #[test]
    fn what_is_written_is_read() {
        for client in ["10.0.0.1:80", "[fd00::1]:80"] {
            let client: std::net::SocketAddr = client.parse().unwrap();
            let value = forwarded(client.into(), Some(&Text::from("web.shop")));
            assert_eq!(last_host(&value).as_deref(), Some("web.shop"), "{value}");
            assert_eq!(last_host(&forwarded(client.into(), None)), None);
        }
    }
}
