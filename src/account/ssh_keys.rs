//! SSH public keys: stored per user, written into `/root/.ssh/authorized_keys` of each of their pods between two marker
//! lines, so that keys added by hand stay.

use super::{AccountError, Accounts};
use crate::{
    db::NewEvent,
    model::{
        names::UserName,
        time::Millis,
        user::{Actor, PublicKey, SshKey},
    },
};

/// Most keys of a user.
const MAX_KEYS: usize = 50;

impl Accounts {
    pub async fn list_ssh_keys(&self, user: &UserName) -> Result<Vec<SshKey>, AccountError> {
        let user = user.clone();
        self.db.read(move |tx| Ok(tx.list_ssh_keys(&user)?)).await
    }

    pub async fn add_ssh_key(&self, actor: Actor, user: UserName, key: PublicKey) -> Result<SshKey, AccountError> {
        self.db
            .write(move |tx| {
                if tx.list_ssh_keys(&user)?.len() >= MAX_KEYS {
                    return Err(AccountError::TooMany(MAX_KEYS));
                }
                let stored = tx.upsert_ssh_key(&user, &key, Millis::now())?;
                tx.insert_event(&NewEvent::by(&actor).did("ssh-key.add", key.fingerprint()).of(&user))?;
                Ok(stored)
            })
            .await
    }

    pub async fn delete_ssh_key(&self, actor: Actor, user: UserName, id: i64) -> Result<(), AccountError> {
        self.db
            .write(move |tx| match tx.delete_ssh_key(&user, id)? {
                true => {
                    tx.insert_event(&NewEvent::by(&actor).did("ssh-key.delete", id).of(&user))?;
                    Ok(())
                }
                false => Err(AccountError::NoKey(id)),
            })
            .await
    }
}

const BEGIN: &str = "# >>> keys kept by pody: change them with `pody key`";

const END: &str = "# <<< keys kept by pody";

/// An `authorized_keys` file with our part replaced by `keys` and everything else as it was.
pub fn merge_authorized_keys(current: &str, keys: &[SshKey]) -> String {
    let mut ours = false;
    let mut lines: Vec<String> = Vec::new();
    for line in current.lines() {
        match line {
            BEGIN => ours = true,
            END => ours = false,
            line if !ours => lines.push(line.to_owned()),
            _ => {}
        }
    }
    if !keys.is_empty() {
        lines.push(BEGIN.to_owned());
        lines.extend(keys.iter().map(|row| row.key.to_string()));
        lines.push(END.to_owned());
    }
    lines.into_iter().map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJVbTpAcPB7dqXnNF0WYDoHZ8Sx7sZHSOhyVIn8P4tg alice@box";

    #[test]
    fn keys_of_others_stay() {
        let row = SshKey { id: 1, key: KEY.parse().unwrap(), created_at: Millis(0) };
        let by_hand = "ssh-rsa AAAA by-hand\n";
        let with = merge_authorized_keys(by_hand, std::slice::from_ref(&row));
        assert!(with.starts_with(by_hand) && with.contains(KEY));
        assert_eq!(merge_authorized_keys(&with, &[row]), with);
        assert_eq!(merge_authorized_keys(&with, &[]), by_hand);
    }
}
