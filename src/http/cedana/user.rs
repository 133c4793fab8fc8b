//! `/v2/user`

use super::V2Error;
use crate::{
    account::AccountError,
    http::{endpoint::Ctx, params::NoParams},
};

/// The token's owner, as a UUID.
pub async fn find(ctx: Ctx, _: NoParams) -> Result<String, V2Error> {
    let name = &ctx.caller().user;
    let user = ctx.app.accounts.find_user(name).await.map_err(AccountError::Remote)?;
    let user = user.ok_or_else(|| AccountError::NoUser(name.clone()))?;
    Ok(ctx.app.clusters.user_id(&user).to_string())
}
