//! `/v2/files/…`: signed URLs to read and write files, and `/v2/transfer/…`: what those URLs lead to.

use std::{
    io::{Seek, SeekFrom},
    time::Duration,
};

use axum::{
    body::{Body, BodyDataStream},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;

use super::{
    EmptyAsNone, V2Error,
    conditions::{self, Wanted, wanted},
};
use crate::{
    app::App,
    files::{Begin, FileError, FilePath, Link, Opened, Owner, Upload, Verb},
    http::{endpoint::Ctx, json::Json, params::RawBody},
    model::{
        names::{UserName, clipped},
        user::{Actor, Caller},
    },
    params,
};

/// Bytes of one chunk of a download.
const PIECE: usize = 64 << 10;

/// How much of an unwanted body is read, so that the client receives the error, bytes and time.
const DRAIN: usize = 1 << 20;

const DRAIN_TIME: Duration = Duration::from_secs(2);

/// Characters that stay unescaped in a part of a path.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

// Admins may name another user.
params! { One { path: FilePath; user: EmptyAsNone<UserName> } }

/// The user whose files are meant.
async fn owner(app: &App, caller: &Caller, user: Option<EmptyAsNone<UserName>>) -> Result<Owner, FileError> {
    app.files.owner(caller, user.and_then(|user| user.0)).await
}

pub async fn sign_read(ctx: Ctx, params: One) -> Result<String, V2Error> {
    let owner = owner(&ctx.app, ctx.caller(), params.user).await?;
    if let Some(remote) = ctx.app.files.remote()? {
        return Ok(remote.sign(&owner, Verb::Get, &params.path).await?);
    }
    // A URL to a missing file would only fail later.
    ctx.app.files.open(owner.clone(), params.path.clone()).await?;
    let link = ctx.app.files.sign(&owner, Verb::Get, params.path)?;
    url(&ctx, &link)
}

pub async fn sign_write(ctx: Ctx, params: One) -> Result<String, V2Error> {
    let owner = owner(&ctx.app, ctx.caller(), params.user).await?;
    if let Some(remote) = ctx.app.files.remote()? {
        return Ok(remote.sign(&owner, Verb::Put, &params.path).await?);
    }
    let link = ctx.app.files.sign(&owner, Verb::Put, params.path)?;
    url(&ctx, &link)
}

pub async fn delete(ctx: Ctx, params: One) -> Result<String, V2Error> {
    let owner = owner(&ctx.app, ctx.caller(), params.user).await?;
    let path = params.path.to_string();
    ctx.app.files.delete(Actor::from(ctx.caller()), owner, params.path).await?;
    Ok(path)
}

params! { Directory { path: String; user: EmptyAsNone<UserName> } }

/// A directory is named with or without a slash at its end, as listings show it.
pub async fn list(ctx: Ctx, params: Directory) -> Result<Json<Vec<String>>, V2Error> {
    let path = params.path.strip_suffix('/').unwrap_or(&params.path);
    // `dir/%2F` and `dir/.`, as clients write the top directory.
    if matches!(path, "" | ".") {
        return list_in(ctx, None, params.user).await;
    }
    let path = path.parse().map_err(|error| V2Error::BadRequest(format!("path: {error}")))?;
    list_in(ctx, Some(path), params.user).await
}

params! { Root { ; user: EmptyAsNone<UserName> } }

pub async fn list_all(ctx: Ctx, params: Root) -> Result<Json<Vec<String>>, V2Error> {
    list_in(ctx, None, params.user).await
}

async fn list_in(
    ctx: Ctx,
    path: Option<FilePath>,
    user: Option<EmptyAsNone<UserName>>,
) -> Result<Json<Vec<String>>, V2Error> {
    let owner = owner(&ctx.app, ctx.caller(), user).await?;
    Ok(Json(ctx.app.files.list(owner, path).await?))
}

/// The URL of a link, at the address by which the client has reached this server.
fn url(ctx: &Ctx, link: &Link) -> Result<String, V2Error> {
    let config = ctx.app.config.get();
    let base = match config.files.public_url.trim_end_matches('/') {
        "" => {
            let scheme = if config.tls_cert.is_some() { "https" } else { "http" };
            format!("{scheme}://{}", host(ctx.request.headers(), ctx.request.uri())?)
        }
        url => url.to_owned(),
    };
    let path: Vec<String> =
        link.path.as_str().split('/').map(|part| utf8_percent_encode(part, PLAIN).to_string()).collect();
    let (user, expires, signature) = (&link.user, link.expires, &link.signature);
    Ok(format!("{base}/v2/transfer/{user}/{}?expires={expires}&signature={signature}", path.join("/")))
}

fn host(headers: &HeaderMap, uri: &Uri) -> Result<String, V2Error> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = uri.authority().map(|authority| authority.as_str()).or(host).unwrap_or_default();
    let is_good = |c: char| c.is_ascii_alphanumeric() || ".-_:[]".contains(c);
    if host.is_empty() || !host.chars().all(is_good) {
        return Err(V2Error::BadRequest("the Host header has no address to build a URL from".to_owned()));
    }
    Ok(host.to_owned())
}

// A missing part of a signature makes it invalid.
params! { Transfer { user: UserName, path: FilePath; expires: i64, signature: String } }

impl From<Transfer> for Link {
    fn from(params: Transfer) -> Self {
        Self {
            user: params.user,
            path: params.path,
            expires: params.expires.unwrap_or_default(),
            signature: params.signature.unwrap_or_default(),
        }
    }
}

pub async fn read(ctx: Ctx, params: Transfer) -> Result<Response, V2Error> {
    let link = Link::from(params);
    let owner = ctx.app.files.admit(Verb::Get, &link).await?;
    let path = link.path.to_string();
    let Opened { mut file, size, tag } = ctx.app.files.open(owner, link.path).await?;
    let (status, part) = match wanted(ctx.request.headers(), size, &tag) {
        Wanted::All => (StatusCode::OK, None),
        Wanted::Part(part) => (StatusCode::PARTIAL_CONTENT, Some(part)),
        Wanted::Nothing => {
            let mut response = V2Error::Range { size }.into_response();
            insert(response.headers_mut(), header::CONTENT_RANGE, &format!("bytes */{size}"));
            return Ok(response);
        }
        Wanted::Known => {
            let mut response = StatusCode::NOT_MODIFIED.into_response();
            insert(response.headers_mut(), header::ETAG, &tag);
            return Ok(response);
        }
        Wanted::Another => return Err(FileError::Precondition(path).into()),
    };
    let (begin, length) = part.as_ref().map_or((0, size), |part| (*part.start(), part.end() - part.start() + 1));
    file.seek(SeekFrom::Start(begin)).map_err(FileError::Io)?;
    let stream = ReaderStream::with_capacity(tokio::fs::File::from_std(file).take(length), PIECE);
    let mut response = (status, Body::from_stream(stream)).into_response();
    let headers = response.headers_mut();
    // A member's bytes are never rendered as a page of this server.
    let fixed = [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::CONTENT_DISPOSITION, "attachment"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "private, no-store"),
        (header::ACCEPT_RANGES, "bytes"),
    ];
    headers.extend(fixed.map(|(name, value)| (name, HeaderValue::from_static(value))));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    insert(headers, header::ETAG, &tag);
    if let Some(part) = part {
        insert(headers, header::CONTENT_RANGE, &format!("bytes {}-{}/{size}", part.start(), part.end()));
    }
    Ok(response)
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    headers.extend(HeaderValue::from_str(value).ok().map(|value| (name, value)));
}

/// `Content-Range: bytes FIRST-LAST/TOTAL` is a part, `bytes */TOTAL` asks how much has arrived, no header is the
/// whole.
pub async fn write(ctx: Ctx, (params, RawBody): (Transfer, RawBody)) -> Result<Response, V2Error> {
    let link = Link::from(params);
    let expects = ctx.request.headers().contains_key(header::EXPECT);
    let idle = Duration::from_secs(ctx.app.config.get().server.body_timeout_seconds.max(1));
    let actor = Actor { name: link.user.to_string(), source: ctx.peer.ip().to_string() };
    let (parts, body) = ctx.request.into_parts();
    let mut body = body.into_data_stream();
    let begun = async {
        let owner = ctx.app.files.admit(Verb::Put, &link).await?;
        Ok::<_, V2Error>(match announced(&parts.headers)? {
            None => Err(ctx.app.files.received(owner, link.path).await?),
            Some(begin) => Ok(ctx.app.files.begin(actor, owner, link.path, begin).await?),
        })
    };
    match begun.await {
        Ok(Ok(upload)) => receive(upload, body, idle).await,
        Ok(Err(have)) => Ok(received(have, false)),
        Err(error) => {
            // A client waiting for `100 Continue` gets the refusal instead.
            if !expects {
                let _ = tokio::time::timeout(DRAIN_TIME, drain(&mut body)).await;
            }
            Err(error)
        }
    }
}

/// What the headers say of the body; `None` = the request only asks how much has arrived.
fn announced(headers: &HeaderMap) -> Result<Option<Begin>, V2Error> {
    let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or_default());
    let length = text(header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
    let only_if = conditions::of_upload(headers);
    let Some(range) = text(header::CONTENT_RANGE) else {
        return Ok(Some(Begin { offset: None, total: length, length, only_if }));
    };
    let shown = clipped(range);
    let bad = || V2Error::BadRequest(format!("Content-Range: {shown:?} is invalid; write bytes FIRST-LAST/TOTAL"));
    let (part, total) = range.strip_prefix("bytes ").and_then(|range| range.split_once('/')).ok_or_else(bad)?;
    let total = if total == "*" { None } else { Some(total.parse::<u64>().map_err(|_| bad())?) };
    if part == "*" {
        return Ok(None);
    }
    let (first, last) = part.split_once('-').ok_or_else(bad)?;
    let (first, last) = (first.parse::<u64>().map_err(|_| bad())?, last.parse::<u64>().map_err(|_| bad())?);
    let said = last.checked_sub(first).and_then(|length| length.checked_add(1)).ok_or_else(bad)?;
    if length.is_some_and(|length| length != said) || total.is_some_and(|total| last >= total) {
        return Err(bad());
    }
    Ok(Some(Begin { offset: Some(first), total, length: Some(said), only_if }))
}

async fn receive(mut upload: Upload, mut body: BodyDataStream, idle: Duration) -> Result<Response, V2Error> {
    loop {
        let found = upload.have();
        match tokio::time::timeout(idle, body.next()).await {
            Err(_) => return Err(FileError::Slow { found }.into()),
            Ok(None) => break,
            Ok(Some(Ok(bytes))) => upload.write(bytes).await?,
            // The client is gone, and nobody could read a response.
            Ok(Some(Err(_))) => return Err(FileError::Cut { said: found, found }.into()),
        }
    }
    let have = upload.have();
    let complete = upload.finish().await?;
    Ok(received(have, complete))
}

fn received(have: u64, complete: bool) -> Response {
    let status = if complete { StatusCode::OK } else { StatusCode::ACCEPTED };
    let mut response = (status, Json(json!({"received": have, "complete": complete}))).into_response();
    if let Some(last) = have.checked_sub(1).filter(|_| !complete) {
        insert(response.headers_mut(), header::RANGE, &format!("bytes=0-{last}"));
    }
    response
}

async fn drain(body: &mut BodyDataStream) {
    let mut read = 0;
    while let Some(Ok(bytes)) = body.next().await {
        read += bytes.len();
        if read > DRAIN {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn ranges_of_an_upload() {
        let of = |range| announced(&headers(&[(header::CONTENT_RANGE, range)]));
        let begin = of("bytes 5-9/20").unwrap().unwrap();
        assert_eq!((begin.offset, begin.total, begin.length), (Some(5), Some(20), Some(5)));
        assert_eq!(of("bytes 0-9/*").unwrap().unwrap().total, None);
        assert!(of("bytes */20").unwrap().is_none());
        for bad in
            ["bytes 5-4/20", "bytes 5-20/20", "5-9/20", "bytes 5-9", "bytes a-b/c", "bytes 0-18446744073709551615/*"]
        {
            assert!(of(bad).is_err(), "{bad}");
        }
        let lie = headers(&[(header::CONTENT_RANGE, "bytes 0-9/10"), (header::CONTENT_LENGTH, "5")]);
        assert!(announced(&lie).is_err());
    }

    #[test]
    fn a_url_is_built_only_from_a_plain_host() {
        let of = |value| host(&headers(&[(header::HOST, value)]), &Uri::from_static("/x"));
        assert_eq!(of("box:8799").unwrap(), "box:8799");
        assert_eq!(of("[::1]:8799").unwrap(), "[::1]:8799");
        for bad in ["", "evil/x", "a b", "user@host", "a?b", "a#b"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
