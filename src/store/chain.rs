//! The chain of the ledger: how a row is written for hashing, and what its hash is. PURE.
//!
//! `hash = HMAC-SHA256(key, "row v1" || hash of the row before || canonical(row))`. Changing,
//! removing, adding or swapping rows breaks it at the first row concerned, for whoever does not hold
//! the key. What it does not show by itself is a tail that was cut together with the row that says
//! where the end is, or a whole file that was replaced by an older copy: for that there are
//! checkpoints, signed and kept elsewhere.
//!
//! The canonical form is binary and injective: two different rows have different forms, whatever their
//! texts hold. Columns at the end that are null are left out, so that a column can be added later
//! without making the hashes of older rows wrong.

use std::borrow::Cow;
use std::fmt;

use ring::hmac;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

use super::key_file::KEY_LENGTH;

/// The hash of a row.
pub type Hash = [u8; 32];

/// The columns of a call after `seq` and before `hash`, in the order in which they are hashed. A new
/// one comes last and may be null.
pub(super) const CALL_COLUMNS: [&str; 32] = [
    "id",
    "started_at_ms",
    "caller",
    "session",
    "client_name",
    "client_version",
    "entrance",
    "protocol_version",
    "tool",
    "upstream_tool",
    "server",
    "definition_hash",
    "outcome",
    "error_code",
    "error",
    "failure",
    "http_status",
    "attempts",
    "queue_us",
    "upstream_us",
    "total_us",
    "request_bytes",
    "response_bytes",
    "view",
    "arguments_digest",
    "result_digest",
    "payload_digest",
    "trace_id",
    "remote_address",
    "arguments_level",
    "results_level",
    "breaker",
];

/// The place of the digest of what is kept of payloads among them.
pub(super) const PAYLOAD_DIGEST: usize = 26;

/// The same of an entry.
pub(super) const ENTRY_COLUMNS: [&str; 5] = ["at_ms", "kind", "actor", "subject", "detail"];

/// The same of an attempt, its number first.
pub(super) const ATTEMPT_COLUMNS: [&str; 8] =
    ["n", "began_us", "took_us", "outcome", "failure", "error", "http_status", "probe"];

/// One column of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Null,
    Integer(i64),
    Text(Cow<'a, str>),
    Blob(Cow<'a, [u8]>),
}

impl<'a> Value<'a> {
    pub(super) fn text(text: impl Into<Cow<'a, str>>) -> Self {
        Self::Text(text.into())
    }

    pub(super) fn maybe_text(text: Option<impl Into<Cow<'a, str>>>) -> Self {
        text.map_or(Self::Null, Self::text)
    }

    pub(super) fn into_owned(self) -> Value<'static> {
        match self {
            Self::Null => Value::Null,
            Self::Integer(number) => Value::Integer(number),
            Self::Text(text) => Value::text(text.into_owned()),
            Self::Blob(bytes) => Value::Blob(bytes.into_owned().into()),
        }
    }

    pub(super) fn maybe_blob(bytes: Option<&'a [u8]>) -> Self {
        bytes.map_or(Self::Null, |bytes| Self::Blob(bytes.into()))
    }
}

/// What is hashed of a row: its kind, and lists of columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) struct Canonical(Vec<u8>);

impl Canonical {
    pub(super) fn of(kind: Kind) -> Self {
        let mut bytes = Vec::with_capacity(512);
        bytes.push(kind as u8);
        Self(bytes)
    }

    /// Adds a list of columns.
    pub(super) fn list(&mut self, values: &[Value<'_>]) {
        let end = values.iter().rposition(|value| *value != Value::Null).map_or(0, |at| at + 1);
        self.length(end);
        for value in values.iter().take(end) {
            match value {
                Value::Null => self.0.push(0),
                Value::Integer(number) => {
                    self.0.push(1);
                    self.0.extend_from_slice(&number.to_le_bytes());
                }
                Value::Text(text) => {
                    self.0.push(2);
                    self.length(text.len());
                    self.0.extend_from_slice(text.as_bytes());
                }
                Value::Blob(bytes) => {
                    self.0.push(3);
                    self.length(bytes.len());
                    self.0.extend_from_slice(bytes);
                }
            }
        }
    }

    fn length(&mut self, length: usize) {
        self.0.extend_from_slice(&u64::try_from(length).unwrap_or(u64::MAX).to_le_bytes());
    }
}

/// What is hashed of a call.
pub(super) fn canonical_call<'a>(
    seq: i64,
    values: &[Value<'_>],
    attempts: impl IntoIterator<Item = impl AsRef<[Value<'a>]>>,
) -> Canonical {
    let mut form = Canonical::of(Kind::Call);
    form.list(&[Value::Integer(seq)]);
    form.list(values);
    for attempt in attempts {
        form.list(attempt.as_ref());
    }
    form
}

/// What is hashed of an entry.
pub(super) fn canonical_entry(seq: i64, values: &[Value<'_>]) -> Canonical {
    let mut form = Canonical::of(Kind::Entry);
    form.list(&[Value::Integer(seq)]);
    form.list(values);
    form
}

/// What a row is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Call = 1,
    Entry = 2,
}

/// The keys of a ledger, all from one secret. What is made with one cannot be used for another.
pub(super) struct LedgerKey {
    rows: hmac::Key,
    heads: hmac::Key,
    digests: hmac::Key,
    signer: Option<Ed25519KeyPair>,
    id: [u8; 8],
}

impl fmt::Debug for LedgerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LedgerKey")
    }
}

impl LedgerKey {
    pub(super) fn new(secret: &[u8; KEY_LENGTH]) -> Self {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let derived = |use_: &str| hmac::sign(&secret, use_.as_bytes());
        let key = |use_: &str| hmac::Key::new(hmac::HMAC_SHA256, derived(use_).as_ref());
        let mut id = [0; 8];
        id.iter_mut()
            .zip(derived("switchyard ledger id").as_ref())
            .for_each(|(to, from)| *to = *from);
        Self {
            rows: key("switchyard ledger rows"),
            heads: key("switchyard ledger heads"),
            digests: key("switchyard ledger digests"),
            signer: Ed25519KeyPair::from_seed_unchecked(
                derived("switchyard ledger checkpoints").as_ref(),
            )
            .ok(),
            id,
        }
    }

    /// Tells keys apart, and nothing more of them.
    pub(super) const fn id(&self) -> [u8; 8] {
        self.id
    }

    /// The hash of a row after one with the hash `before`.
    pub(super) fn link(&self, before: &Hash, row: &Canonical) -> Hash {
        tag(&self.rows, &[b"row v1", before, &row.0])
    }

    /// What comes before the first row of a chain that begins after row `base`.
    pub(super) fn genesis(&self, chain: &[u8], base: i64) -> Hash {
        tag(&self.heads, &[b"genesis v1", chain, &base.to_le_bytes()])
    }

    /// What the beginning and the end of a chain are marked with: numbers and hashes of the last row
    /// before it and of its last.
    pub(super) fn ends(&self, chain: &[u8], base: (i64, &Hash), head: (i64, &Hash)) -> Hash {
        let (first, last) = (base.0.to_le_bytes(), head.0.to_le_bytes());
        tag(&self.heads, &[b"ends v1", chain, &first, base.1, &last, head.1])
    }

    /// What binds a row that waits outside the database to its place there.
    pub(super) fn spooled(&self, spool: &str, at: u64, row: &[u8]) -> Hash {
        let length = u64::try_from(spool.len()).unwrap_or(u64::MAX);
        let (length, at) = (length.to_le_bytes(), at.to_le_bytes());
        tag(&self.heads, &[b"spool v1", &length, spool.as_bytes(), &at, row])
    }

    /// What binds an export of rows, the last of which is `seq`, to what stands in it.
    pub(super) fn exported(&self, sum: &[u8], rows: u64, seq: i64, hash: &Hash) -> Hash {
        tag(&self.heads, &[b"export v1", sum, &rows.to_le_bytes(), &seq.to_le_bytes(), hash])
    }

    /// What makes digests of payloads as they are received.
    pub(super) fn digester(&self) -> Digester {
        Digester(self.digests.clone())
    }

    /// A digest of what is kept of a call's payloads; `None` when nothing is.
    pub(super) fn kept(&self, arguments: Option<&str>, result: Option<&str>) -> Option<Hash> {
        if arguments.is_none() && result.is_none() {
            return None;
        }
        let mut form = Canonical(Vec::new());
        form.list(&[Value::maybe_text(arguments), Value::maybe_text(result)]);
        Some(tag(&self.digests, &[b"kept v1", &form.0]))
    }

    /// The signature of a checkpoint and the key to check it with; `None` cannot happen with a
    /// secret of the right length.
    pub(super) fn sign(&self, text: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
        let signer = self.signer.as_ref()?;
        Some((signer.sign(text).as_ref().to_vec(), signer.public_key().as_ref().to_vec()))
    }

    /// Whether this key signed `text`.
    pub(super) fn has_signed(&self, text: &[u8], signature: &[u8]) -> bool {
        let public = self.signer.as_ref().map(|signer| signer.public_key().as_ref().to_vec());
        public.is_some_and(|public| {
            UnparsedPublicKey::new(&ED25519, public).verify(text, signature).is_ok()
        })
    }
}

/// Makes digests of what a call was given or gave. Keyed, because a plain one of something short can
/// be guessed.
#[derive(Clone)]
pub struct Digester(hmac::Key);

impl fmt::Debug for Digester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digester")
    }
}

impl Digester {
    /// The digest of a payload of `length` bytes, of which `start` is the beginning that was held.
    #[must_use]
    pub fn digest(&self, start: &[u8], length: u64) -> Hash {
        tag(&self.0, &[b"payload v1", &length.to_le_bytes(), start])
    }

    /// The digest of a text that somebody searched for, which tells alike searches and not what they were.
    #[must_use]
    pub fn searched(&self, text: &str) -> Hash {
        tag(&self.0, &[b"search v1", text.as_bytes()])
    }
}

fn tag(key: &hmac::Key, parts: &[&[u8]]) -> Hash {
    let mut context = hmac::Context::with_key(key);
    for part in parts {
        context.update(part);
    }
    let mut hash = [0; 32];
    hash.iter_mut().zip(context.sign().as_ref()).for_each(|(to, from)| *to = *from);
    hash
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value() -> impl Strategy<Value = Value<'static>> {
        prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::Integer),
            "[a\\x00\\x01\\x02\\x03]{0,9}".prop_map(Value::text),
            proptest::collection::vec(0_u8..4, 0..9).prop_map(|bytes| Value::Blob(bytes.into())),
        ]
    }

    fn lists() -> impl Strategy<Value = Vec<Vec<Value<'static>>>> {
        proptest::collection::vec(proptest::collection::vec(value(), 0..4), 0..4)
    }

    /// Without the nulls at the end, which are not told.
    fn told(lists: &[Vec<Value<'static>>]) -> Vec<Vec<Value<'static>>> {
        let end =
            |list: &Vec<_>| list.iter().rposition(|v| *v != Value::Null).map_or(0, |at| at + 1);
        lists.iter().map(|list| list.iter().take(end(list)).cloned().collect()).collect()
    }

    fn form(kind: Kind, lists: &[Vec<Value<'static>>]) -> Canonical {
        let mut form = Canonical::of(kind);
        lists.iter().for_each(|list| form.list(list));
        form
    }

    proptest! {
        /// Different rows have different forms; the small alphabet makes confusions likely.
        #[test]
        fn the_canonical_form_is_injective(one in lists(), other in lists()) {
            let same = told(&one) == told(&other);
            prop_assert_eq!(form(Kind::Call, &one) == form(Kind::Call, &other), same);
            prop_assert_ne!(form(Kind::Call, &one), form(Kind::Entry, &one));
        }
    }

    #[test]
    fn the_digest_of_payloads_is_where_it_is_looked_for() {
        assert_eq!(CALL_COLUMNS[PAYLOAD_DIGEST], "payload_digest");
    }

    #[test]
    fn a_hash_depends_on_key_row_and_what_was_before() {
        let (key, other) = (LedgerKey::new(&[1; 32]), LedgerKey::new(&[2; 32]));
        let (row, another) = (Canonical::of(Kind::Call), Canonical::of(Kind::Entry));
        let hash = key.link(&[0; 32], &row);
        assert_eq!(hash, LedgerKey::new(&[1; 32]).link(&[0; 32], &row));
        for different in
            [other.link(&[0; 32], &row), key.link(&[1; 32], &row), key.link(&[0; 32], &another)]
        {
            assert_ne!(hash, different);
        }
        assert_ne!(key.id(), other.id());
        assert_ne!(key.genesis(b"a", 0), key.genesis(b"a", 1));
        let ends =
            |chain: &[u8], base: i64, head: i64| key.ends(chain, (base, &hash), (head, &hash));
        for different in [ends(b"b", 1, 2), ends(b"a", 0, 2), ends(b"a", 1, 3)] {
            assert_ne!(ends(b"a", 1, 2), different);
        }
    }

    #[test]
    fn digests_tell_lengths_and_places_apart() {
        let key = LedgerKey::new(&[1; 32]);
        let digester = key.digester();
        assert_ne!(digester.digest(b"abc", 3), digester.digest(b"abc", 4));
        assert_eq!(digester.searched("abc"), key.digester().searched("abc"));
        assert_ne!(digester.searched("abc"), digester.searched("abd"));
        assert_ne!(digester.searched("abc"), digester.digest(b"abc", 3));
        assert_eq!(key.kept(None, None), None);
        assert_ne!(key.kept(Some("a"), None), key.kept(None, Some("a")));
        assert_ne!(key.kept(Some("ab"), Some("c")), key.kept(Some("a"), Some("bc")));
    }

    #[test]
    fn a_checkpoint_is_signed_for_whoever_has_the_public_key() {
        let key = LedgerKey::new(&[1; 32]);
        let (signature, public) = key.sign(b"text").unwrap();
        let outside = UnparsedPublicKey::new(&ED25519, &public);
        assert!(outside.verify(b"text", &signature).is_ok());
        assert!(key.has_signed(b"text", &signature) && !key.has_signed(b"texT", &signature));
        assert!(!LedgerKey::new(&[2; 32]).has_signed(b"text", &signature));
    }
}
