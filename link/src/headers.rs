//! Which headers belong to one connection and not to the request (RFC 9110, 7.6.1): every intermediary takes them out, this one
//! and the gateway by the same rule. It knows no policy beyond that: credentials are the caller's business.

use http::{HeaderMap, HeaderName, header};

/// Those that belong to one connection whether or not `Connection` names them, and `Host`, which the next hop sets.
const HOP_BY_HOP: [HeaderName; 10] = [
    header::CONNECTION,
    header::HOST,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Takes out of `headers` what belongs to one connection only, what `Connection` names as such, and `Host`.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        // A byte that is not ASCII in one name must not hide the others.
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    /// The names that are left of `headers`, sorted.
    fn left(headers: &[(&str, &[u8])]) -> Vec<String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            map.append(name, HeaderValue::from_bytes(value).expect("a value"));
        }
        strip_hop_by_hop(&mut map);
        let mut names: Vec<String> = map.keys().map(ToString::to_string).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn what_belongs_to_the_connection_goes_and_the_rest_stays() {
        let headers: [(&str, &[u8]); 8] = [
            ("connection", b"close, X-Mine"),
            ("connection", b" \xff,\tx-other ,"),
            ("x-mine", b"1"),
            ("x-other", b"1"),
            ("keep-alive", b"5"),
            ("host", b"127.0.0.1:2223"),
            ("anthropic-version", b"2023-06-01"),
            ("anthropic-beta", b"a"),
        ];
        assert_eq!(left(&headers), ["anthropic-beta", "anthropic-version"]);
    }

    #[test]
    fn each_of_the_standards_goes_without_being_named() {
        for name in HOP_BY_HOP {
            assert_eq!(left(&[(name.as_str(), b"x"), ("content-type", b"text/plain")]), ["content-type"], "{name}");
        }
    }

    proptest! {
        #[test]
        fn whatever_connection_names_is_gone(names in proptest::collection::vec("[a-zA-Z-]{1,12}", 0..6), ows in "[ \t]{0,2}") {
            let connection = names.join(&format!("{ows},{ows}"));
            let mut headers: Vec<(&str, &[u8])> = vec![("connection", connection.as_bytes())];
            headers.extend(names.iter().map(|name| (name.as_str(), &b"1"[..])));
            prop_assert_eq!(left(&headers), Vec::<String>::new());
        }
    }
}
