//! The HTTP client of rewards and judge, with retries. Servers are not trusted: size and time of responses are bounded, and
//! redirects, which could leak the key, are not followed.

use std::net::IpAddr;
use std::time::Duration;

use ureq::http::{HeaderMap, Uri};
use ureq::{Agent, Proxy};

use super::PluginOptions;
use super::patience::Patience;
use super::protocol::{self, Refusal};
use crate::error::RewardError;

/// Longest head of an answer, bytes.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// Where an environment names a proxy, in the order of the library.
const PROXIES: [&str; 6] =
    ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"];

/// Posts JSON, and retries transient failures.
pub(super) struct Client {
    agent: Agent,
    url: String,
    authorization: Option<String>,
    patience: Patience,
    timeout: Duration,
    max_answer_bytes: u64,
}

/// Why one request failed.
struct Failure {
    reason: String,
    /// Whether and when to retry.
    retry: Option<Duration>,
    /// The body of an answer that refuses.
    body: Option<String>,
}

impl Failure {
    fn lasting(reason: String) -> Self {
        Self { reason, retry: None, body: None }
    }
}

/// The host of an address, its port included.
///
/// # Errors
/// Where there is none, and where a name or a password stands before it.
pub(super) fn host(url: &str) -> Result<(String, Uri), &'static str> {
    let parsed: Uri = url.parse().map_err(|_| "not an address")?;
    let authority = parsed.authority().ok_or("no host")?;
    if authority.as_str().contains('@') {
        return Err("passwords in an address are not sent");
    }
    if authority.host().is_empty() {
        return Err("no host");
    }
    Ok((authority.as_str().to_owned(), parsed))
}

/// An address for a message: without the password before the host, and without the query, which may hold one.
pub(super) fn shown(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let end = rest.find(['?', '#']).unwrap_or(rest.len());
    let rest = &rest[..end];
    // Whatever a broken address is, it is not shown up to its last `@`.
    let rest = rest.rsplit('@').next().unwrap_or(rest);
    match scheme {
        "" => rest.to_owned(),
        scheme => format!("{scheme}://{rest}"),
    }
}

impl Client {
    /// `reward` asks; `key` is sent as a bearer token; no message shows it.
    ///
    /// # Errors
    /// Where an option is out of range.
    pub(super) fn new(
        reward: &str,
        url: String,
        key: Option<&str>,
        max_answer_bytes: u64,
        options: &PluginOptions,
    ) -> Result<Self, RewardError> {
        let timeout = options.timeout()?;
        let config = Agent::config_builder()
            // For the whole of a request, from the host's address to the last byte of the answer.
            .timeout_global(Some(timeout))
            // The text of a refusal is worth showing.
            .http_status_as_error(false)
            // No redirects: completions and key go to this server alone.
            .max_redirects(0)
            .max_response_header_size(MAX_HEAD_BYTES)
            .proxy(proxy(reward, &url))
            .build();
        Ok(Self {
            agent: config.into(),
            url,
            authorization: key.map(|key| format!("Bearer {key}")),
            patience: Patience::new(reward, options)?,
            timeout,
            max_answer_bytes,
        })
    }

    /// What `read` makes of the body of the answer; else what went wrong last. From the first answer that `read`
    /// takes, failures that may pass are waited for longer.
    pub(super) fn post<T>(
        &self,
        body: &str,
        read: impl Fn(&str) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let mut tries = self.patience.tries();
        loop {
            let failure = match self.post_once(body) {
                Ok(answer) => {
                    let read = read(&answer)?;
                    self.patience.note_answer();
                    return Ok(read);
                }
                Err(failure) => failure,
            };
            if let Some(refusal) = failure.body.as_deref().and_then(protocol::refusal) {
                return Err(refusal);
            }
            let Some(asked) = failure.retry else {
                return Err(Refusal::whole(failure.reason));
            };
            if let Err(given_up) = tries.wait(asked, &failure.reason) {
                return Err(Refusal::whole(format!("{}, {given_up}", failure.reason)));
            }
        }
    }

    fn post_once(&self, body: &str) -> Result<String, Failure> {
        let mut request = self.agent.post(&self.url).header("content-type", "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        let mut response = request.send(body).map_err(|error| self.failure(&error))?;
        let status = response.status();
        if status.is_redirection() {
            let to = redirected(response.headers());
            return Err(Failure::lasting(format!(
                "status {status}{to}: redirects are not followed, name the address itself"
            )));
        }
        let asked = response
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map_or(Duration::ZERO, Duration::from_secs);
        let encoding = encoding(response.headers());
        let body = response.body_mut().with_config();
        let bytes = body.limit(self.max_answer_bytes).read_to_vec();
        let bytes = bytes.map_err(|error| self.failure(&error))?;
        if let Some(encoding) = encoding {
            return Err(Failure::lasting(format!(
                "the answer has the content-encoding `{encoding}`, for which it was not asked"
            )));
        }
        if status.is_success() {
            return String::from_utf8(bytes)
                .map_err(|_| Failure::lasting("the answer is not UTF-8".to_owned()));
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let busy = status.is_server_error() || [408, 429].contains(&status.as_u16());
        Err(Failure {
            reason: format!("status {status}: `{}`", protocol::shortened(text.trim())),
            retry: busy.then_some(asked),
            body: Some(text),
        })
    }

    fn failure(&self, error: &ureq::Error) -> Failure {
        use ureq::Error::{
            BodyExceedsLimit, ConnectProxyFailed, ConnectionFailed, HostNotFound, Io,
            LargeResponseHeader, Protocol, Timeout,
        };
        let passing = Some(Duration::ZERO);
        let (reason, retry) = match error {
            Timeout(_) => {
                let secs = self.timeout.as_secs_f64();
                let reason = format!("no whole answer in {secs} s (--reward_timeout_secs)");
                (reason, passing)
            }
            HostNotFound => ("the host is not found".to_owned(), passing),
            ConnectionFailed => ("no connection".to_owned(), passing),
            Io(cause) => (format!("the connection failed: {cause}"), passing),
            Protocol(cause) => (format!("the answer is not HTTP: {cause}"), passing),
            BodyExceedsLimit(limit) => (format!("an answer of over {limit} bytes"), None),
            LargeResponseHeader(_, limit) => {
                let reason = format!("the head of the answer is over {limit} bytes");
                (reason, None)
            }
            ConnectProxyFailed(cause) => (format!("the proxy refuses: {cause}"), None),
            other => (other.to_string(), None),
        };
        Failure { reason, retry, body: None }
    }
}

/// `` to `ADDRESS` ``, as a redirect says.
fn redirected(headers: &HeaderMap) -> String {
    let to = headers.get("location");
    to.map_or_else(String::new, |to| {
        let to = String::from_utf8_lossy(to.as_bytes());
        format!(" to `{}`", protocol::shortened(&shown(&to)))
    })
}

/// How the body is packed, where it is.
fn encoding(headers: &HeaderMap) -> Option<String> {
    let encoding = headers.get("content-encoding")?;
    let encoding = String::from_utf8_lossy(encoding.as_bytes()).into_owned();
    (!encoding.eq_ignore_ascii_case("identity")).then(|| protocol::shortened(&encoding))
}

/// The proxy of the environment, which is said; to this machine none is needed.
fn proxy(reward: &str, url: &str) -> Option<Proxy> {
    let uri: Uri = url.parse().ok()?;
    let host = uri.host()?.trim_matches(['[', ']']);
    let is_local = host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|host| host.is_loopback());
    if is_local {
        return None;
    }
    let Some(proxy) = Proxy::try_from_env() else {
        let is_set = |name: &&&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        if let Some(name) = PROXIES.iter().find(is_set) {
            base::say!(
                "warning: reward `{reward}`: {name} holds no address of a proxy; none is used"
            );
        }
        return None;
    };
    if proxy.is_no_proxy(&uri) {
        return None;
    }
    base::say!(
        "note: reward `{reward}`: asked by the proxy `{}:{}` of the environment; NO_PROXY names hosts that are not",
        proxy.host(),
        proxy.port()
    );
    Some(proxy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_without_what_is_secret() {
        for (url, expected) in [
            ("http://host:1/a?key=secret", "http://host:1/a"),
            ("https://user:secret@host/a#b", "https://host/a"),
            ("http://u:se@cret@host", "http://host"),
            ("http://u:secret/more@host/a", "http://host/a"),
            ("u:secret@host", "host"),
            ("/path?token=secret", "/path"),
            ("http://?secret", "http://"),
        ] {
            assert_eq!(shown(url), expected, "{url}");
        }
    }
}
