//! Bearer tokens: 32 random bytes after the prefix `pody_`, stored as SHA-256, with an expiry, revocable.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use super::{AccountError, Accounts};
use crate::{
    db::NewEvent,
    model::{
        names::UserName,
        quantities::Span,
        time::Millis,
        user::{Actor, TokenHash},
        view::account::{NewToken, TokenInfo},
    },
};

/// Most tokens of a user.
const MAX_TOKENS: usize = 100;

/// Lifetime of a token: the default and the maximum.
const DEFAULT_LIFETIME: Span = Span(90.0 * 86_400.0);

const MAX_LIFETIME: Span = Span(3.0 * 365.0 * 86_400.0);

impl Accounts {
    /// Oldest first.
    pub fn list_tokens(&self, user: &UserName) -> Vec<TokenInfo> {
        let snapshot = self.db.snapshot();
        let mut tokens: Vec<_> = snapshot.accounts.tokens.values().filter(|token| &token.user == user).collect();
        tokens.sort_by_key(|token| token.id);
        tokens.into_iter().map(|token| info(token.id, &token.name, token.created_at, token.expires_at)).collect()
    }

    pub async fn create_token(
        &self,
        actor: Actor,
        user: UserName,
        name: String,
        lifetime: Option<Span>,
    ) -> Result<NewToken, AccountError> {
        let lifetime = lifetime.unwrap_or(DEFAULT_LIFETIME).0.min(MAX_LIFETIME.0);
        let token = format!("pody_{}", BASE64_URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()));
        let name: String = name.chars().filter(|c| !c.is_control()).take(100).collect();
        let (created_at, hash) = (Millis::now(), TokenHash::of(&token));
        let expires_at = created_at + (lifetime * 1000.0) as i64;
        if self.list_tokens(&user).len() >= MAX_TOKENS {
            return Err(AccountError::TooMany(MAX_TOKENS));
        }
        let shown = name.clone();
        let id = self
            .db
            .write(move |tx| {
                tx.delete_expired_tokens(created_at)?;
                let id = tx.insert_token(&user, &name, hash, created_at, expires_at)?;
                tx.insert_event(&NewEvent::by(&actor).did("token.create", id).of(&user).detail(name))?;
                Ok::<_, AccountError>(id)
            })
            .await?;
        Ok(NewToken { info: info(id, &shown, created_at, expires_at), token })
    }

    pub async fn revoke_token(&self, actor: Actor, user: UserName, id: i64) -> Result<(), AccountError> {
        self.db
            .write(move |tx| match tx.delete_token(&user, id)? {
                true => {
                    tx.insert_event(&NewEvent::by(&actor).did("token.revoke", id).of(&user))?;
                    Ok(())
                }
                false => Err(AccountError::NoToken(id)),
            })
            .await
    }
}

fn info(id: i64, name: &str, created_at: Millis, expires_at: Millis) -> TokenInfo {
    TokenInfo { id, name: name.to_owned(), created_at: created_at.to_string(), expires_at: expires_at.to_string() }
}
