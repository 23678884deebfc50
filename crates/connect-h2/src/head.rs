//! Requests and responses as lists of fields (RFC 9113 section 8).

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};

use crate::error::Violation;
use crate::hpack::Field;

/// A request.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestHead {
    /// CONNECT, or a method that the caller should reject.
    pub method: Method,
    /// The destination; it may be empty, and is not checked.
    pub authority: String,
    /// All other fields. Sensitive values are marked.
    pub headers: HeaderMap,
}

/// A response.
#[derive(Debug, Clone, PartialEq)]
pub struct ResponseHead {
    /// The status, at least 200.
    pub status: StatusCode,
    /// All other fields. Sensitive values are marked.
    pub headers: HeaderMap,
}

/// The fields of a CONNECT request.
pub(crate) fn request_fields<'a>(
    authority: &'a str,
    headers: &'a HeaderMap,
) -> impl Iterator<Item = Field<'a>> {
    let pseudo = [(":method", "CONNECT"), (":authority", authority)];
    pseudo.into_iter().map(pseudo_field).chain(fields(headers))
}

/// The fields of a response.
pub(crate) fn response_fields<'a>(
    status: &'a StatusCode,
    headers: &'a HeaderMap,
) -> impl Iterator<Item = Field<'a>> {
    std::iter::once(pseudo_field((":status", status.as_str()))).chain(fields(headers))
}

fn pseudo_field<'a>((name, value): (&'a str, &'a str)) -> Field<'a> {
    Field {
        name: name.as_bytes(),
        value: value.as_bytes(),
        is_sensitive: false,
    }
}

fn fields(headers: &HeaderMap) -> impl Iterator<Item = Field<'_>> {
    headers.iter().map(|(name, value)| Field {
        name: name.as_str().as_bytes(),
        value: value.as_bytes(),
        is_sensitive: value.is_sensitive(),
    })
}

/// Collects the fields of a header list, up to a limit, and checks them.
#[derive(Debug, Default)]
pub(crate) struct FieldList {
    method: Option<Method>,
    authority: Option<String>,
    status: Option<StatusCode>,
    has_scheme: bool,
    has_path: bool,
    headers: HeaderMap,
    is_malformed: bool,
    is_too_large: bool,
    /// The number of fields, and what they count in bytes.
    count: u32,
    size: usize,
}

impl FieldList {
    /// Adds a field, unless there are more than `max_fields`, or of more than `max_size` bytes.
    pub(crate) fn add(&mut self, field: Field<'_>, max_fields: u32, max_size: u32) {
        self.count += 1;
        self.size += field.size();
        self.is_too_large |= self.count > max_fields || self.size > max_size as usize;
        if !self.is_too_large && !self.is_malformed && self.insert(field).is_none() {
            self.is_malformed = true;
        }
    }

    /// Inserts a field; `None` if it is malformed.
    fn insert(&mut self, field: Field<'_>) -> Option<()> {
        if field.name.first() == Some(&b':') {
            return self.insert_pseudo(field);
        }
        let name = HeaderName::from_lowercase(field.name).ok()?;
        let is_of_connection = match name {
            header::TE => field.value != b"trailers",
            header::CONNECTION | header::TRANSFER_ENCODING | header::UPGRADE => true,
            _ => matches!(name.as_str(), "keep-alive" | "proxy-connection"),
        };
        if is_of_connection {
            return None;
        }
        let mut value = HeaderValue::from_bytes(field.value).ok()?;
        value.set_sensitive(field.is_sensitive);
        self.headers.try_append(name, value).ok().map(|_| ())
    }

    /// Inserts a pseudo-header field: once each, and ahead of all others.
    fn insert_pseudo(&mut self, field: Field<'_>) -> Option<()> {
        if !self.headers.is_empty() {
            return None;
        }
        let is_repeated = match field.name {
            b":method" => {
                let method = Method::from_bytes(field.value).ok()?;
                self.method.replace(method).is_some()
            }
            b":authority" => {
                let authority = std::str::from_utf8(field.value).ok()?;
                self.authority.replace(authority.to_owned()).is_some()
            }
            b":status" => {
                let status = StatusCode::from_bytes(field.value).ok()?;
                self.status.replace(status).is_some()
            }
            b":scheme" => std::mem::replace(&mut self.has_scheme, true),
            b":path" => std::mem::replace(&mut self.has_path, true),
            _ => return None, // :protocol as well: its setting was not sent
        };
        (!is_repeated).then_some(())
    }

    /// Checks that the list is a request.
    pub(crate) fn into_request(self) -> Result<RequestHead, Violation> {
        self.check()?;
        let method = self.method.ok_or(Violation::MalformedHead)?;
        let is_connect = method == Method::CONNECT;
        if self.status.is_some()
            || is_connect && self.authority.is_none()
            || self.has_scheme == is_connect
            || self.has_path == is_connect
        {
            return Err(Violation::MalformedHead);
        }
        Ok(RequestHead {
            method,
            authority: self.authority.unwrap_or_default(),
            headers: self.headers,
        })
    }

    /// Checks that the list is a response, maybe an informational one.
    pub(crate) fn into_response(self) -> Result<ResponseHead, Violation> {
        self.check()?;
        let status = self.status.ok_or(Violation::MalformedHead)?;
        if self.is_request() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Violation::MalformedHead);
        }
        Ok(ResponseHead {
            status,
            headers: self.headers,
        })
    }

    /// Checks that the list is a trailer, whose fields are ignored.
    pub(crate) fn check_trailers(&self) -> Result<(), Violation> {
        if self.is_malformed || self.is_request() || self.status.is_some() {
            return Err(Violation::MalformedHead);
        }
        Ok(())
    }

    fn is_request(&self) -> bool {
        self.method.is_some() || self.authority.is_some() || self.has_scheme || self.has_path
    }

    fn check(&self) -> Result<(), Violation> {
        if self.is_malformed {
            return Err(Violation::MalformedHead);
        }
        if self.is_too_large {
            return Err(Violation::HeaderListTooLarge);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(fields: &[(&str, &str)]) -> FieldList {
        let mut list = FieldList::default();
        for (name, value) in fields {
            list.add(pseudo_field((name, value)), 5, 300);
        }
        list
    }

    #[test]
    fn a_connect_has_a_method_and_an_authority() {
        let fields = [
            (":method", "CONNECT"),
            (":authority", "10.0.0.1:80"),
            ("baggage", "a=b"),
            ("x", "1"),
            ("x", "2"),
        ];
        let request = list(&fields).into_request().unwrap();
        assert_eq!(request.authority, "10.0.0.1:80");
        assert_eq!(request.headers["baggage"], "a=b");
        assert_eq!(request.headers.get_all("x").iter().count(), 2);
        let sent: Vec<_> = request_fields(&request.authority, &request.headers).collect();
        assert_eq!(sent, fields.map(pseudo_field));
    }

    #[test]
    fn other_requests_are_recognised() {
        let get = [(":method", "GET"), (":scheme", "https"), (":path", "/")];
        let request = list(&get).into_request().unwrap();
        assert_eq!(
            (request.method, request.authority.as_str()),
            (Method::GET, "")
        );
    }

    #[test]
    fn malformed_requests_are_rejected() {
        let connect = [(":method", "CONNECT"), (":authority", "a:1")];
        for fields in [
            &[][..],
            &[(":method", "CONNECT")],
            &[(":authority", "a:1")],
            &[connect[0], connect[1], (":path", "/")],
            &[connect[0], connect[1], (":scheme", "https")],
            &[connect[0], connect[1], (":protocol", "websocket")],
            &[connect[0], connect[1], (":status", "200")],
            &[connect[0], connect[1], connect[1]],
            &[connect[0], ("x", "1"), connect[1]],
            &[connect[0], connect[1], ("X", "1")],
            &[connect[0], connect[1], ("x y", "1")],
            &[connect[0], connect[1], ("x", "1\n2")],
            &[connect[0], connect[1], ("connection", "close")],
            &[connect[0], connect[1], ("te", "gzip")],
            &[(":method", "GET"), (":path", "/")],
        ] {
            let request = list(fields).into_request();
            assert_eq!(request, Err(Violation::MalformedHead), "{fields:?}");
        }
    }

    #[test]
    fn malformed_responses_are_rejected() {
        let response = list(&[(":status", "503"), ("x", "")]).into_response();
        assert_eq!(response.unwrap().status, StatusCode::SERVICE_UNAVAILABLE);
        for fields in [
            &[][..],
            &[(":status", "20")],
            &[(":status", "101")],
            &[(":status", "200"), (":status", "200")],
            &[(":status", "200"), (":method", "CONNECT")],
        ] {
            let response = list(fields).into_response();
            assert_eq!(response, Err(Violation::MalformedHead), "{fields:?}");
        }
    }

    #[test]
    fn lists_with_too_many_or_too_large_fields_are_rejected() {
        let status = (":status", "200");
        let many = [
            status,
            ("a", ""),
            ("b", ""),
            ("c", ""),
            ("d", ""),
            ("e", ""),
        ];
        assert_eq!(
            list(&many).into_response(),
            Err(Violation::HeaderListTooLarge)
        );
        assert!(list(&many[..5]).into_response().is_ok());
        let long = "x".repeat(300 - 32 - 10 - 32 - 1);
        let just = [status, ("a", long.as_str())];
        assert!(list(&just).into_response().is_ok());
        let beyond = [just[0], ("ab", &long)];
        assert_eq!(
            list(&beyond).into_response(),
            Err(Violation::HeaderListTooLarge)
        );
    }

    #[test]
    fn trailers_have_no_pseudo_fields() {
        assert!(list(&[("x", "1")]).check_trailers().is_ok());
        assert!(list(&[(":status", "200")]).check_trailers().is_err());
        assert!(list(&[("X", "1")]).check_trailers().is_err());
    }
}
