//! Signed URLs: a keyed BLAKE3 hash over user, path, method and expiry.
//!
//! The key is 32 random bytes in `$PODY_HOME/files.secret` (0600). Removing the file invalidates all links, and the
//! next start creates a new key. The account's id is signed, too, so a link does not outlive its account.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use super::{FilePath, Owner};
use crate::model::names::UserName;

/// The method that a link permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Get,
    Put,
}

impl Verb {
    fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
        }
    }
}

/// The parts of a signed URL.
#[derive(Clone, Debug)]
pub struct Link {
    pub user: UserName,
    pub path: FilePath,
    /// Unix seconds.
    pub expires: i64,
    /// Hexadecimal.
    pub signature: String,
}

pub struct Signer([u8; 32]);

impl Signer {
    /// Reads the key, or creates one.
    pub fn open(path: &Path) -> io::Result<Self> {
        match Self::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            read => return read,
        }
        // Written completely before it gets its name, so nobody reads a truncated key.
        let temporary = path.with_extension(format!("secret-{:016x}", rand::random::<u64>()));
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(&rand::random::<[u8; 32]>())?;
        file.sync_all()?;
        // If another request has created a key meanwhile, that one counts.
        let linked = fs::hard_link(&temporary, path);
        fs::remove_file(&temporary)?;
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Self::read(path),
        }
    }

    fn read(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        let mut key = [0; 32];
        file.read_exact(&mut key)?;
        Ok(Self(key))
    }

    pub fn sign(&self, owner: &Owner, verb: Verb, path: FilePath, expires: i64) -> Link {
        let signature = self.hash(owner, verb, &path, expires).to_hex().to_string();
        Link { user: owner.user.clone(), path, expires, signature }
    }

    pub fn is_ours(&self, owner: &Owner, verb: Verb, link: &Link) -> bool {
        // Two hashes are compared in constant time.
        let signature = blake3::Hash::from_hex(&link.signature);
        signature.is_ok_and(|signature| signature == self.hash(owner, verb, &link.path, link.expires))
    }

    fn hash(&self, owner: &Owner, verb: Verb, path: &FilePath, expires: i64) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        let words = [
            "pody file link 1",
            verb.as_str(),
            owner.user.as_str(),
            &owner.account.to_string(),
            path.as_str(),
            &expires.to_string(),
        ];
        for word in words {
            // With its length, so that different lists of words never give the same bytes.
            hasher.update(&(word.len() as u64).to_le_bytes()).update(word.as_bytes());
        }
        hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(user: &str, account: i64) -> Owner {
        Owner { user: user.parse().unwrap(), account }
    }

    #[test]
    fn a_link_is_for_one_thing() {
        let signer = Signer([7; 32]);
        let alice = owner("alice", 1);
        let link = signer.sign(&alice, Verb::Get, "a/b".parse().unwrap(), 1000);
        assert!(signer.is_ours(&alice, Verb::Get, &link));
        assert!(!signer.is_ours(&alice, Verb::Put, &link));
        assert!(!signer.is_ours(&owner("alice", 2), Verb::Get, &link));
        assert!(!signer.is_ours(&owner("bob", 1), Verb::Get, &link));
        assert!(!Signer([8; 32]).is_ours(&alice, Verb::Get, &link));
        let altered = [
            Link { path: "a/c".parse().unwrap(), ..link.clone() },
            Link { expires: 1001, ..link.clone() },
            Link { signature: String::new(), ..link.clone() },
            Link { signature: link.signature.replace(&link.signature[..1], "x"), ..link.clone() },
            Link { signature: link.signature[..62].to_owned(), ..link.clone() },
        ];
        for link in altered {
            assert!(!signer.is_ours(&alice, Verb::Get, &link), "{link:?}");
        }
    }

    #[test]
    fn the_key_stays_and_is_ours_alone() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("files.secret");
        let first = Signer::open(&path).unwrap().0;
        assert_eq!(Signer::open(&path).unwrap().0, first);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
        // A truncated file: no links at all rather than links signed with half a key.
        fs::write(&path, [1; 5]).unwrap();
        assert!(Signer::open(&path).is_err());
    }
}
