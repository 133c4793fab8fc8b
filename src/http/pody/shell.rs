//! `/pod/shell`: a terminal over a WebSocket.
//!
//! Binary frames are the terminal's bytes, both ways. A text frame to the server is `{"resize": {"rows": 24, "cols":
//! 80}}`; the server's last text frame is `{"exit_code": 0}`, or `{"detached": {"session": ID}}` if the command
//! continues detached in the pod, for example before a checkpoint, and can be reattached by that id.

use axum::{
    extract::{
        FromRequestParts,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code},
    },
    response::Response,
};
use serde::Deserialize;
use serde_json::json;

use super::ApiError;
use crate::{
    http::{endpoint::Ctx, identity::refuse_other_sites},
    model::{authority::Lapse, ids::SessionId, names::PodRef},
    params,
    pod::{self, NewShell, ShellEvent},
};

/// How long sending the reason of the end may take.
const GOODBYE: std::time::Duration = std::time::Duration::from_millis(500);

/// Largest message of a client, bytes: what it types or pastes at once. A message is held in memory until its end.
const MAX_MESSAGE: usize = 64 << 10;

params! { Shell { ins: PodRef; rows: u16, cols: u16, cmd: String, session: SessionId } }

pub async fn shell(ctx: Ctx, params: Shell) -> Result<Response, ApiError> {
    let (mut parts, _) = ctx.request.into_parts();
    refuse_other_sites(&parts.headers, &parts.uri)?;
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await;
    let upgrade =
        upgrade.map_err(|_| ApiError::BadRequest("this route is a WebSocket; use `pody shell`".to_owned()))?;
    let (caller, authority) = ctx.caller.zip(ctx.authority).ok_or(ApiError::NotAuthenticated)?;
    let new = NewShell {
        command: params.cmd,
        session: params.session,
        rows: params.rows.unwrap_or(24),
        columns: params.cols.unwrap_or(80),
    };
    let shell = ctx.app.pods.open_shell(&caller, &params.ins, new).await?;
    let lapse = ctx.app.accounts.lapse(authority);
    let upgrade = upgrade.max_message_size(MAX_MESSAGE).max_frame_size(MAX_MESSAGE);
    Ok(upgrade.on_upgrade(move |socket| relay(shell, socket, lapse)))
}

/// The content of a client's text frame.
#[derive(Deserialize)]
struct Control {
    resize: Option<Size>,
}

#[derive(Deserialize)]
struct Size {
    rows: u16,
    cols: u16,
}

/// Relays bytes until the command or the client ends, or the client may not act any more. A command whose client has
/// left is ended too.
async fn relay(mut shell: pod::Shell, mut socket: WebSocket, lapse: impl Future<Output = Lapse>) {
    let mut lapse = std::pin::pin!(lapse);
    loop {
        tokio::select! {
            lapse = &mut lapse => {
                let reason = CloseFrame { code: close_code::POLICY, reason: lapse.to_string().into() };
                // A client that reads nothing must not keep its terminal.
                let _ = tokio::time::timeout(GOODBYE, socket.send(Message::Close(Some(reason)))).await;
                break;
            }
            event = shell.next() => match event {
                ShellEvent::Output(bytes) => {
                    if socket.send(Message::Binary(bytes)).await.is_err() {
                        break;
                    }
                }
                ShellEvent::Ended(code) => return say_last(socket, json!({ "exit_code": code })).await,
                ShellEvent::Detached(session) => {
                    return say_last(socket, json!({ "detached": { "session": session } })).await;
                }
            },
            input = socket.recv() => match input {
                Some(Ok(Message::Binary(bytes))) => {
                    if shell.type_in(&bytes).await.is_err() {
                        break;
                    }
                }
                Some(Ok(Message::Text(text))) => {
                    if let Ok(Control { resize: Some(Size { rows, cols }) }) = serde_json::from_str(&text) {
                        shell.resize(rows, cols).await;
                    }
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_)) | Err(_)) | None => break,
            },
        }
    }
    shell.end().await;
}

async fn say_last(mut socket: WebSocket, word: serde_json::Value) {
    let _ = socket.send(Message::Text(word.to_string().into())).await;
    let _ = socket.send(Message::Close(None)).await;
}
