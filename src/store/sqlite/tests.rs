//! What the files are when they are opened, and what they become.

use super::*;

#[test]
fn every_migration_in_the_folder_is_built_in() {
    for schema in [&STATE, &AUDIT] {
        let name = schema.file.trim_end_matches(".db");
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/sqlite").join(name);
        let mut texts: Vec<_> = fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
        texts.sort();
        let texts: Vec<_> = texts.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
        assert_eq!(texts, schema.migrations, "{name}");
    }
}

#[test]
fn engines_with_the_corruption_bug_are_told_apart() {
    for (version, old) in
        [("3.51.2", true), ("3.7.0", true), ("3.51.3", false), ("3.52.0", false), ("4.0.0", false)]
    {
        assert_eq!(is_older_than_3_51_3(version), old, "{version}");
    }
}

const FIRST: &str = "create table a (x integer) strict; insert into a values (1), (2);";

const fn schema(migrations: &'static [&'static str]) -> Schema {
    Schema { file: "state.db", migrations, ..AUDIT }
}

async fn opened(folder: &Path, schema: &Schema) -> Result<Database, StoreError> {
    let seen = recover::look(folder, schema, schema.checked_up_to).await?;
    let mut opening = Opening::begin(folder, schema, seen).await?;
    let copies = Copies::make(folder, &mut [&mut opening]).await?;
    opening.finish().await.inspect_err(|_error| copies.forget(schema))
}

async fn scalar(database: &Database, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(&database.readers).await.unwrap()
}

#[tokio::test]
async fn an_older_file_is_copied_and_brought_up_to_date() {
    const OLD: Schema = schema(&[FIRST]);
    const NEW: Schema = schema(&[FIRST, "alter table a add column y integer default 5;"]);
    const BROKEN: Schema =
        schema(&[FIRST, "alter table a add column y integer default 5;", "drop table a; oops;"]);
    let folder = tempfile::tempdir().unwrap();
    let old = opened(folder.path(), &OLD).await.unwrap();
    assert_eq!(scalar(&old, "pragma auto_vacuum").await, 2, "as the new file asked for");
    old.close().await.unwrap();

    let new = opened(folder.path(), &NEW).await.unwrap();
    assert_eq!(scalar(&new, "select sum(x + y) from a").await, 13);
    assert_eq!(scalar(&new, "pragma user_version").await, 2);
    new.close().await.unwrap();
    let copy = folder.path().join("state.v1.db");
    fs::create_dir(folder.path().join("copy")).unwrap();
    fs::rename(copy, folder.path().join("copy/state.db")).unwrap();
    let copy = opened(&folder.path().join("copy"), &OLD).await.unwrap();
    assert_eq!(scalar(&copy, "select sum(x) from a").await, 3);

    assert!(opened(folder.path(), &BROKEN).await.is_err());
    assert!(!folder.path().join("state.v2.db").exists(), "nothing was changed");
    let same = opened(folder.path(), &NEW).await.unwrap();
    assert_eq!(scalar(&same, "select sum(x + y) from a").await, 13, "all of it or nothing");
    assert!(opened(&folder.path().join("copy"), &NEW).await.is_ok());
}

#[tokio::test]
async fn a_copy_that_cannot_be_made_leaves_all_files_as_they_were() {
    const STATE: Schema = Schema { file: "state.db", migrations: &[FIRST], ..super::STATE };
    const AUDIT: Schema = Schema { file: "audit.db", ..STATE };
    let folder = tempfile::tempdir().unwrap();
    for old in [&STATE, &AUDIT] {
        opened(folder.path(), old).await.unwrap().close().await.unwrap();
    }
    // A folder with something in it, where the second copy goes.
    fs::create_dir_all(folder.path().join("state.v1.db/x")).unwrap();
    let refused = SqliteStore::open(folder.path()).await.map(drop).unwrap_err();
    assert!(matches!(refused, StoreError::Files { .. }), "{refused:?}");
    assert!(!folder.path().join("audit.v1.db").exists());
    for old in [&STATE, &AUDIT] {
        let same = opened(folder.path(), old).await.unwrap();
        assert_eq!(scalar(&same, "pragma user_version").await, 1);
    }
}

#[tokio::test]
async fn a_full_disk_does_not_leave_the_writer_stuck() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path()).await.unwrap();
    let full = "pragma max_page_count = 1";
    raw_sql(full).execute(&mut *store.audit.writer().await.unwrap()).await.unwrap();
    let entry = crate::store::EntryRow {
        seq: 0,
        at: crate::model::Timestamp::from_millis(1),
        kind: "test".to_owned(),
        actor: String::new(),
        subject: String::new(),
        detail: "x".repeat(1 << 20),
    };
    let entries = [entry];
    let failed = store.append_ledger(&entries, &[]).await;
    assert!(matches!(failed, Err(StoreError::Full { .. })), "{failed:?}");
    assert_eq!(store.append_ledger(&entries, &[]).await.unwrap().last, 1);
}

#[tokio::test]
async fn a_file_that_only_seems_to_open_for_writing_is_told() {
    let folder = tempfile::tempdir().unwrap();
    opened(folder.path(), &AUDIT).await.unwrap().close().await.unwrap();
    let path = folder.path().join(AUDIT.file);
    // What SQLite makes of a file that the system does not let it write.
    let mut connection = connect_options(&path, &AUDIT).read_only(true).connect().await.unwrap();
    raw_sql("begin immediate; rollback;").execute(&mut connection).await.unwrap();
    let error = begin_writing(&mut connection, 1).await.unwrap_err();
    let error = StoreError::while_opening(error, &path);
    assert!(matches!(&error, StoreError::Files { path: named, .. } if *named == path));
    assert_eq!(error.exit_code(), 2);
}

#[tokio::test]
async fn a_large_ledger_is_checked_beside_the_traffic() {
    const LARGE: Schema = Schema { checked_up_to: 0, ..AUDIT };
    let folder = tempfile::tempdir().unwrap();
    let fresh = opened(folder.path(), &LARGE).await.unwrap();
    assert!(fresh.checked, "there was nothing in it");
    raw_sql(
        "create table filler (x text);
         with recursive n (i) as (select 1 union all select i + 1 from n where i < 2000)
         insert into filler select hex(zeroblob(100)) || i from n;",
    )
    .execute(&mut *fresh.writer().await.unwrap())
    .await
    .unwrap();
    fresh.close().await.unwrap();

    let good = opened(folder.path(), &LARGE).await.unwrap();
    assert!(!good.checked);
    good.check().await.unwrap();
    good.close().await.unwrap();
    assert!(matches!(good.check().await, Err(StoreError::Closed)), "ended by the close");

    let path = folder.path().join(LARGE.file);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 4096 / 2 * 4096;
    bytes[middle..middle + 4096 * 3].fill(0xff);
    fs::write(&path, bytes).unwrap();
    let damaged = opened(folder.path(), &LARGE).await.unwrap();
    let verdict = damaged.check().await;
    assert!(matches!(verdict, Err(StoreError::Damaged { .. })), "{verdict:?}");
}
