//! On whose behalf a task writes.
//!
//! [`on_behalf`] gives a request's work the authority of its caller. The first [`super::Db::write`] in it looks at the
//! authority again, in its own transaction, so no handler can forget to, and nothing is changed for a caller whose
//! account, password, token or rights have ended since. What that transaction has begun is then finished: a pod whose
//! row is there gets its container, or is removed.
//!
//! Tasks that the work spawns, and the daemon's own, act for the daemon.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::{DbError, Tx};
use crate::model::{authority::Authority, time::Millis};

tokio::task_local! {
    static ACTING: Arc<Acting>;
}

/// The authority of the task at work.
pub struct Acting {
    authority: Authority,
    /// Whether a change was committed under it.
    has_begun: AtomicBool,
}

/// Runs `work` with the authority of a caller.
pub async fn on_behalf<F: Future>(authority: Authority, work: F) -> F::Output {
    ACTING.scope(Arc::new(Acting { authority, has_begun: AtomicBool::new(false) }), work).await
}

impl Acting {
    /// `None` in the daemon's own tasks.
    pub fn current() -> Option<Arc<Self>> {
        ACTING.try_with(Arc::clone).ok()
    }

    pub fn check(&self, tx: &Tx) -> Result<(), DbError> {
        match self.has_begun.load(Ordering::Relaxed) {
            true => Ok(()),
            false => tx.check_authority(&self.authority),
        }
    }

    pub fn begun(&self) {
        self.has_begun.store(true, Ordering::Relaxed);
    }
}

impl Tx<'_> {
    fn check_authority(&self, authority: &Authority) -> Result<(), DbError> {
        let account = match authority.account {
            Some(_) => self.find_user(&authority.user)?,
            None => None,
        };
        let token = match authority.token {
            Some(hash) => self.find_token(hash)?,
            None => None,
        };
        Ok(authority.check(account.as_ref(), token.as_ref(), Millis::now())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        db::Db,
        model::{authority::Lapse, user::User},
    };

    fn add(db: &Db, name: &'static str) -> User {
        db.write_blocking(|tx| {
            let name = name.parse().expect("a name");
            tx.insert_user(&name, "hash", false)?;
            Ok::<_, DbError>(tx.find_user(&name)?.expect("just added"))
        })
        .unwrap()
    }

    async fn change(db: &Db, name: &'static str) -> Result<bool, DbError> {
        db.write(move |tx| tx.insert_user(&name.parse().expect("a name"), "hash", false)).await
    }

    #[tokio::test]
    async fn nothing_is_changed_for_a_caller_whose_account_is_gone() {
        let home = tempfile::tempdir().unwrap();
        let db = Db::open(home.path()).unwrap();
        let alice = add(&db, "alice");
        let authority =
            Authority { user: alice.name.clone(), is_admin: false, account: Some((&alice).into()), token: None };
        let lapsed = on_behalf(authority.clone(), async {
            db.write_blocking(|tx| tx.delete_user(&alice.name)).unwrap();
            change(&db, "bob").await
        });
        assert!(matches!(lapsed.await, Err(DbError::Lapsed(Lapse::AccountGone))));
        assert!(db.snapshot().accounts.users.is_empty());
        // The daemon's own tasks change what they like.
        assert!(change(&db, "bob").await.unwrap());
    }

    #[tokio::test]
    async fn what_has_begun_is_finished() {
        let home = tempfile::tempdir().unwrap();
        let db = Db::open(home.path()).unwrap();
        let alice = add(&db, "alice");
        let authority =
            Authority { user: alice.name.clone(), is_admin: false, account: Some((&alice).into()), token: None };
        on_behalf(authority, async {
            assert!(change(&db, "bob").await.unwrap());
            db.write_blocking(|tx| tx.delete_user(&alice.name)).unwrap();
            assert!(change(&db, "carol").await.unwrap());
        })
        .await;
    }
}
