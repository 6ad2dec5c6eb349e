//! `kill -9` at every write: what migrations, backups, restores, retention and erasing leave behind is old or
//! new, and whoever opens it next goes on.
//!
//! A process of its own does the deed, with a library in front of the system's that counts whatever
//! changes a file in its folder and kills it at the nth. Between two of those nothing on disk differs,
//! so all of them are every moment at which a kill can be told from another. At every second one, what it
//! was about to write is written by half.

#![allow(
    clippy::disallowed_methods,
    reason = "a test tells the process that it starts what to do, and measures as a user does"
)]

use std::env;
use std::future::Future;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, SqliteConnection, raw_sql};
use tempfile::TempDir;

use super::upkeep::{DAY, NOW, fill};
use super::*;
use crate::store::{EraseOf, PruneUntil, Verified};

const DEED: &str = "SWITCHYARD_TEST_DEED";
const ROOT: &str = "SWITCHYARD_TEST_DEED_IN";

const LIBRARY: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static long count;

static int inside(const char *path) {
    const char *folder = getenv("KILL_FOLDER");
    return folder && strncmp(path, folder, strlen(folder)) == 0;
}

static int ours(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return inside(path);
}

static int due(void) {
    const char *at = getenv("KILL_AT");
    long now = __sync_add_and_fetch(&count, 1);
    return at && now == atol(at);
}

static void end(void) {
    for (;;) { kill(getpid(), SIGKILL); pause(); }
}

static size_t half(size_t size) { return getenv("KILL_TORN") ? size / 2 : 0; }

__attribute__((destructor)) static void tell(void) {
    const char *path = getenv("KILL_COUNT");
    FILE *file = path ? fopen(path, "w") : 0;
    if (file) { fprintf(file, "%ld", count); fclose(file); }
}

ssize_t write(int fd, const void *bytes, size_t size) {
    if (ours(fd) && due()) { syscall(SYS_write, fd, bytes, half(size)); end(); }
    return syscall(SYS_write, fd, bytes, size);
}
ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t at) {
    if (ours(fd) && due()) { syscall(SYS_pwrite64, fd, bytes, half(size), at); end(); }
    return syscall(SYS_pwrite64, fd, bytes, size, at);
}
ssize_t pwrite(int fd, const void *bytes, size_t size, off_t at) { return pwrite64(fd, bytes, size, at); }
int ftruncate64(int fd, off64_t size) {
    if (ours(fd) && due()) end();
    return syscall(SYS_ftruncate, fd, size);
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }
int fsync(int fd) {
    if (ours(fd) && due()) end();
    return syscall(SYS_fsync, fd);
}
int fdatasync(int fd) {
    if (ours(fd) && due()) end();
    return syscall(SYS_fdatasync, fd);
}
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
    if (ours(out) && due()) { syscall(SYS_copy_file_range, in, from, out, to, half(size), flags); end(); }
    return syscall(SYS_copy_file_range, in, from, out, to, size, flags);
}
ssize_t sendfile64(int out, int in, off64_t *at, size_t size) {
    if (ours(out) && due()) { syscall(SYS_sendfile, out, in, at, half(size)); end(); }
    return syscall(SYS_sendfile, out, in, at, size);
}
ssize_t sendfile(int out, int in, off_t *at, size_t size) { return sendfile64(out, in, at, size); }
int rename(const char *from, const char *to) {
    if (inside(to) && due()) end();
    return syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}
int unlink(const char *path) {
    if (inside(path) && due()) end();
    return syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}
int unlinkat(int fd, const char *path, int flags) {
    if (getenv("KILL_FOLDER") && (path[0] != '/' ? ours(fd) : inside(path)) && due()) end();
    return syscall(SYS_unlinkat, fd, path, flags);
}
int mkdir(const char *path, mode_t mode) {
    if (inside(path) && due()) end();
    return syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}
static int opened(int fd, const char *path, int flags, int mode) {
    if ((flags & (O_CREAT | O_TRUNC)) && inside(path) && due()) end();
    return syscall(SYS_openat, fd, path, flags, mode);
}
#define MODE(last) int mode = 0; if (flags & O_CREAT) { va_list list; va_start(list, last); mode = va_arg(list, int); va_end(list); }
int open64(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int open(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int openat64(int fd, const char *path, int flags, ...) { MODE(flags) return opened(fd, path, flags, mode); }
int openat(int fd, const char *path, int flags, ...) { MODE(flags) return opened(fd, path, flags, mode); }
"#;

/// Not a test of its own: the process that is killed.
#[tokio::test]
#[ignore = "run by the tests below in a process of its own"]
async fn child_that_is_killed() {
    let (Ok(deed), Some(root)) = (env::var(DEED), env::var_os(ROOT)) else { return };
    let (data, copy) = (Path::new(&root).join("data"), Path::new(&root).join("copy"));
    match deed.as_str() {
        "backup" => drop(Store::backup(&data, &copy).await.unwrap()),
        "restore" => drop(Store::restore(&data, &copy).await.unwrap()),
        "recover" => drop(Store::recover(&data, at(NOW)).await.unwrap()),
        _ => {
            let store = open(&data).await;
            match deed.as_str() {
                "prune" => drop(prune(&store).await),
                "erase" => drop(erase(&store).await),
                _ => {}
            }
            store.close().await.unwrap();
        }
    }
}

async fn prune(store: &Store) -> Pruned {
    store.prune(PruneUntil::Before(at(20 * DAY)), "router", at(NOW)).await.unwrap()
}

async fn erase(store: &Store) -> Erased {
    store.erase(&EraseOf::Caller("alice".to_owned()), "ops", at(NOW)).await.unwrap()
}

/// Does deeds and kills them.
struct Killer {
    library: PathBuf,
    folder: TempDir,
}

impl Killer {
    /// `None`, and a word about it, where there is no compiler.
    fn build() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let (source, library) = (folder.path().join("kill.c"), folder.path().join("kill.so"));
        fs::write(&source, LIBRARY).unwrap();
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-w", "-o"]).args([&library, &source]);
        if !compiler.status().is_ok_and(|status| status.success()) {
            println!("SKIPPED: this test compiles a few lines of C, which needs `cc`");
            return None;
        }
        Some(Self { library, folder })
    }

    /// Whether it was killed at that write.
    fn kills(&self, deed: &str, root: &Path, at: u64) -> bool {
        let count = self.folder.path().join("count");
        let mut child = Command::new(env::current_exe().unwrap());
        child
            .args(["--exact", "store::tests::kills::child_that_is_killed"])
            .args(["--ignored", "--nocapture"])
            .env(DEED, deed)
            .env(ROOT, root)
            .env("LD_PRELOAD", &self.library)
            .env("KILL_FOLDER", root)
            .env("KILL_AT", at.to_string())
            .env("KILL_COUNT", &count)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if at.is_multiple_of(2) {
            child.env("KILL_TORN", "1");
        }
        let ended = child.output().unwrap();
        let killed = ended.status.signal() == Some(9);
        let error = String::from_utf8_lossy(&ended.stderr);
        assert!(killed || ended.status.success(), "{deed} {at}: {error}");
        killed
    }

    /// The writes at which to kill: all, or `most` of them, from the first to the last.
    fn moments(&self, deed: &str, prepared: &Path, most: u64) -> Vec<u64> {
        let root = copied(prepared);
        assert!(!self.kills(deed, root.path(), 0));
        let count = fs::read_to_string(self.folder.path().join("count")).unwrap();
        let count: u64 = count.parse().unwrap();
        assert!(count > 5, "{count} writes are too few to be all");
        // Odd, so that every second one is torn.
        let step = if is_full() { 1 } else { count.div_ceil(most) | 1 };
        println!("{deed}: {count} writes, killed at every {step}.");
        (1..=count).filter(|at| at % step == 1 % step || *at == count).collect()
    }
}

/// Tries again while the folder is in use: a process that another test is just starting holds the locks of
/// this one until it is what it is to be.
async fn patiently<T, F: Future<Output = Result<T, StoreError>>>(mut deed: impl FnMut() -> F) -> T {
    for _ in 0..500 {
        match deed().await {
            Err(StoreError::InUse { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
            done => return done.unwrap(),
        }
    }
    panic!("in use for 5 s")
}

async fn open(data: &Path) -> Store {
    patiently(|| Store::open(data)).await
}

/// A folder where syncs are cheap: what a kill leaves is the same everywhere.
fn root() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_none| tempfile::tempdir()).unwrap()
}

fn copied(from: &Path) -> TempDir {
    fn copy(from: &Path, to: &Path) {
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let to = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                fs::create_dir(&to).unwrap();
                copy(&entry.path(), &to);
            } else if let Err(error) = fs::copy(entry.path(), to) {
                // A log goes when its last connection is closed, which may be about to be.
                assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
            }
        }
    }
    let to = root();
    copy(from, to.path());
    to
}

async fn verified(data: &Path) -> Verified {
    let found = Store::verify_ledger(data, &[]).await.unwrap();
    assert!(found.is_good(), "{found:?}");
    found
}

async fn sqlite(path: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    options.foreign_keys(false).connect().await.unwrap()
}

async fn texts(file: &mut SqliteConnection, sql: String) -> Vec<String> {
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(file).await.unwrap()
}

fn migrations(name: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/sqlite").join(name);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read_to_string(file).unwrap()).collect()
}

/// A database as the version with so many migrations made it, with rows in every table.
async fn old(path: &Path, migrations: &[String], rows: u32) {
    let mut file = sqlite(path).await;
    let script = format!(
        "pragma auto_vacuum = incremental; pragma journal_mode = wal; {}
         pragma application_id = 1400330596; pragma user_version = {}",
        migrations.concat(),
        migrations.len()
    );
    raw_sql(AssertSqlSafe(script)).execute(&mut file).await.unwrap();
    for table in tables(&mut file).await {
        // The same value in all columns of a type, so that references hold.
        let values = texts(
            &mut file,
            format!(
                "select group_concat(case type when 'TEXT' then '''value ''||i'
                    when 'BLOB' then 'cast(printf(''%016d'', i) as blob)' else 'i' end, ', ')
                 from pragma_table_info('{table}')"
            ),
        )
        .await
        .concat();
        let insert = format!(
            "with recursive n (i) as (select 1 union all select i + 1 from n where i < {rows})
             insert into {table} select {values} from n"
        );
        raw_sql(AssertSqlSafe(insert)).execute(&mut file).await.unwrap();
    }
    file.close().await.unwrap();
}

async fn tables(file: &mut SqliteConnection) -> Vec<String> {
    let sql = "select name from sqlite_schema where type = 'table' order by name";
    texts(file, sql.to_owned()).await
}

async fn schema(file: &mut SqliteConnection) -> Vec<String> {
    let sql =
        "select type || ' ' || name || ' ' || coalesce(sql, '') from sqlite_schema order by 1";
    texts(file, sql.to_owned()).await
}

/// Every row of these tables and columns.
async fn rows(file: &mut SqliteConnection, selects: &[(String, String)]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (table, columns) in selects {
        found.push(texts(file, format!("select {columns} from {table} order by 1")).await);
    }
    found
}

/// A database before its migration, and what it must be at each moment.
struct Migrated {
    name: &'static str,
    old: usize,
    new: usize,
    schemas: [Vec<String>; 2],
    selects: Vec<(String, String)>,
    rows: Vec<Vec<String>>,
}

impl Migrated {
    async fn prepare(data: &Path, name: &'static str, version: usize) -> Self {
        let migrations = migrations(name);
        let path = data.join(format!("{name}.db"));
        old(&path, &migrations[..version], 25).await;
        let new = data.join("new.db");
        old(&new, &migrations, 0).await;
        let mut file = sqlite(&new).await;
        let newest = schema(&mut file).await;
        file.close().await.unwrap();
        fs::remove_file(new).unwrap();
        let mut file = sqlite(&path).await;
        let oldest = schema(&mut file).await;
        let mut selects = Vec::new();
        for table in tables(&mut file).await {
            let sql = format!(
                "select group_concat('quote(' || name || ')', '||') from pragma_table_info('{table}')"
            );
            selects.push((table, texts(&mut file, sql).await.concat()));
        }
        let rows = rows(&mut file, &selects).await;
        assert!(rows.iter().all(|rows| rows.len() == 25), "{rows:?}");
        file.close().await.unwrap();
        let schemas = [oldest, newest];
        Self { name, old: version, new: migrations.len(), schemas, selects, rows }
    }

    /// Whether the file is the new one; it must be that or the old one, with every row.
    async fn is_new(&self, path: &Path) -> bool {
        let mut file = sqlite(path).await;
        let version = texts(&mut file, "select user_version || '' from pragma_user_version".into());
        let version: usize = version.await.concat().parse().unwrap();
        assert!([self.old, self.new].contains(&version), "{version}");
        let is_new = version == self.new;
        assert_eq!(schema(&mut file).await, self.schemas[usize::from(is_new)]);
        assert_eq!(rows(&mut file, &self.selects).await, self.rows);
        let check = texts(&mut file, "select * from pragma_integrity_check".to_owned()).await;
        assert_eq!(check, ["ok"]);
        file.close().await.unwrap();
        is_new
    }

    /// What the kill left, and what the next start makes of it.
    async fn check(&self, data: &Path) -> bool {
        // On a copy: what is there is the next start's.
        let left = copied(data);
        let is_new = self.is_new(&left.path().join(format!("{}.db", self.name))).await;
        let copy = left.path().join(format!("{}.v{}.db", self.name, self.old));
        if is_new {
            assert!(!self.is_new(&copy).await, "the copy from before is whole");
        }
        is_new
    }
}

#[tokio::test]
async fn migration_kill9() {
    let Some(killer) = Killer::build() else { return };
    let began = Instant::now();
    let newest = migrations("state").len().min(migrations("audit").len());
    for version in 1..newest {
        let prepared = root();
        let data = prepared.path().join("data");
        fs::create_dir(&data).unwrap();
        let state = Migrated::prepare(&data, "state", version).await;
        let audit = Migrated::prepare(&data, "audit", version).await;
        let mut seen = std::collections::BTreeSet::new();
        // Later versions have no write that the oldest has not.
        let most = if version == 1 { 120 } else { 15 };
        for at in killer.moments("open", prepared.path(), most) {
            let root = copied(prepared.path());
            let data = root.path().join("data");
            let killed = killer.kills("open", root.path(), at);
            seen.insert((killed, state.check(&data).await, audit.check(&data).await));
            open(&data).await.close().await.unwrap();
            assert!(state.check(&data).await && audit.check(&data).await, "{at}");
            assert_eq!(verified(&data).await.unchained, 25);
        }
        println!("version {version}: {seen:?} after {:?}", began.elapsed());
        assert!(seen.contains(&(true, false, false)), "{seen:?}");
        assert!(
            seen.iter().any(|(killed, state, audit)| *killed && (*state || *audit)),
            "{seen:?}"
        );
    }
}

/// The first start of all, killed: the next one takes it up.
#[tokio::test]
async fn a_first_start_that_was_killed_is_taken_up() {
    let Some(killer) = Killer::build() else { return };
    let prepared = root();
    for at in killer.moments("open", prepared.path(), 60) {
        let root = copied(prepared.path());
        let data = root.path().join("data");
        killer.kills("open", root.path(), at);
        let store = open(&data).await;
        store.append_calls(&[call(1)]).await.unwrap();
        store.check().await.unwrap();
        store.close().await.unwrap();
        assert_eq!(verified(&data).await.rows, 1);
    }
}

#[tokio::test]
async fn a_backup_that_was_killed_is_whole_or_not_there() {
    let Some(killer) = Killer::build() else { return };
    let prepared = root();
    let head = generation(&prepared.path().join("data"), "s", 3).await;
    let mut whole = 0;
    for at in killer.moments("backup", prepared.path(), 60) {
        let root = copied(prepared.path());
        let (data, copy) = (root.path().join("data"), root.path().join("copy"));
        killer.kills("backup", root.path(), at);
        assert_eq!(verified(&data).await.head, head);
        if copy.exists() {
            whole += 1;
            assert_eq!(found(&copy).await, (head, "s".to_owned()), "{at}");
            fs::remove_dir_all(&copy).unwrap();
        }
        Store::backup(&data, &copy).await.unwrap();
        assert_eq!(found(&copy).await, (head, "s".to_owned()), "{at}");
        assert!(!root.path().join(".copy.partial").exists(), "{at}");
    }
    assert!(whole > 0, "the last one is complete");
}

/// Both databases of one time.
async fn generation(data: &Path, server: &str, days: i64) -> i64 {
    let store = open(data).await;
    let (server, now) = (name(server), at(1));
    store.upsert_server(&server, &spec("${T}"), true, ServerSource::Api, now).await.unwrap();
    fill(&store, 0..days, 40).await;
    store.close().await.unwrap();
    drop(store);
    verified(data).await.head
}

async fn found(data: &Path) -> (i64, String) {
    let store = open(data).await;
    let servers = store.servers().await.unwrap();
    store.check().await.unwrap();
    store.close().await.unwrap();
    drop(store);
    let names: Vec<_> = servers.iter().map(|server| server.name.as_str()).collect();
    (verified(data).await.head, names.concat())
}

#[tokio::test]
async fn a_restore_that_was_killed_is_old_or_new() {
    let Some(killer) = Killer::build() else { return };
    let prepared = root();
    let old = generation(&prepared.path().join("data"), "old", 2).await;
    let elsewhere = root();
    let new = generation(&elsewhere.path().join("data"), "new", 3).await;
    Store::backup(&elsewhere.path().join("data"), &prepared.path().join("copy")).await.unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for at in killer.moments("restore", prepared.path(), 80) {
        let root = copied(prepared.path());
        let (data, copy) = (root.path().join("data"), root.path().join("copy"));
        let killed = killer.kills("restore", root.path(), at);
        let left = found(&data).await;
        let one = left == (old, "old".to_owned());
        assert!(one || left == (new, "new".to_owned()), "{at}: {left:?}");
        seen.insert((killed, one));
        assert!(!data.join("restore.new").exists() && !data.join("restore.ready").exists());
        patiently(|| Store::restore(&data, &copy)).await;
        assert_eq!(found(&data).await, (new, "new".to_owned()), "{at}");
    }
    assert!(seen.contains(&(true, true)) && seen.contains(&(true, false)), "{seen:?}");
}

#[tokio::test]
async fn retention_that_was_killed_is_between_two_of_its_steps() {
    let Some(killer) = Killer::build() else { return };
    let prepared = root();
    generation(&prepared.path().join("data"), "s", 30).await;
    let mut bases = std::collections::BTreeSet::new();
    for at in killer.moments("prune", prepared.path(), 40) {
        let root = copied(prepared.path());
        let data = root.path().join("data");
        killer.kills("prune", root.path(), at);
        // Every row after the beginning is there, and an entry lets the others go.
        bases.insert(verified(&data).await.base);
        let store = open(&data).await;
        store.check().await.unwrap();
        prune(&store).await;
        store.close().await.unwrap();
        assert_eq!(verified(&data).await.base, 20 * 41, "{at}");
    }
    println!("{bases:?}");
    assert!(bases.len() > 2, "{bases:?}");
}

#[tokio::test]
async fn erasing_that_was_killed_is_between_two_of_its_steps() {
    let Some(killer) = Killer::build() else { return };
    let prepared = root();
    generation(&prepared.path().join("data"), "s", 30).await;
    let mut erased = std::collections::BTreeSet::new();
    for at in killer.moments("erase", prepared.path(), 40) {
        let root = copied(prepared.path());
        let data = root.path().join("data");
        killer.kills("erase", root.path(), at);
        // Each payload is there, or an entry says that it is not.
        erased.insert(verified(&data).await.erased);
        let store = open(&data).await;
        store.check().await.unwrap();
        assert!(erase(&store).await.complete, "{at}");
        store.close().await.unwrap();
        drop(store);
        assert_eq!(verified(&data).await.erased, 30 * 20, "{at}");
        for file in fs::read_dir(&data).unwrap() {
            let path = file.unwrap().path();
            let bytes = fs::read(&path).unwrap_or_default();
            for number in [40_u64, 502, 1_198] {
                let said = format!("{number:08}").repeat(3);
                let found = memchr::memmem::find(&bytes, said.as_bytes()).is_some();
                assert!(!found, "{at}: {number} in {}", path.display());
            }
        }
    }
    println!("{erased:?}");
    assert!(erased.len() > 2, "{erased:?}");
}

/// Of how many of these calls words are in the index's files, and how many of them have a payload.
async fn words_left(data: &Path, numbers: &[u64]) -> (usize, usize) {
    let files: Vec<_> = ["audit-index.db", "audit-index.db-wal"]
        .map(|file| fs::read(data.join(file)).unwrap_or_default())
        .into();
    let mut ledger = sqlite(&data.join("audit.db")).await;
    let (mut words, mut payloads) = (0, 0);
    for number in numbers {
        let said = format!("{number:08}").repeat(3);
        let finder = memchr::memmem::Finder::new(&said);
        words += usize::from(files.iter().any(|file| finder.find(file).is_some()));
        let kept = format!("select 'x' from payloads where instr(arguments, '{said}') > 0");
        payloads += usize::from(!texts(&mut ledger, kept).await.is_empty());
    }
    ledger.close().await.unwrap();
    (words, payloads)
}

/// Nobody asks for it again: the index is rid of the words all the same.
#[tokio::test]
async fn erasing_that_was_killed_leaves_no_words_in_the_index() {
    // None is the beginning of an odd one's repetition.
    const NUMBERS: [u64; 5] = [40, 236, 502, 740, 1_198];
    let Some(killer) = Killer::build() else { return };
    let prepared = root();
    let data = prepared.path().join("data");
    generation(&data, "s", 30).await;
    let store = open(&data).await;
    store.index_ledger().await.unwrap();
    store.close().await.unwrap();
    drop(store);
    assert_eq!(words_left(&data, &NUMBERS).await, (5, 5), "or the rest tells nothing");
    let mut seen = std::collections::BTreeSet::new();
    for at in killer.moments("erase", prepared.path(), 40) {
        let root = copied(prepared.path());
        let data = root.path().join("data");
        killer.kills("erase", root.path(), at);
        let store = open(&data).await;
        store.index_ledger().await.unwrap();
        store.close().await.unwrap();
        drop(store);
        let (words, payloads) = words_left(&data, &NUMBERS).await;
        assert_eq!(words, payloads, "{at}");
        seen.insert(words);
        // Whoever does ask again is told the truth.
        let store = open(&data).await;
        assert!(erase(&store).await.complete, "{at}");
        store.close().await.unwrap();
        drop(store);
        assert_eq!(words_left(&data, &NUMBERS).await, (0, 0), "{at}");
    }
    assert!(seen.contains(&0) && seen.len() > 1, "{seen:?}");
}

#[tokio::test]
async fn a_recovery_that_was_killed_loses_nothing() {
    let Some(killer) = Killer::build() else { return };
    let prepared = root();
    let data = prepared.path().join("data");
    generation(&data, "s", 3).await;
    // The last connection takes its log with it when it is closed, and the log last of all.
    for _ in 0..3_000 {
        if ["audit.db-shm", "audit.db-wal"].iter().any(|file| data.join(file).exists()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    assert!(!data.join("audit.db-wal").exists());
    let mut damaged = bytes(&data, "audit.db");
    damaged[2 * 4096..3 * 4096].fill(0x5a);
    fs::write(data.join("audit.db"), &damaged).unwrap();
    fs::write(data.join("audit.db-wal"), "what was left").unwrap();
    // Either of both is there, under its name or the new one.
    let kept = |data: &Path| {
        let files = fs::read_dir(data).unwrap().map(|file| file.unwrap().path());
        let files: Vec<_> = files.filter(|path| path.is_file()).map(fs::read).collect();
        let count = |bytes: &[u8]| files.iter().flatten().filter(|file| **file == bytes).count();
        (count(&damaged), count(b"what was left"))
    };
    let mut moved = std::collections::BTreeSet::new();
    for at in killer.moments("recover", prepared.path(), 60) {
        let root = copied(prepared.path());
        let data = root.path().join("data");
        killer.kills("recover", root.path(), at);
        assert_eq!(kept(&data), (1, 1), "{at}");
        let gone = !data.join("audit.db").exists();
        moved.insert(gone);
        let again = patiently(|| Store::recover(&data, super::at(NOW))).await;
        assert_eq!(again.len(), usize::from(!gone), "{at}: {again:?}");
        let (head, server) = found(&data).await;
        assert_eq!((head, server.as_str()), (0, "s"), "{at}");
        assert_eq!(kept(&data), (1, 1), "{at}");
    }
    assert_eq!(moved.len(), 2, "{moved:?}");
}
