//! Who may ask, and by which name.
//!
//! A page of another site that a browser shows can send requests to this machine: by a name of its own that leads here (DNS
//! rebinding), or by ours. The first shows in `Host`, the second in `Origin`. Neither holds without a browser; against other
//! machines there is the key.

use std::net::IpAddr;

use hyper::header::{
    AUTHORIZATION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, ORIGIN, TRANSFER_ENCODING,
};
use hyper::http::request::Parts;
use hyper::{Uri, Version};

use crate::{Key, Reply, WebError};

/// Who may ask.
#[derive(Clone, Debug)]
pub struct Access {
    key: Option<Key>,
    /// Names beside those of this machine, in small letters.
    hosts: Vec<String>,
    any_host: bool,
    pub(crate) needs_no_key: bool,
}

impl Access {
    /// Whoever has the `key`, and names this machine, an IP address or one of `hosts` (`*`: any). Other machines may not
    /// ask without a key, unless it `needs_no_key`.
    ///
    /// # Errors
    /// Where one of the hosts is no name.
    pub fn new(key: Option<Key>, hosts: &[String], needs_no_key: bool) -> Result<Self, WebError> {
        for host in hosts {
            let is_name = host == "*" || name_of(host).is_some_and(|name| name == host);
            if !is_name {
                return Err(WebError::Host(host.clone()));
            }
        }
        Ok(Self {
            key,
            any_host: hosts.iter().any(|host| host == "*"),
            hosts: hosts.iter().map(|host| plain(host)).collect(),
            needs_no_key,
        })
    }

    pub(crate) fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// Looks at the head of a request.
    ///
    /// # Errors
    /// With the response to one that is refused.
    pub(crate) fn check(&self, head: &Parts) -> Result<(), Reply> {
        if head.headers.contains_key(TRANSFER_ENCODING) && head.headers.contains_key(CONTENT_LENGTH)
        {
            let why = "both `transfer-encoding` and `content-length`: expected one of them";
            return Err(Reply::refusal(400, why));
        }
        self.check_host(head)?;
        check_origin(&head.headers)?;
        check_path(head.uri.path())?;
        self.check_key(&head.headers)
    }

    fn check_host(&self, head: &Parts) -> Result<(), Reply> {
        let host = only(&head.headers, &HOST)?;
        if host.is_none() && head.version >= Version::HTTP_11 {
            return Err(Reply::refusal(400, "no `host`"));
        }
        let authority = head.uri.authority().map(|authority| authority.as_str());
        for named in [host, authority].into_iter().flatten() {
            let Some(name) = name_of(named) else {
                let why = format!("host `{named}`: expected a name, or a name and a port");
                return Err(Reply::refusal(400, &why));
            };
            if !self.is_allowed(name) {
                let why = format!(
                    "host `{name}` is not a name of this server\nhint: --allowed_hosts {name}, where it is started"
                );
                return Err(Reply::refusal(403, &why));
            }
        }
        Ok(())
    }

    fn is_allowed(&self, name: &str) -> bool {
        let name = plain(name);
        let address = name.trim_start_matches('[').trim_end_matches(']');
        // No name server says where an address leads.
        self.any_host
            || address.parse::<IpAddr>().is_ok()
            || name == "localhost"
            || name.ends_with(".localhost")
            || self.hosts.contains(&name)
    }

    fn check_key(&self, headers: &HeaderMap) -> Result<(), Reply> {
        let Some(key) = &self.key else {
            return Ok(());
        };
        let given = only(headers, &AUTHORIZATION)?.and_then(|text| text.split_once(' '));
        match given {
            Some((scheme, given))
                if scheme.eq_ignore_ascii_case("bearer") && key.is(given.trim()) =>
            {
                Ok(())
            }
            Some(_) => Err(Reply::refusal(401, "wrong key")),
            None => Err(Reply::refusal(401, "no key: expected `authorization: Bearer KEY`")),
        }
    }
}

/// The text of a header that may stand once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Reply> {
    let mut all = headers.get_all(name).iter();
    let first = all.next();
    if all.next().is_some() {
        return Err(Reply::refusal(400, &format!("`{name}` stands twice")));
    }
    let text = first.map(|value| value.to_str());
    text.transpose().map_err(|_| Reply::refusal(400, &format!("`{name}` is not readable")))
}

/// A browser says which page asks; pages of this server alone may.
fn check_origin(headers: &HeaderMap) -> Result<(), Reply> {
    let Some(origin) = only(headers, &ORIGIN)? else {
        return Ok(());
    };
    let uri: Option<Uri> = origin.parse().ok();
    let from = uri.as_ref().and_then(|uri| uri.authority());
    let here = only(headers, &HOST)?;
    match (from, here) {
        (Some(from), Some(here)) if from.as_str().eq_ignore_ascii_case(here) => Ok(()),
        _ => {
            let why = format!("pages of `{origin}` may not ask this server");
            Err(Reply::refusal(403, &why))
        }
    }
}

/// Nothing in a path may lead out of where it points, however it is written.
fn check_path(path: &str) -> Result<(), Reply> {
    let refused = |why: &str| Err(Reply::refusal(400, &format!("path `{path}`: {why}")));
    let Some(decoded) = decoded(path) else {
        return refused("expected `%` before two hexadecimal digits, and UTF-8");
    };
    if decoded.chars().any(|c| c.is_control() || c == '\\') {
        return refused("control characters and `\\` are not taken");
    }
    if decoded.matches('/').count() != path.matches('/').count() {
        return refused("`/` is not written as `%2f`");
    }
    if decoded.split('/').any(|part| [".", ".."].contains(&part)) {
        return refused("`.` and `..` are not taken");
    }
    Ok(())
}

fn decoded(path: &str) -> Option<String> {
    let mut bytes = path.bytes();
    let mut decoded = Vec::with_capacity(path.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let (high, low) = (hex(bytes.next()?)?, hex(bytes.next()?)?);
                high << 4 | low
            }
            other => other,
        });
    }
    String::from_utf8(decoded).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// The host without its port.
fn name_of(host: &str) -> Option<&str> {
    let end = match host.starts_with('[') {
        true => host.find(']')? + 1,
        false => host.find(':').unwrap_or(host.len()),
    };
    let (name, port) = host.split_at(end);
    let is_port = match port.strip_prefix(':') {
        Some(port) => port.bytes().all(|byte| byte.is_ascii_digit()),
        None => port.is_empty(),
    };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._[]:".contains(&byte);
    (is_port && !name.is_empty() && name.bytes().all(is_name)).then_some(name)
}

/// A name as names are compared.
fn plain(name: &str) -> String {
    let name = name.strip_suffix('.').unwrap_or(name);
    name.to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_by_hand() {
        let access = Access::new(None, &["scorer".to_owned(), "A.Example".to_owned()], false);
        let access = access.expect("names");
        let status = |host: &str| {
            let request = hyper::Request::builder().header("host", host).body(());
            let head = request.expect("a request").into_parts().0;
            access.check(&head).err().map_or(200, |reply| reply.status)
        };
        for good in [
            "localhost",
            "LOCALHOST:80",
            "a.localhost",
            "127.0.0.1:8000",
            "[::1]:8000",
            "10.0.0.7",
            "scorer:8000",
            "SCORER.",
            "a.example",
        ] {
            assert_eq!(status(good), 200, "{good}");
        }
        for bad in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evillocalhost",
            "scorer.evil.example",
            "b.a.example",
        ] {
            assert_eq!(status(bad), 403, "{bad}");
        }
        for broken in ["", ":80", "a b", "scorer:80:80", "user@scorer", "[::1", "scorer/x"] {
            assert_eq!(status(broken), 400, "{broken}");
        }
        for bad in ["http://a", "a:80", "", "a/b"] {
            assert!(Access::new(None, &[bad.to_owned()], false).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_by_hand() {
        for good in ["/", "/score", "/a%20b", "/a..b", "/%c3%a9", "/..."] {
            assert!(check_path(good).is_ok(), "{good}");
        }
        for bad in [
            "/..",
            "/a/../b",
            "/%2e%2e/b",
            "/.%2E",
            "/./a",
            "/a%2fb",
            "/a%5cb",
            "/a\\b",
            "/%00",
            "/%",
            "/%4",
            "/%zz",
            "/%ff",
            "/a%0d%0ab",
        ] {
            assert!(check_path(bad).is_err(), "{bad}");
        }
    }
}
