//! `pody login`, `logout`, `whoami`, `passwd`.

use std::{fs, os::unix::fs::PermissionsExt};

use serde_json::{Value, json};

use super::{
    fake::{BASIC, Ended, Fake, ended},
    views,
};

fn login(fake: &Fake) -> Ended {
    fake.on("/user/tokens/create", views::token(5, "pody_t"));
    ended(&mut fake.stranger(&["login", "--server", &fake.base, "--user", "alice"]), "secret\n")
}

#[test]
fn login_exchanges_the_password_for_a_token_that_only_the_user_can_read() {
    let fake = Fake::start();
    assert_eq!(login(&fake).ok(), format!("logged in to {} as alice\n", fake.base));
    let seen = fake.seen_one();
    assert_eq!((seen.line.as_str(), seen.authorization.as_str()), ("POST /user/tokens/create", BASIC));

    let file = fake.home.path().join(".config/pody/credentials.json");
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(file.as_path()), mode(file.parent().unwrap())), (0o600, 0o700));
    let stored: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(stored, json!({"server": fake.base, "user": "alice", "token": "pody_t", "token_id": 5}));

    fake.on("/pod/ps", json!([]));
    ended(&mut fake.stranger(&["ps"]), "").ok();
    assert_eq!(fake.seen_one().authorization, "Bearer pody_t");
}

#[test]
fn the_token_goes_to_no_other_server() {
    let (fake, other) = (Fake::start(), Fake::start());
    login(&fake).ok();
    other.on_status("/pod/ps", 401, json!({"detail": "who are you?"}));
    assert_eq!(ended(fake.stranger(&["ps"]).env("PODY_API_BASE", &other.base), "").code, 4);
    assert_eq!(other.seen_one().authorization, "");
}

#[test]
fn logging_in_again_revokes_the_previous_token() {
    let fake = Fake::start();
    login(&fake).ok();
    fake.seen();
    fake.on("/user/tokens/revoke", json!({"message": "revoked"}));
    login(&fake).ok();
    let seen = fake.seen();
    assert_eq!((seen[1].line.as_str(), seen[1].form.as_str()), ("POST /user/tokens/revoke", "id=5"));
}

#[test]
fn a_wrong_password_stores_nothing() {
    let fake = Fake::start();
    fake.on_status("/user/tokens/create", 401, json!({"detail": "invalid username or password"}));
    let refused = ended(&mut fake.stranger(&["login", "--server", &fake.base, "--user", "alice"]), "wrong\n");
    assert_eq!(refused.code, 4);
    assert!(refused.stderr.starts_with("error: invalid username or password\nhint: check the name"), "{refused:?}");
    assert!(!fake.home.path().join(".config/pody/credentials.json").exists());
    assert_eq!(ended(&mut fake.stranger(&["login", "--server", &fake.base]), "x\n").code, 2);
    assert_eq!(ended(&mut fake.stranger(&["login", "--server", "box", "--user", "a"]), "x\n").code, 2);
}

#[test]
fn logout_revokes_and_deletes_the_token() {
    let fake = Fake::start();
    login(&fake).ok();
    fake.seen();
    fake.on("/user/tokens/revoke", json!({"message": "revoked"}));
    assert_eq!(ended(&mut fake.stranger(&["logout"]), "").ok(), format!("logged out of {}\n", fake.base));
    let seen = fake.seen_one();
    assert_eq!((seen.form.as_str(), seen.authorization.as_str()), ("id=5", "Bearer pody_t"));
    assert!(!fake.home.path().join(".config/pody/credentials.json").exists());
    assert_eq!(ended(&mut fake.stranger(&["logout"]), "").ok(), "not logged in\n");
}

#[test]
fn logout_deletes_the_token_also_without_the_server() {
    let fake = Fake::start();
    login(&fake).ok();
    fake.on_status("/user/tokens/revoke", 503, json!({"detail": "the database is locked"}));
    let left = ended(&mut fake.stranger(&["logout"]), "");
    assert!(
        left.code == 0 && left.stderr.contains("still valid at") && left.stderr.contains("`pody token rm`"),
        "{left:?}"
    );
    assert!(!fake.home.path().join(".config/pody/credentials.json").exists());
}

#[test]
fn whoami_shows_the_limits() {
    let fake = Fake::start();
    let quota = json!({"max_pods": 5, "gpus": "all", "memory_limit": 64u64 << 30, "cpu_limit": -1.0});
    fake.on("/user/info", json!({"user": {"name": "alice", "is_admin": 1}, "quota": quota}));
    let shown = fake.run(&["whoami"]).ok();
    let limits =
        "LIMIT         VALUE\nmax_pods      5\ngpus          all\nmemory_limit  64.0G\ncpu_limit     unlimited\n";
    assert_eq!(shown, format!("alice, admin at {}\n\n{limits}", fake.base));
}

#[test]
fn a_new_password_is_sent_in_the_body() {
    let fake = Fake::start();
    fake.on("/user/ch-passwd", json!({"message": "Password updated"}));
    assert_eq!(ended(&mut fake.pody(&["passwd"]), " new one \n").ok(), "Password updated\n");
    let seen = fake.seen_one();
    assert_eq!((seen.line.as_str(), seen.form.as_str()), ("POST /user/ch-passwd", "passwd= new one "));
    let empty = ended(&mut fake.pody(&["passwd"]), "\n");
    assert_eq!((empty.code, empty.stderr.as_str()), (1, "error: the password is empty\n"));
}
