//! [`Spool`]: where rows of the ledger wait, synced, while the database cannot be written.
//!
//! Changes when the file's form does. One JSON document a line, each with a keyed digest that binds it
//! to its place in this file; the rows are the columns that the database would have got. The first
//! line names the spool, so that the database can say how far which one was read.

use std::borrow::Cow;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf, absolute};

use rustix::fs::{Access, access};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::chain::{Kind, LedgerKey, Value};
use super::column::hex;

/// The file in a folder.
const FILE: &str = "ledger-spool.jsonl";
/// Bytes read back in one commit.
const CHUNK: u64 = 4 << 20;

/// A row on its way into the chain: its columns, the first of which is kept free for its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) struct Link<'a> {
    pub(super) kind: Kind,
    pub(super) values: Vec<Value<'a>>,
    /// A call's attempts.
    pub(super) attempts: Vec<Vec<Value<'a>>>,
    /// What is kept of a call's arguments and result.
    pub(super) payload: Option<[Value<'a>; 2]>,
}

/// The file, open or not there yet.
#[derive(Debug)]
pub struct Spool {
    path: PathBuf,
    file: Option<File>,
    head: Head,
    /// Where the first row begins, and where the last that is synced ends.
    start: u64,
    end: u64,
    /// Up to where the database has it, as far as that is known.
    pub(super) read: Option<u64>,
    /// Some of it could not be read back.
    pub(super) damaged: bool,
    /// Rows that were set aside since that was last asked for.
    pub(super) rejected: u64,
}

/// A row that the database does not take, and what it says.
pub(super) struct Rejected {
    pub(super) at: usize,
    pub(super) why: String,
}

/// The first line.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) spool: String,
    /// A row of the ledger that was committed before anything was put here.
    pub(super) after: i64,
}

#[derive(Serialize, Deserialize)]
struct Line<'a> {
    mac: String,
    #[serde(borrow)]
    row: &'a RawValue,
}

#[derive(Serialize, Deserialize)]
struct Row<'a> {
    kind: Cow<'a, str>,
    #[serde(borrow)]
    values: Cow<'a, [Value<'a>]>,
    #[serde(borrow, default, skip_serializing_if = "<[_]>::is_empty")]
    attempts: Cow<'a, [Vec<Value<'a>>]>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    payload: Option<Cow<'a, [Value<'a>; 2]>>,
}

/// What was read back.
pub(super) struct Chunk {
    pub(super) links: Vec<Link<'static>>,
    /// Where the next one begins.
    pub(super) to: u64,
    /// Lines that are not what was written.
    pub(super) damaged: usize,
}

impl Spool {
    /// Opens the spool at `path`, a file or a folder. What was cut off while it was written is removed: nobody
    /// was told that it is there. A file whose beginning is not readable is moved aside.
    pub(super) fn open(path: &Path, key: &LedgerKey) -> io::Result<Self> {
        let path = if path.is_dir() { path.join(FILE) } else { path.to_owned() };
        let mut spool = Self::none(&path);
        let file = match OpenOptions::new().read(true).write(true).open(&spool.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(spool),
            Err(error) => return Err(error),
        };
        let end = last_line_end(&file)?;
        file.set_len(end)?;
        if end == 0 {
            return Ok(spool);
        }
        let mut first = String::new();
        // A first line that is longer than any we write is none of ours.
        BufReader::new((&file).take(4096)).read_line(&mut first)?;
        let head = parse(&first, key, "", 0).and_then(|row| serde_json::from_str(row).ok());
        let Some(head) = head else {
            let aside = aside(&spool.path);
            tracing::error!(
                "`{}` is no spool of this ledger; it was moved to `{}`",
                spool.path.display(),
                aside.display()
            );
            fs::rename(&spool.path, aside)?;
            return Ok(spool);
        };
        (spool.head, spool.start, spool.end) = (head, first.len() as u64, end);
        spool.file = Some(file);
        Ok(spool)
    }

    /// One of which nothing is there yet.
    pub(super) fn none(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            file: None,
            head: Head::default(),
            start: 0,
            end: 0,
            read: None,
            damaged: false,
            rejected: 0,
        }
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that are not known to be in the database.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.end.saturating_sub(self.read.unwrap_or(self.start))
    }

    /// Where it ends.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.end
    }

    pub(super) const fn head(&self) -> &Head {
        &self.head
    }

    pub(super) const fn start(&self) -> u64 {
        self.start
    }

    /// What is to be written for these rows; the place of the first is the end of the file.
    pub(super) fn encode(&self, key: &LedgerKey, after: i64, links: &[Link<'_>]) -> Encoded {
        let mut encoded = Encoded { head: None, bytes: Vec::new(), at: self.end };
        let mut name = self.head.spool.clone();
        if self.file.is_none() || self.end == 0 {
            name = uuid::Uuid::now_v7().simple().to_string();
            let head = Head { spool: name.clone(), after };
            let row = serde_json::to_string(&head).unwrap_or_default();
            encoded.at = 0;
            encoded.line(key, "", &row);
            encoded.head = Some((head, encoded.bytes.len() as u64));
        }
        for link in links {
            let row = serde_json::to_string(&row(link)).unwrap_or_default();
            encoded.line(key, &name, &row);
        }
        encoded
    }

    /// Writes and syncs; nothing of it is there when that fails.
    pub(super) fn write(&mut self, encoded: &Encoded) -> io::Result<()> {
        let fresh = self.file.is_none();
        let file = match &self.file {
            Some(file) => file,
            None => {
                let mut options = OpenOptions::new();
                let file = options.read(true).write(true).create(true).truncate(true).mode(0o600);
                self.file.insert(file.open(&self.path)?)
            }
        };
        let written = file.write_all_at(&encoded.bytes, encoded.at).and_then(|()| file.sync_data());
        if let Err(error) =
            written.and_then(|()| if fresh { sync_folder(&self.path) } else { Ok(()) })
        {
            // What is left of it is cut off when it is opened again, or overwritten.
            let _cut = file.set_len(encoded.at);
            return Err(error);
        }
        if let Some((head, start)) = &encoded.head {
            (self.head, self.start) = (head.clone(), *start);
            self.read = Some(*start);
        }
        self.end = encoded.at.saturating_add(encoded.bytes.len() as u64);
        Ok(())
    }

    /// Reads some rows from `from` on, up to `limit`.
    pub(super) fn read(&self, key: &LedgerKey, from: u64, limit: u64) -> io::Result<Chunk> {
        let mut chunk = Chunk { links: Vec::new(), to: from, damaged: 0 };
        let Some(mut file) = self.file.as_ref() else { return Ok(chunk) };
        file.seek(SeekFrom::Start(from))?;
        let mut lines = BufReader::new(file.take(limit.saturating_sub(from)));
        let mut line = Vec::new();
        while chunk.to - from < CHUNK && lines.read_until(b'\n', &mut line)? > 0 {
            let text = std::str::from_utf8(&line).ok();
            let row = text.and_then(|text| parse(text, key, &self.head.spool, chunk.to));
            match row.and_then(link) {
                Some(link) => chunk.links.push(link),
                None => chunk.damaged += 1,
            }
            chunk.to += line.len() as u64;
            line.clear();
        }
        Ok(chunk)
    }

    /// How many rows were set aside since this was last asked for.
    pub fn take_rejected(&mut self) -> u64 {
        std::mem::take(&mut self.rejected)
    }

    /// Puts rows that the database does not take into a file beside the spool, synced. Killed before
    /// they are passed over, they are there once more.
    pub(super) fn set_aside(
        &self,
        links: &[Link<'_>],
        rejected: &[Rejected],
    ) -> io::Result<PathBuf> {
        let mut lines = Vec::new();
        for Rejected { at, why } in rejected {
            let Some(link) = links.get(*at) else { continue };
            let line = serde_json::json!({ "why": why, "row": row(link) });
            writeln!(lines, "{line}")?;
        }
        let mut path = self.path.as_os_str().to_owned();
        path.push(".rejected");
        let path = PathBuf::from(path);
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
        file.write_all(&lines)?;
        file.sync_all()?;
        sync_folder(&path)?;
        Ok(path)
    }

    /// Removes everything: the database has it. Lines that were damaged are kept beside it.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.damaged) {
            fs::copy(&self.path, aside(&self.path))?;
        }
        if let Some(file) = &self.file {
            file.set_len(0)?;
            file.sync_data()?;
        }
        (self.head, self.start, self.end, self.read) = (Head::default(), 0, 0, None);
        Ok(())
    }
}

/// Whether there can be a spool at `path`, a file or a folder. Makes none.
///
/// # Errors
/// Why not.
pub fn spool_is_usable(path: &Path) -> io::Result<()> {
    let path = if path.is_dir() { path.join(FILE) } else { path.to_owned() };
    match OpenOptions::new().read(true).write(true).open(&path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let wanted = Access::WRITE_OK | Access::EXEC_OK;
            Ok(access(folder.unwrap_or(Path::new(".")), wanted)?)
        }
        Err(error) => Err(error),
    }
}

/// What a spool has outside the database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpoolRemains {
    /// The spool itself, where something waits in it.
    pub waiting: Option<PathBuf>,
    /// All files that are named after it, in order: rows that the database did not take, and copies of what was
    /// damaged. The folder where it cannot be read.
    pub beside: Vec<PathBuf>,
}

/// What there is of the spool at `path`, a file or a folder, outside the database.
#[must_use]
pub fn spool_remains(path: &Path) -> SpoolRemains {
    let path = if path.is_dir() { path.join(FILE) } else { path.to_owned() };
    let path = absolute(&path).unwrap_or(path);
    let folder = path.parent().unwrap_or(Path::new("."));
    let named = path.file_name().unwrap_or_default().as_encoded_bytes();
    let is_beside = |file: &PathBuf| {
        let name = file.file_name().unwrap_or_default().as_encoded_bytes();
        name.strip_prefix(named).is_some_and(|rest| rest.starts_with(b"."))
    };
    let files = fs::read_dir(folder).and_then(|files| {
        files.map(|file| file.map(|file| file.path())).collect::<io::Result<Vec<_>>>()
    });
    let mut beside = match files {
        Ok(files) => files.into_iter().filter(is_beside).collect(),
        Err(_unreadable) => vec![folder.to_owned()],
    };
    beside.sort();
    let waits = fs::metadata(&path).is_ok_and(|file| file.len() > 0);
    SpoolRemains { waiting: waits.then_some(path), beside }
}

/// Lines to be written at a place.
pub(super) struct Encoded {
    head: Option<(Head, u64)>,
    bytes: Vec<u8>,
    at: u64,
}

impl Encoded {
    fn line(&mut self, key: &LedgerKey, name: &str, row: &str) {
        let at = self.at.saturating_add(self.bytes.len() as u64);
        let mac = hex(&key.spooled(name, at, row.as_bytes()));
        let _written = writeln!(self.bytes, r#"{{"mac":"{mac}","row":{row}}}"#);
    }
}

/// The row of a line that was written with this key at this place of this spool.
fn parse<'a>(line: &'a str, key: &LedgerKey, name: &str, at: u64) -> Option<&'a str> {
    let line: Line<'a> = serde_json::from_str(line).ok()?;
    let row = line.row.get();
    (line.mac == hex(&key.spooled(name, at, row.as_bytes()))).then_some(row)
}

fn row<'a>(link: &'a Link<'a>) -> Row<'a> {
    let kind = match link.kind {
        Kind::Call => "call",
        Kind::Entry => "entry",
    };
    Row {
        kind: kind.into(),
        values: link.values.get(1..).unwrap_or_default().into(),
        attempts: link.attempts.as_slice().into(),
        payload: link.payload.as_ref().map(Cow::Borrowed),
    }
}

fn link(row: &str) -> Option<Link<'static>> {
    let row: Row<'_> = serde_json::from_str(row).ok()?;
    let mut values = vec![Value::Null];
    values.extend(owned(row.values.into_owned()));
    Some(Link {
        kind: match row.kind.as_ref() {
            "call" => Kind::Call,
            "entry" => Kind::Entry,
            _ => return None,
        },
        values,
        attempts: row.attempts.into_owned().into_iter().map(owned).collect(),
        payload: row.payload.map(|payload| payload.into_owned().map(Value::into_owned)),
    })
}

fn owned(values: Vec<Value<'_>>) -> Vec<Value<'static>> {
    values.into_iter().map(Value::into_owned).collect()
}

/// The place after the last line that is whole.
fn last_line_end(file: &File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut block = vec![0; 64 * 1024];
    while end > 0 {
        let size = end.min(block.len() as u64);
        let Some(part) = usize::try_from(size).ok().and_then(|size| block.get_mut(..size)) else {
            return Ok(0);
        };
        file.read_exact_at(part, end - size)?;
        if let Some(at) = part.iter().rposition(|byte| *byte == b'\n') {
            return Ok(end - size + at as u64 + 1);
        }
        end -= size;
    }
    Ok(0)
}

fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".damaged-{}", uuid::Uuid::now_v7().simple()));
    name.into()
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn key() -> LedgerKey {
        LedgerKey::new(&[7; 32])
    }

    fn links(from: i64, count: i64) -> Vec<Link<'static>> {
        (from..from + count)
            .map(|number| Link {
                kind: if number % 2 == 0 { Kind::Call } else { Kind::Entry },
                values: vec![
                    Value::Null,
                    Value::Integer(number),
                    Value::text("é\n\"\u{0}"),
                    Value::Blob(vec![0, 255].into()),
                    Value::Null,
                ],
                attempts: vec![vec![Value::Integer(i64::MIN), Value::Null]],
                payload: (number % 2 == 0).then(|| [Value::Null, Value::text("{}")]),
            })
            .collect()
    }

    fn put(spool: &mut Spool, links: &[Link<'_>]) {
        let encoded = spool.encode(&key(), 5, links);
        spool.write(&encoded).unwrap();
    }

    #[test]
    fn what_is_put_in_comes_out_again_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(folder.path(), &key()).unwrap();
        assert_eq!((spool.waiting(), spool.path().exists()), (0, false));
        put(&mut spool, &links(0, 3));
        put(&mut spool, &links(3, 2));
        assert_eq!(fs::metadata(spool.path()).unwrap().mode() & 0o777, 0o600);
        let again = Spool::open(&folder.path().join(FILE), &key()).unwrap();
        assert_eq!(again.head().after, 5);
        for spool in [&spool, &again] {
            let chunk = spool.read(&key(), spool.start(), spool.end()).unwrap();
            assert_eq!((chunk.links, chunk.damaged), (links(0, 5), 0));
            assert_eq!((chunk.to, spool.waiting()), (spool.end(), spool.end() - spool.start()));
        }
        let name = spool.head().spool.clone();
        spool.clear().unwrap();
        assert_eq!(fs::metadata(spool.path()).unwrap().len(), 0);
        put(&mut spool, &links(9, 1));
        assert_ne!(spool.head().spool, name, "another one");
        let chunk = spool.read(&key(), spool.start(), spool.end()).unwrap();
        assert_eq!(chunk.links, links(9, 1));
    }

    #[test]
    fn what_was_cut_off_is_removed_wherever_it_was_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let mut spool = Spool::open(&path, &key()).unwrap();
        put(&mut spool, &links(0, 1));
        let one = spool.end();
        put(&mut spool, &links(1, 1));
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let mut spool = Spool::open(&path, &key()).unwrap();
            let rows = usize::from(length as u64 >= one);
            let chunk = spool.read(&key(), spool.start(), spool.end()).unwrap();
            assert_eq!((chunk.links.len(), chunk.damaged), (rows, 0), "{length}");
            put(&mut spool, &links(7, 1));
            let chunk = spool.read(&key(), spool.start(), spool.end()).unwrap();
            assert_eq!(chunk.links.last(), links(7, 1).last(), "{length}");
        }
    }

    #[test]
    fn a_line_that_was_changed_or_moved_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let mut spool = Spool::open(&path, &key()).unwrap();
        put(&mut spool, &links(0, 3));
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let swapped = [lines[0], lines[3], lines[2], lines[1]].concat();
        let changed = text.replacen(r#"[1,"#, r#"[8,"#, 1);
        assert_ne!(changed, text);
        for (bad, damaged) in [(changed, 1), (swapped, 2)] {
            fs::write(&path, bad).unwrap();
            let spool = Spool::open(&path, &key()).unwrap();
            let chunk = spool.read(&key(), spool.start(), spool.end()).unwrap();
            assert_eq!((chunk.links.len(), chunk.damaged), (3 - damaged, damaged));
        }
        // One of another ledger is not read at all, and not lost.
        fs::write(&path, text).unwrap();
        let other = Spool::open(&path, &LedgerKey::new(&[8; 32])).unwrap();
        assert_eq!((other.waiting(), path.exists()), (0, false));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_lies_beside_a_spool_is_found_where_it_was_put() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let remains = || spool_remains(folder.path());
        assert_eq!(remains(), SpoolRemains::default());
        let mut spool = Spool::open(&path, &key()).unwrap();
        put(&mut spool, &links(0, 2));
        let waiting = SpoolRemains { waiting: Some(path.clone()), beside: Vec::new() };
        assert_eq!(remains(), waiting, "it is not in the ledger yet");
        spool.damaged = true;
        let why = "a rule".to_owned();
        let rejected = spool.set_aside(&links(0, 2), &[Rejected { at: 0, why }]).unwrap();
        spool.clear().unwrap();
        let found = remains();
        assert_eq!((found.waiting.as_ref(), found.beside.len()), (None, 2), "{found:?}");
        assert!(found.beside[0].to_str().unwrap().contains(".damaged-"), "{found:?}");
        assert_eq!(found.beside[1], rejected);
        assert_eq!(spool_remains(&path), found, "by its file as by its folder");
        fs::write(folder.path().join("ledger-spool.jsonl2"), "another's").unwrap();
        assert_eq!(remains(), found);
        let away = folder.path().join("away");
        assert_eq!(spool_remains(&away.join("spool.jsonl")).beside, [away], "a disk that is gone");
    }
}
