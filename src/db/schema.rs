//! The tables, as ordered steps that are only ever appended to. `PRAGMA user_version` counts the steps done.
//!
//! Times are milliseconds since 1970, texts are parsed on the way out, `NULL` in a quota is "the default".

use rusqlite::{Connection, TransactionBehavior};

use super::DbError;

const STEPS: &[&str] = &[
    r"
CREATE TABLE users (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    name        TEXT NOT NULL UNIQUE,
    -- argon2id in PHC form, over the hex of sha256('<user>:<password>')
    password    TEXT NOT NULL,
    is_admin    INTEGER NOT NULL,
    disabled    INTEGER NOT NULL DEFAULT 0,
    created_at  INTEGER NOT NULL
) STRICT;

-- Tables refer to a user by name instead of by row: with a remote provider the account is elsewhere.
CREATE TABLE tokens (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    user        TEXT NOT NULL,
    name        TEXT NOT NULL,
    sha256      BLOB NOT NULL UNIQUE,
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL
) STRICT;
CREATE INDEX tokens_by_user ON tokens (user);

CREATE TABLE ssh_keys (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    user        TEXT NOT NULL,
    key_type    TEXT NOT NULL,
    -- base64, without type and comment
    body        TEXT NOT NULL,
    comment     TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    UNIQUE (user, body)
) STRICT;

CREATE TABLE quotas (
    user              TEXT PRIMARY KEY,
    max_pods          INTEGER,
    gpu_count         INTEGER,
    gpus              TEXT,
    memory_limit      INTEGER,
    storage_size      INTEGER,
    shm_size          INTEGER,
    tmpfs_size        INTEGER,
    commit_count      INTEGER,
    commit_size_limit INTEGER,
    -- thousandths of a core
    cpu_limit         INTEGER,
    pids_limit        INTEGER,
    total_memory      INTEGER
) STRICT;

CREATE TABLE workloads (
    id          TEXT PRIMARY KEY,
    user        TEXT NOT NULL,
    instance    TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    ended_at    INTEGER
) STRICT;
CREATE UNIQUE INDEX workloads_live ON workloads (user, instance) WHERE ended_at IS NULL;

CREATE TABLE pods (
    id             TEXT PRIMARY KEY,
    workload       TEXT NOT NULL REFERENCES workloads (id),
    user           TEXT NOT NULL,
    instance       TEXT NOT NULL,
    container_name TEXT NOT NULL,
    state          TEXT NOT NULL,
    -- PodSpec as JSON
    spec           TEXT NOT NULL,
    -- created by pody 0.4.1 and adopted
    adopted        INTEGER NOT NULL,
    container_id   TEXT,
    op             TEXT NOT NULL,
    event          INTEGER NOT NULL,
    reason         TEXT,
    created_at     INTEGER NOT NULL,
    updated_at     INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX pods_live ON pods (container_name) WHERE state NOT IN ('deleted', 'failed');
CREATE INDEX pods_by_user ON pods (user);

CREATE TABLE ports (
    host_port      INTEGER PRIMARY KEY,
    container_port INTEGER NOT NULL,
    pod            TEXT NOT NULL REFERENCES pods (id)
) STRICT;
CREATE INDEX ports_by_pod ON ports (pod);

-- Commits in progress: the name is reserved before the engine is called.
CREATE TABLE commits (
    image       TEXT PRIMARY KEY,
    user        TEXT NOT NULL,
    op          TEXT NOT NULL,
    event       INTEGER NOT NULL,
    created_at  INTEGER NOT NULL
) STRICT;

CREATE TABLE events (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    at          INTEGER NOT NULL,
    actor       TEXT NOT NULL,
    source      TEXT NOT NULL,
    action      TEXT NOT NULL,
    object      TEXT NOT NULL,
    -- the user it concerns, who may read it
    user        TEXT,
    outcome     TEXT NOT NULL,
    detail      TEXT
) STRICT;
CREATE INDEX events_by_user ON events (user);
CREATE INDEX events_open ON events (outcome) WHERE outcome = 'pending';

-- Usage imported from an old installation, one row per process as pody 0.4.1 recorded it.
CREATE TABLE legacy_usage (
    user        TEXT NOT NULL,
    started_at  INTEGER NOT NULL,
    seconds     REAL NOT NULL,
    cpu_seconds REAL NOT NULL,
    gpus        INTEGER NOT NULL,
    -- identifies the process, so that importing twice counts once
    source      TEXT NOT NULL UNIQUE
) STRICT;
CREATE INDEX legacy_usage_by_user ON legacy_usage (user);
",
    r"
CREATE TABLE usage_subjects (
    id      INTEGER PRIMARY KEY,
    user    TEXT NOT NULL,
    pod     TEXT NOT NULL,
    -- UUID; '' for CPU and memory
    gpu     TEXT NOT NULL,
    UNIQUE (user, pod, gpu)
) STRICT;

-- Buckets of 10, 60 and 3600 seconds; step 0 holds the sums of what is older than all buckets.
CREATE TABLE usage (
    step                    INTEGER NOT NULL,
    -- start of the bucket, Unix seconds
    at                      INTEGER NOT NULL,
    subject                 INTEGER NOT NULL REFERENCES usage_subjects (id),
    cpu_seconds             REAL NOT NULL,
    memory_byte_seconds     REAL NOT NULL,
    gpu_active_seconds      REAL NOT NULL,
    gpu_held_seconds        REAL NOT NULL,
    gpu_memory_byte_seconds REAL NOT NULL,
    gpu_joules              REAL NOT NULL,
    PRIMARY KEY (step, at, subject)
) STRICT, WITHOUT ROWID;

CREATE TABLE gpu_usage (
    step                INTEGER NOT NULL,
    at                  INTEGER NOT NULL,
    gpu                 TEXT NOT NULL,
    known_seconds       REAL NOT NULL,
    free_seconds        REAL NOT NULL,
    busy_seconds        REAL NOT NULL,
    memory_byte_seconds REAL NOT NULL,
    joules              REAL NOT NULL,
    PRIMARY KEY (step, at, gpu)
) STRICT, WITHOUT ROWID;

-- The position up to which usage is counted; moved in the transaction that adds the usage.
CREATE TABLE cpu_cursors (
    container   TEXT PRIMARY KEY,
    run         TEXT NOT NULL,
    cpu_seconds REAL NOT NULL,
    at          INTEGER NOT NULL
) STRICT;
CREATE TABLE gpu_seats (
    seat    TEXT PRIMARY KEY,
    user    TEXT NOT NULL,
    pod     TEXT NOT NULL,
    counted INTEGER NOT NULL,
    active  INTEGER NOT NULL
) STRICT;
CREATE TABLE gpu_snapshots (
    id INTEGER PRIMARY KEY,
    at INTEGER NOT NULL
) STRICT;
",
    r"
-- Checkpoints of pods. A row is removed with its directory; it is `deleting` until the directory is gone.
CREATE TABLE checkpoints (
    id             TEXT PRIMARY KEY,
    user           TEXT NOT NULL,
    pod            TEXT NOT NULL,
    instance       TEXT NOT NULL,
    container_name TEXT NOT NULL,
    kind           TEXT NOT NULL,
    compression    TEXT NOT NULL,
    name           TEXT,
    reason         TEXT,
    status         TEXT NOT NULL,
    -- bytes; the expected size while it is being made
    size           INTEGER NOT NULL,
    -- id of the image, which is protected from pruning
    image          TEXT NOT NULL,
    created_at     INTEGER NOT NULL
) STRICT;
CREATE INDEX checkpoints_by_user ON checkpoints (user);

-- The journal of checkpoints and restores: each phase is recorded before it begins.
CREATE TABLE actions (
    id             TEXT PRIMARY KEY,
    type           TEXT NOT NULL,
    user           TEXT NOT NULL,
    pod            TEXT NOT NULL,
    container_name TEXT NOT NULL,
    checkpoint     TEXT NOT NULL,
    status         TEXT NOT NULL,
    phase          TEXT NOT NULL,
    -- what a later start needs to roll it back, as JSON
    journal        TEXT NOT NULL,
    bytes          INTEGER NOT NULL,
    frozen_ms      INTEGER,
    losses         TEXT NOT NULL,
    error          TEXT,
    event          INTEGER NOT NULL,
    started_at     INTEGER NOT NULL,
    ended_at       INTEGER
) STRICT;
CREATE INDEX actions_by_user ON actions (user);
CREATE INDEX actions_running ON actions (status) WHERE status = 'running';

ALTER TABLE quotas ADD COLUMN checkpoint_count INTEGER;
ALTER TABLE quotas ADD COLUMN checkpoint_size INTEGER;
",
    r"
-- The permanent ID of this host for other systems: a random UUID, created with this table.
CREATE TABLE host (
    id TEXT NOT NULL
) STRICT;
INSERT INTO host (id)
SELECT lower(substr(h, 1, 8) || '-' || substr(h, 9, 4) || '-4' || substr(h, 14, 3) || '-8' || substr(h, 18, 3) || '-' || substr(h, 21, 12))
FROM (SELECT hex(randomblob(16)) AS h);

-- What agents report about other clusters, per user.
CREATE TABLE clusters (
    id          TEXT PRIMARY KEY,
    user        TEXT NOT NULL,
    name        TEXT NOT NULL,
    -- JSON
    metadata    TEXT,
    created_at  INTEGER NOT NULL,
    synced_at   INTEGER,
    UNIQUE (user, name)
) STRICT;
CREATE TABLE resources (
    cluster     TEXT NOT NULL REFERENCES clusters (id) ON DELETE CASCADE,
    -- pod, node or job
    kind        TEXT NOT NULL,
    namespace   TEXT NOT NULL,
    name        TEXT NOT NULL,
    id          TEXT NOT NULL,
    -- the resource as the agent sent it, JSON
    body        TEXT NOT NULL,
    synced_at   INTEGER NOT NULL,
    PRIMARY KEY (cluster, kind, namespace, name)
) STRICT, WITHOUT ROWID;

-- What agents report about checkpoints: their own, or, under the id of one of ours, more about that one.
CREATE TABLE told_checkpoints (
    id            TEXT PRIMARY KEY,
    user          TEXT NOT NULL,
    own           INTEGER NOT NULL,
    status        TEXT NOT NULL,
    gpu           TEXT,
    platform      TEXT,
    -- JSON
    info          TEXT,
    restore_path  TEXT,
    deprecated_at INTEGER
) STRICT;
CREATE INDEX told_checkpoints_by_user ON told_checkpoints (user);
CREATE TABLE told_actions (
    id            TEXT PRIMARY KEY,
    user          TEXT NOT NULL,
    reason        TEXT,
    -- JSON
    upload        TEXT,
    info          TEXT
) STRICT;
CREATE INDEX told_actions_by_user ON told_actions (user);
",
    r"
-- What requested a checkpoint: a person (`hand`), a schedule, or a drain.
ALTER TABLE checkpoints ADD COLUMN origin TEXT NOT NULL DEFAULT 'hand';

-- Pods with scheduled checkpoints.
CREATE TABLE schedules (
    pod             TEXT PRIMARY KEY,
    user            TEXT NOT NULL,
    -- seconds
    every           INTEGER NOT NULL,
    keep            INTEGER NOT NULL,
    next_at         INTEGER NOT NULL,
    last_at         INTEGER,
    last_checkpoint TEXT,
    last_error      TEXT,
    -- the action in progress, and as JSON the checkpoints to delete once its own is complete
    action          TEXT,
    replaces        TEXT NOT NULL
) STRICT;

-- One row while pods are stopped for maintenance, are being restored, or some could not be restored.
CREATE TABLE drain (
    id        INTEGER PRIMARY KEY CHECK (id = 1),
    state     TEXT NOT NULL,
    actor     TEXT NOT NULL,
    source    TEXT NOT NULL,
    reason    TEXT NOT NULL,
    forced    INTEGER NOT NULL,
    -- for a shutdown of the host: the next start restores the pods
    shutdown  INTEGER NOT NULL,
    boot      TEXT NOT NULL,
    begun_at  INTEGER NOT NULL
) STRICT;
CREATE TABLE drained_pods (
    pod            TEXT PRIMARY KEY,
    user           TEXT NOT NULL,
    instance       TEXT NOT NULL,
    container_name TEXT NOT NULL,
    state          TEXT NOT NULL,
    -- of the checkpoint or restore under way, or the last
    action         TEXT,
    checkpoint     TEXT,
    reason         TEXT
) STRICT;
",
    r"
-- Copies of checkpoints in the remote store. A row outlives its checkpoint until the copy is deleted.
CREATE TABLE copies (
    checkpoint TEXT PRIMARY KEY,
    user       TEXT NOT NULL,
    -- the URL of the store in which it was begun
    store      TEXT NOT NULL,
    -- queued, copying, copied, failed or deleting
    status     TEXT NOT NULL,
    -- failures so far, and why the last one
    attempts   INTEGER NOT NULL,
    error      TEXT,
    -- time of the next attempt
    due_at     INTEGER NOT NULL
) STRICT;
CREATE INDEX copies_by_status ON copies (status);
",
];

/// Migrates the tables to the newest version; rejects a database from a newer pody.
pub fn migrate(connection: &mut Connection) -> Result<(), DbError> {
    let known = i32::try_from(STEPS.len()).expect("a handful of steps");
    let version = |c: &Connection| c.pragma_query_value(None, "user_version", |row| row.get::<_, i32>(0));
    let found = version(connection)?;
    if found > known {
        return Err(DbError::Newer { found, known });
    }
    if found == known {
        return Ok(());
    }
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Read again under the lock: another process may have migrated meanwhile.
    let done = usize::try_from(version(&tx)?).unwrap_or(0);
    for step in &STEPS[done..] {
        tx.execute_batch(step)?;
    }
    tx.pragma_update(None, "user_version", known)?;
    tx.commit()?;
    Ok(())
}
