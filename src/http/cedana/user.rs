//! `/v2/user`

use super::V2Error;
use crate::{
    account::AccountError,
    http::{endpoint::Cx, params::NoParams},
};

/// Whose token it is, as a UUID.
pub async fn find(cx: Cx, _: NoParams) -> Result<String, V2Error> {
    let name = &cx.caller().user;
    let user = cx.app.accounts.find_user(name).await.map_err(AccountError::Remote)?;
    let user = user.ok_or_else(|| AccountError::NoUser(name.clone()))?;
    Ok(cx.app.clusters.user_id(&user).to_string())
}
