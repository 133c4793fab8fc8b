//! `/pod/shell`: a terminal over a WebSocket.
//!
//! Binary frames are the terminal's bytes, both ways. A text frame to the server is `{"resize": {"rows": 24, "cols": 80}}`;
//! the server's last text frame is `{"exit_code": 0}`.

use axum::{
    extract::{
        FromRequestParts,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    response::Response,
};
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;

use super::ApiError;
use crate::{
    engine::Terminal,
    http::router::{Cx, refuse_other_sites},
    ids::ContainerId,
    names::PodRef,
    params,
    pod::Pods,
};

params! { Shell { ins: PodRef; rows: u16, cols: u16, cmd: String } }

pub async fn shell(cx: Cx, params: Shell) -> Result<Response, ApiError> {
    let (mut parts, _) = cx.request.into_parts();
    refuse_other_sites(&parts.headers, &parts.uri)?;
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await;
    let upgrade =
        upgrade.map_err(|_| ApiError::BadRequest("this route is a WebSocket; use `pody shell`".to_owned()))?;
    let pods = cx.app.pods.clone();
    let caller = cx.caller.ok_or(ApiError::NotAuthenticated)?;
    let (container, terminal) = pods.open_shell(&caller, &params.ins, params.cmd).await?;
    let size = (params.rows.unwrap_or(24), params.cols.unwrap_or(80));
    let _ = pods.resize_shell(&terminal.exec_id, size.0, size.1).await;
    Ok(upgrade.on_upgrade(move |socket| relay(pods, container, terminal, socket)))
}

/// What a client may say in a text frame.
#[derive(Deserialize)]
struct Control {
    resize: Option<Size>,
}

#[derive(Deserialize)]
struct Size {
    rows: u16,
    cols: u16,
}

/// Carries bytes until the command or its user ends. A command whose user left is ended too.
async fn relay(pods: Pods, container: ContainerId, mut terminal: Terminal, mut socket: WebSocket) {
    loop {
        tokio::select! {
            output = terminal.output.next() => match output {
                Some(Ok(bytes)) => {
                    if socket.send(Message::Binary(bytes)).await.is_err() {
                        break;
                    }
                }
                Some(Err(_)) | None => {
                    let code = pods.shell_exit_code(&terminal.exec_id).await;
                    let last = serde_json::json!({ "exit_code": code }).to_string();
                    let _ = socket.send(Message::Text(last.into())).await;
                    let _ = socket.send(Message::Close(None)).await;
                    return;
                }
            },
            input = socket.recv() => match input {
                Some(Ok(Message::Binary(bytes))) => {
                    if terminal.input.write_all(&bytes).await.is_err() || terminal.input.flush().await.is_err() {
                        break;
                    }
                }
                Some(Ok(Message::Text(text))) => {
                    if let Ok(Control { resize: Some(Size { rows, cols }) }) = serde_json::from_str(&text) {
                        let _ = pods.resize_shell(&terminal.exec_id, rows, cols).await;
                    }
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_)) | Err(_)) | None => break,
            },
        }
    }
    pods.end_shell(&terminal.exec_id, &container).await;
}
