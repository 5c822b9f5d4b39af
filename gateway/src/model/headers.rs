//! Which headers pass, on the way to the model and back. Pure.
//!
//! Both sides are hostile here: what comes from a container may forge, what comes from a model may steer whoever reads it.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

/// The header that has a list of what a request wants beyond the API's version.
const BETA: HeaderName = HeaderName::from_static("anthropic-beta");

/// Credentials by their usual names, and what only fits the body as it came.
const CREDENTIALS: [HeaderName; 6] = [
    header::AUTHORIZATION,
    header::COOKIE,
    HeaderName::from_static("cookie2"),
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
    HeaderName::from_static("x-goog-api-key"),
];

/// What tells a server that the request is another than it is: from somebody else, or of another method or path, past the fixed table.
const FORGERIES: [HeaderName; 11] = [
    header::FORWARDED,
    header::VIA,
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("x-client-ip"),
    HeaderName::from_static("x-cluster-client-ip"),
    HeaderName::from_static("true-client-ip"),
    HeaderName::from_static("x-original-url"),
    HeaderName::from_static("x-rewrite-url"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-method-override"),
];
const FORWARDED_PREFIX: &str = "x-forwarded-";

/// What would make whoever reads an answer keep something, or go elsewhere.
const STEERING: [HeaderName; 6] = [
    header::SET_COOKIE,
    HeaderName::from_static("set-cookie2"),
    header::LOCATION,
    header::REFRESH,
    HeaderName::from_static("alt-svc"),
    header::WWW_AUTHENTICATE,
];

/// The headers of a request that go to the model, with those that bot.toml adds: in place of the agent's own, but for the list of betas,
/// to which theirs are added.
pub fn upward(own: &HeaderMap, added: &HeaderMap) -> HeaderMap {
    let mut passed = passed_on(own);
    for name in &FORGERIES {
        passed.remove(name);
    }
    let forwarded: Vec<_> = passed.keys().filter(|name| name.as_str().starts_with(FORWARDED_PREFIX)).cloned().collect();
    for name in forwarded {
        passed.remove(name);
    }
    for (name, value) in added {
        let value = if name == BETA { with_betas(&passed, value) } else { value.clone() };
        passed.insert(name, value);
    }
    // What is compressed cannot be read on its way through.
    passed.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    passed
}

/// The headers of an answer that go to the project.
pub fn downward(own: &HeaderMap) -> HeaderMap {
    let mut passed = passed_on(own);
    for name in &STEERING {
        passed.remove(name);
    }
    passed
}

/// Neither those of one connection, nor credentials, nor what only fits the body as it came.
fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let mut passed = headers.clone();
    link::headers::strip_hop_by_hop(&mut passed);
    for name in CREDENTIALS.iter().chain(&[header::CONTENT_LENGTH, header::EXPECT]) {
        passed.remove(name);
    }
    passed
}

/// The request's betas, and those of `added` that it does not name itself.
fn with_betas(own: &HeaderMap, added: &HeaderValue) -> HeaderValue {
    let own: Vec<&[u8]> = own.get_all(BETA).iter().flat_map(betas).collect();
    let missing = betas(added).filter(|beta| !own.contains(beta));
    let all: Vec<&[u8]> = own.iter().copied().chain(missing).collect();
    // Of parts that headers had, and commas, a header can be made.
    HeaderValue::from_bytes(&all.join(&b","[..])).unwrap_or_else(|_| added.clone())
}

fn betas(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|beta| !beta.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    fn text(headers: &HeaderMap) -> Vec<String> {
        let mut lines: Vec<_> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().expect("it is text"))).collect();
        lines.sort();
        lines
    }

    #[test]
    fn what_forges_does_not_get_to_the_model() {
        for name in CREDENTIALS.iter().chain(&FORGERIES).map(HeaderName::as_str).chain([
            "content-length",
            "expect",
            "host",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
            "keep-alive",
            "proxy-authorization",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-anything",
        ]) {
            let mut own = map(&[("anthropic-version", "2023-06-01"), ("connection", "x-hop"), ("x-hop", "1")]);
            let name = HeaderName::from_bytes(name.as_bytes()).expect("it is a name");
            own.append(&name, HeaderValue::from_static("forged"));
            own.append(&name, HeaderValue::from_static("forged again"));
            let passed = text(&upward(&own, &HeaderMap::new()));
            assert_eq!(passed, ["accept-encoding: identity", "anthropic-version: 2023-06-01"], "{name}");
        }
    }

    #[test]
    fn what_steers_does_not_get_to_the_project() {
        for name in STEERING.iter().chain(&CREDENTIALS).chain(&[header::TRANSFER_ENCODING, header::CONTENT_LENGTH]) {
            let mut own = map(&[("request-id", "7"), ("connection", "x-hop, close"), ("x-hop", "1")]);
            own.append(name, HeaderValue::from_static("x"));
            assert_eq!(text(&downward(&own)), ["request-id: 7"], "{name}");
        }
    }

    #[test]
    fn the_settings_headers_stand_in_place_of_the_agents() {
        let own = map(&[("x-team", "forged"), ("x-team", "twice"), ("accept-encoding", "br"), ("x-app", "cli")]);
        let passed = text(&upward(&own, &map(&[("x-team", "tools")])));
        assert_eq!(passed, ["accept-encoding: identity", "x-app: cli", "x-team: tools"]);
    }

    #[test]
    fn betas_are_added_to_those_that_the_agent_names() {
        for (own, added, wanted) in [
            (&["a,b", " c "][..], "x", "a,b,c,x"),
            (&[], "x, y", "x,y"),
            (&["a, x ,b"], "x", "a,x,b"),
            (&[","], "x", "x"),
        ] {
            let mut headers = HeaderMap::new();
            for value in own {
                headers.append(BETA, HeaderValue::from_static(value));
            }
            let passed = upward(&headers, &map(&[("anthropic-beta", added)]));
            assert_eq!(passed.get_all(BETA).iter().collect::<Vec<_>>(), [wanted]);
        }
    }
}
