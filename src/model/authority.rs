//! What a caller's right to act rests on, and whether it still holds.
//!
//! A request may last: its body comes slowly, a stream lasts for hours. What was true when the caller was identified
//! is therefore looked at again, in the transaction of a change and for as long as a stream is open.

use super::{
    names::UserName,
    time::Millis,
    user::{Token, TokenHash, User},
};

/// The account and the credential of a caller, as they were when the caller was identified.
#[derive(Clone)]
pub struct Authority {
    pub user: UserName,
    pub is_admin: bool,
    /// `None` if another node keeps the accounts.
    pub account: Option<AccountStamp>,
    /// `None` if the caller came with a password.
    pub token: Option<TokenHash>,
}

/// Tells an account from a later one of the same name, and from itself after a change of its password.
#[derive(Clone, PartialEq, Eq)]
pub struct AccountStamp {
    id: i64,
    password: String,
}

impl From<&User> for AccountStamp {
    fn from(user: &User) -> Self {
        Self { id: user.id, password: user.password.clone() }
    }
}

/// Why a caller may not act any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Lapse {
    #[error("this account was deleted in the meantime")]
    AccountGone,
    #[error("this account was disabled in the meantime")]
    #[strum(serialize = "account_disabled")]
    Disabled,
    #[error("the password of this account was changed in the meantime; nothing was done, sign in with the new one")]
    PasswordChanged,
    #[error("this token was revoked or has expired in the meantime; nothing was done")]
    #[strum(serialize = "invalid_token")]
    TokenEnded,
    #[error("this account has ceased to be an admin in the meantime; nothing was done")]
    Demoted,
}

impl Authority {
    /// Compares with the account and the token as they are now. A password counts only for who came with one: tokens
    /// are ended by themselves.
    pub fn check(&self, account: Option<&User>, token: Option<&Token>, now: Millis) -> Result<(), Lapse> {
        if let Some(stamp) = &self.account {
            let account = account.filter(|account| account.id == stamp.id).ok_or(Lapse::AccountGone)?;
            if account.disabled {
                return Err(Lapse::Disabled);
            }
            if self.token.is_none() && account.password != stamp.password {
                return Err(Lapse::PasswordChanged);
            }
            if self.is_admin && !account.is_admin {
                return Err(Lapse::Demoted);
            }
        }
        match self.token {
            Some(_) if token.is_none_or(|token| token.user != self.user || token.expires_at <= now) => {
                Err(Lapse::TokenEnded)
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> User {
        User {
            id: 7,
            name: "alice".parse().unwrap(),
            password: "old".to_owned(),
            is_admin: true,
            disabled: false,
            created_at: Millis::now(),
        }
    }

    fn token() -> Token {
        let now = Millis::now();
        Token {
            id: 1,
            user: "alice".parse().unwrap(),
            name: String::new(),
            hash: TokenHash::of("x"),
            created_at: now,
            expires_at: now + 1000,
        }
    }

    fn authority(token: Option<TokenHash>) -> Authority {
        let account = account();
        Authority { user: account.name.clone(), is_admin: true, account: Some((&account).into()), token }
    }

    #[test]
    fn each_change_of_the_account_is_noticed() {
        let (of_password, of_token) = (authority(None), authority(Some(token().hash)));
        let now = token().created_at;
        let both = |account: Option<&User>| {
            [of_password.check(account, None, now), of_token.check(account, Some(&token()), now)]
        };
        assert_eq!(both(Some(&account())), [Ok(()); 2]);
        assert_eq!(both(None), [Err(Lapse::AccountGone); 2]);
        assert_eq!(both(Some(&User { id: 8, ..account() })), [Err(Lapse::AccountGone); 2]);
        assert_eq!(both(Some(&User { disabled: true, ..account() })), [Err(Lapse::Disabled); 2]);
        assert_eq!(both(Some(&User { is_admin: false, ..account() })), [Err(Lapse::Demoted); 2]);
        let renewed = User { password: "new".to_owned(), ..account() };
        assert_eq!(both(Some(&renewed)), [Err(Lapse::PasswordChanged), Ok(())]);
    }

    #[test]
    fn a_token_holds_until_it_is_revoked_or_expires() {
        let authority = authority(Some(token().hash));
        let check = |token: Option<&Token>, now| authority.check(Some(&account()), token, now);
        let token = token();
        assert_eq!(check(Some(&token), token.created_at), Ok(()));
        assert_eq!(check(Some(&token), token.expires_at), Err(Lapse::TokenEnded));
        assert_eq!(check(None, token.created_at), Err(Lapse::TokenEnded));
    }

    #[test]
    fn the_tokens_of_another_nodes_account_are_this_nodes() {
        let authority = Authority { account: None, ..authority(Some(token().hash)) };
        assert_eq!(authority.check(None, Some(&token()), token().created_at), Ok(()));
        assert_eq!(authority.check(None, None, token().created_at), Err(Lapse::TokenEnded));
    }
}
