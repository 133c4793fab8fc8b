//! What the drop-in commands share: errors in the words and the manner of pody 0.4.1.

use serde_json::{Value, json};

use super::{client::ClientError, error::CliError, exit};

/// Ends a drop-in command: `Error - …` on standard error and exit code 1 for every error.
pub fn end(result: Result<u8, CliError>) -> Result<u8, CliError> {
    let error = match result {
        Err(error) if error.exit_code() != exit::OK => error,
        other => return other,
    };
    eprintln!("Error - {}", error.message());
    if let Some(hint) = error.hint() {
        eprintln!("hint: {hint}");
    }
    Ok(exit::FAILED)
}

/// An error in the shape of `--raw`: `error_code` is the HTTP status, or -1 without one.
pub fn error_json(error: &CliError, params: &Value) -> Value {
    match error {
        CliError::Client(ClientError::Refused(refusal)) => json!({
            "error_code": refusal.status.as_u16(),
            "message": refusal.detail,
            "context": {"METHOD": refusal.method.as_str(), "URL": refusal.url, "PARAMS": params},
        }),
        error => json!({"error_code": -1, "message": error.message(), "context": null}),
    }
}
