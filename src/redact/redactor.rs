//! [`Redactor`]: takes secrets out of texts and JSON. PURE: bytes in, text out.
//!
//! Changes when what is taken out at all changes. Knows nothing of calls, queues or the store. JSON is
//! copied byte for byte except for what is replaced, so that numbers beyond any type, duplicate keys and
//! spacing survive; a text that is not JSON is searched as one string. The work is linear in the input
//! for a given set of secrets.

use std::fmt;
use std::ops::Range;

use crate::model::{Secret, escape_json};

use super::json::{self, Limits, Scope};
use super::named;
use super::names::{Names, Says};
use super::pointer::PointerSet;
use super::search::Searcher;

/// What stands for a secret.
pub(super) const MASK: &str = "***";
/// Longest value kept, in bytes: enough for a prompt, not for an uploaded file.
pub(super) const VALUE_LIMIT: usize = 8 * 1024;
/// Longest record kept, in bytes.
pub(super) const RECORD_LIMIT: usize = 64 * 1024;
/// Where blocks of PEM begin that are for everybody.
const PUBLIC_BLOCKS: [&str; 3] =
    ["-----BEGIN CERTIFICATE-----", "-----BEGIN PUBLIC KEY-----", "-----BEGIN RSA PUBLIC KEY-----"];
/// Strings that hold JSON are looked into this many levels deep.
const NESTED_JSON_LEVELS: u8 = 3;

/// The values that must never be stored, whatever the level: every secret the configuration
/// expanded or the registry opened.
#[derive(Debug, Clone, Default)]
pub struct Secrets(Vec<Secret>);

impl Secrets {
    /// A set of known secrets.
    #[must_use]
    pub fn new(secrets: Vec<Secret>) -> Self {
        Self(secrets)
    }
}

impl FromIterator<Secret> for Secrets {
    fn from_iter<T: IntoIterator<Item = Secret>>(secrets: T) -> Self {
        Self(secrets.into_iter().collect())
    }
}

/// How much is taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// Known secrets, values under telling keys, and values that look like credentials.
    Everything,
    /// Known secrets only.
    KnownSecrets,
}

/// JSON of which something is to be kept.
#[derive(Debug, Clone, Copy)]
pub struct Payload<'a> {
    /// All of it, or its beginning.
    pub start: &'a [u8],
    /// Bytes of all of it.
    pub whole: u64,
    /// Places in it that are never kept.
    pub pointers: Option<&'a PointerSet>,
}

impl<'a> Payload<'a> {
    /// All of a payload, in which no place is named.
    #[must_use]
    pub const fn whole(payload: &'a [u8]) -> Self {
        Self { start: payload, whole: payload.len() as u64, pointers: None }
    }
}

/// Takes secrets out of texts and JSON.
pub struct Redactor {
    names: Names,
    everything: Searcher,
    known_secrets: Searcher,
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.names.list().collect();
        f.debug_struct("Redactor").field("names", &names).finish_non_exhaustive()
    }
}

impl Default for Redactor {
    /// One that knows no secret, and what secrets look like.
    fn default() -> Self {
        Self::new(&[], &Secrets::default())
    }
}

impl Redactor {
    /// Prepares the search. `key_names` match anywhere in a key, without regard to case and
    /// punctuation: `api_key` also finds `X-API-Key` and `apiKey`. With `=` before it, one matches the
    /// last word of a key alone: `=pwd` finds `DB_PWD` and `userPwd`. A known secret shorter than four
    /// bytes is not searched for: it would be found everywhere.
    #[must_use]
    pub fn new(key_names: &[String], secrets: &Secrets) -> Self {
        let values: Vec<&str> = secrets.0.iter().map(Secret::expose).collect();
        Self {
            names: Names::new(key_names),
            everything: Searcher::new(&values, Strictness::Everything),
            known_secrets: Searcher::new(&values, Strictness::KnownSecrets),
        }
    }

    /// Redacts and cuts a payload. What is no JSON is one text, and where places in it are named it is
    /// left out as a whole.
    #[must_use]
    pub fn payload(&self, payload: Payload<'_>, strictness: Strictness) -> String {
        self.within(payload, strictness, Limits::OF_PAYLOADS, RECORD_LIMIT)
    }

    /// Redacts a payload and cuts nothing: what was JSON stays JSON.
    #[must_use]
    pub fn uncut(&self, payload: Payload<'_>, strictness: Strictness) -> String {
        self.within(payload, strictness, Limits::NONE, usize::MAX)
    }

    fn within(
        &self,
        payload: Payload<'_>,
        strictness: Strictness,
        limits: Limits,
        limit: usize,
    ) -> String {
        let text = String::from_utf8_lossy(payload.start);
        let whole = usize::try_from(payload.whole).unwrap_or(usize::MAX);
        let scope = Scope {
            strictness,
            levels: NESTED_JSON_LEVELS,
            pointers: payload.pointers,
            base: &[],
            whole: Some(whole).filter(|whole| *whole > payload.start.len()),
            limits,
        };
        json::redact(self, &text, scope).unwrap_or_else(|| match payload.pointers {
            Some(_) => MASK.to_owned(),
            None => self.cut_text(&text, limit, strictness),
        })
    }

    /// Redacts a text such as an error message, and cuts it after `limit` bytes.
    #[must_use]
    pub fn text(&self, text: &str, limit: usize) -> String {
        self.cut_text(text, limit, Strictness::Everything)
    }

    /// Redacts lines of a log, each as JSON when it is JSON.
    #[must_use]
    pub fn log_lines(&self, lines: &str) -> String {
        // What hides to the end of the text leaves the end of the line.
        let line = lines.trim_end_matches('\n');
        let mut clean = match json::looks_like(line) {
            // A value in which something was found is written anew.
            true => {
                escape_json(&self.uncut(Payload::whole(line.as_bytes()), Strictness::Everything))
                    .into_owned()
            }
            false => self.text(line, usize::MAX),
        };
        clean.push_str(lines.get(line.len()..).unwrap_or_default());
        clean
    }

    fn cut_text(&self, text: &str, limit: usize, strictness: Strictness) -> String {
        self.kept(text, limit, strictness).unwrap_or_else(|| text.to_owned())
    }

    /// What is kept of `text` when that is not all of it: secrets replaced, cut after `limit`.
    pub(super) fn kept(&self, text: &str, limit: usize, strictness: Strictness) -> Option<String> {
        let too_long = text.len() > limit;
        let mut kept = match self.replace(text, limit, strictness) {
            Some(replaced) => replaced,
            None if too_long => text.get(..text.floor_char_boundary(limit))?.to_owned(),
            None => return None,
        };
        if too_long {
            cut(&mut kept, limit, text.len());
        }
        Some(kept)
    }

    /// The first `limit` bytes of `text` with secrets replaced, or `None` when they hold none.
    pub(super) fn replace(
        &self,
        text: &str,
        limit: usize,
        strictness: Strictness,
    ) -> Option<String> {
        let searcher = self.searcher(strictness);
        // A secret that begins before the limit must be seen whole.
        let window = limit.saturating_add(searcher.longest());
        let head = text.get(..text.floor_char_boundary(window))?;
        let limit = head.floor_char_boundary(limit);
        let mut replaced = String::new();
        let mut at = 0;
        let named = |text: &str| match strictness {
            Strictness::Everything => named::spans(text, |name| self.says(name, strictness)),
            Strictness::KnownSecrets => Vec::new(),
        };
        let found = |text: &str| {
            let mut more = searcher.spans_below(text, named);
            more.extend(named(text));
            joined(searcher.spans(text), more)
        };
        let mut spans = found(head);
        let public = |span: &Range<usize>| {
            let block = head.get(span.start..).unwrap_or_default();
            PUBLIC_BLOCKS.iter().any(|begin| block.starts_with(begin))
        };
        if spans.iter().any(public) {
            // In small letters a block begins none; what is known may still be in it.
            let plain = |text: String, begin: &&str| text.replace(begin, &begin.to_lowercase());
            let text = PUBLIC_BLOCKS.iter().fold(head.to_owned(), plain);
            spans = joined(self.known_secrets.spans(head), found(&text));
        }
        for span in spans.into_iter().filter(|span| span.start < limit) {
            replaced.push_str(head.get(at..span.start).unwrap_or_default());
            replaced.push_str(MASK);
            at = span.end;
        }
        if at == 0 {
            return None;
        }
        replaced.push_str(head.get(at..limit).unwrap_or_default());
        Some(replaced)
    }

    const fn searcher(&self, strictness: Strictness) -> &Searcher {
        match strictness {
            Strictness::Everything => &self.everything,
            Strictness::KnownSecrets => &self.known_secrets,
        }
    }

    /// What the name of a value says of it.
    pub(super) fn says(&self, name: &str, strictness: Strictness) -> Says {
        match strictness {
            Strictness::Everything => self.names.says(name),
            Strictness::KnownSecrets => Says::Nothing,
        }
    }
}

/// All of both, in order and without overlaps.
fn joined(mut spans: Vec<Range<usize>>, more: Vec<Range<usize>>) -> Vec<Range<usize>> {
    if more.is_empty() {
        return spans;
    }
    spans.extend(more);
    spans.sort_by_key(|span| span.start);
    let mut joined: Vec<Range<usize>> = Vec::with_capacity(spans.len());
    for span in spans {
        match joined.last_mut() {
            Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
            _ => joined.push(span),
        }
    }
    joined
}

/// Cuts `text` after `limit` bytes and says how long the whole was.
pub(super) fn cut(text: &mut String, limit: usize, whole: usize) {
    text.truncate(text.floor_char_boundary(limit));
    text.push_str(&format!("…[cut, {whole} bytes]"));
}
