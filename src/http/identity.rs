//! Who calls: HTTP Basic or a bearer token, the same for all routes; and requests that another web site made a browser
//! send.

use std::net::SocketAddr;

use axum::http::{HeaderMap, HeaderName, Uri, header};
use base64::{Engine, prelude::BASE64_STANDARD};
use subtle::ConstantTimeEq;

use super::{
    endpoint::Access,
    error::{ApiError, ServiceRefusal},
};
use crate::{account::SignedIn, app::App};

/// The caller of a route with this access. `None` for routes that need none.
pub async fn identify(
    app: &App,
    access: Access,
    headers: &HeaderMap,
    peer: SocketAddr,
) -> Result<Option<SignedIn>, ApiError> {
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    match access {
        // A signed URL is checked by its handler, which knows what it is for.
        Access::Open | Access::SignedUrl => return Ok(None),
        Access::Node => return admit_node(app, authorization).map(|()| None),
        Access::Member | Access::Admin => {}
    }
    let (scheme, secret) = authorization.and_then(|value| value.split_once(' ')).ok_or(ApiError::NotAuthenticated)?;
    let signed_in = if scheme.eq_ignore_ascii_case("bearer") {
        app.accounts.authenticate_token(secret.trim(), peer.ip()).await?
    } else if scheme.eq_ignore_ascii_case("basic") {
        let decoded = BASE64_STANDARD.decode(secret.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let decoded = decoded.ok_or(ApiError::NotAuthenticated)?;
        let (name, password) = decoded.split_once(':').ok_or(ApiError::NotAuthenticated)?;
        app.accounts.authenticate_password(name, password, peer.ip()).await?
    } else {
        return Err(ApiError::NotAuthenticated);
    };
    match access {
        Access::Admin if !signed_in.caller.is_admin => Err(ApiError::AdminsOnly),
        _ => Ok(Some(signed_in)),
    }
}

/// A browser that remembers a Basic password sends it with anything that another site makes it post here.
pub fn refuse_other_sites(headers: &HeaderMap, uri: &Uri) -> Result<(), ApiError> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if text(HeaderName::from_static("sec-fetch-site")).is_some_and(|site| !matches!(site, "same-origin" | "none")) {
        return Err(ApiError::OtherSite);
    }
    let host = text(header::HOST).or_else(|| uri.authority().map(axum::http::uri::Authority::as_str));
    match (text(header::ORIGIN), host) {
        (Some(origin), Some(host)) if origin.split_once("://").map(|(_, rest)| rest) != Some(host) => {
            Err(ApiError::OtherSite)
        }
        _ => Ok(()),
    }
}

/// A change by GET, as pody 0.4.1 knows one: a link or a redirect of another site makes a browser send it, over plain
/// HTTP without a word of where it comes from. So it is refused with any mark of a browser; no script sends one.
pub fn refuse_browsers(headers: &HeaderMap) -> Result<(), ApiError> {
    let is_mark = |name: &HeaderName| {
        name.as_str().starts_with("sec-fetch-")
            || [header::ORIGIN, header::REFERER, header::UPGRADE_INSECURE_REQUESTS].contains(name)
    };
    let wants_page = headers.get_all(header::ACCEPT).iter().any(|value| {
        let value = value.as_bytes().to_ascii_lowercase();
        value.windows(9).any(|part| part == b"text/html")
    });
    if wants_page || headers.keys().any(is_mark) { Err(ApiError::OtherSite) } else { Ok(()) }
}

/// Admits another node by its access token. The order of the refusals is that of pody 0.4.1.
pub fn admit_node(app: &App, authorization: Option<&str>) -> Result<(), ApiError> {
    let config = app.config.get();
    let service = &config.remote_user_profile.service;
    if !service.enabled {
        return Err(ServiceRefusal::Disabled.into());
    }
    let token = authorization.and_then(|value| value.strip_prefix("Bearer "));
    let token = token.ok_or(ServiceRefusal::NoAccessToken)?;
    match bool::from(token.as_bytes().ct_eq(service.access_token.as_bytes())) {
        true => Ok(()),
        false => Err(ServiceRefusal::BadAccessToken.into()),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_browser_is_known_by_any_of_its_marks() {
        let refused = |name: &'static str, value: &'static str| {
            let pair = (HeaderName::from_static(name), HeaderValue::from_static(value));
            refuse_browsers(&std::iter::once(pair).collect()).is_err()
        };
        // python-requests and curl.
        assert!(!refused("accept", "*/*"));
        assert!(!refused("user-agent", "curl/8.14"));
        for (name, value) in [
            ("accept", "application/xml, TEXT/HTML;q=0.9"),
            ("referer", "http://evil.example/"),
            ("origin", "null"),
            ("sec-fetch-mode", "navigate"),
            ("sec-fetch-site", "same-origin"),
            ("upgrade-insecure-requests", "1"),
        ] {
            assert!(refused(name, value), "{name}: {value}");
        }
    }

    #[test]
    fn another_sites_post_is_refused() {
        let refused = |pairs: &[(&'static str, &'static str)]| {
            let headers =
                pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            refuse_other_sites(&headers.collect(), &Uri::from_static("/pod/delete")).is_err()
        };
        assert!(!refused(&[("host", "box:8799")]));
        assert!(!refused(&[("host", "box:8799"), ("origin", "http://box:8799"), ("sec-fetch-site", "same-origin")]));
        assert!(refused(&[("host", "box:8799"), ("origin", "http://evil.example")]));
        assert!(refused(&[("host", "box:8799"), ("origin", "null")]));
        assert!(refused(&[("host", "box:8799"), ("sec-fetch-site", "cross-site")]));
    }
}
