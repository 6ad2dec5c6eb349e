//! Sealing of literal secrets in server specifications, so that a copy of the database shows none.
//!
//! Changes when the way of sealing changes: the text carries a version. Knows nothing of SQL.

use std::io;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

use super::StoreError;
use super::key_file::{make_key, read_key};
use crate::model::{ServerName, ServerSpec};

const PREFIX: &str = "sealed:v1:";
/// Every text that begins so is taken for sealed when read, so a literal one must be sealed too.
const RESERVED: &str = "sealed:";
/// First words of an `Authorization` header, which are no secret.
const SCHEMES: [&str; 2] = ["bearer", "basic"];

/// Seals and opens values with the key file of the data folder.
pub(super) struct Sealer {
    path: PathBuf,
    /// Loaded or made when first needed: most registries hold references only.
    key: Mutex<Option<LessSafeKey>>,
}

impl Sealer {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, key: Mutex::new(None) }
    }

    /// A copy of `spec` for the database: literal header and env values sealed.
    pub(super) fn seal(
        &self,
        server: &ServerName,
        spec: &ServerSpec,
    ) -> Result<ServerSpec, StoreError> {
        let mut sealed = spec.clone();
        for (key, value) in sealed.transport.secret_values_mut() {
            if value.starts_with(RESERVED) || has_literal(value) {
                *value = self.seal_value(server, key, value)?;
            }
        }
        Ok(sealed)
    }

    /// Opens what [`Self::seal`] sealed, in place. What does not open stays sealed, the rest is
    /// opened all the same.
    ///
    /// # Errors
    /// The first value that did not open.
    pub(super) fn open(&self, server: &str, spec: &mut ServerSpec) -> Result<(), StoreError> {
        let mut problem = None;
        for (key, value) in spec.transport.secret_values_mut() {
            if value.starts_with(RESERVED) {
                match self.open_value(server, key, value) {
                    Ok(opened) => *value = opened,
                    Err(error) => problem = problem.or(Some(error)),
                }
            }
        }
        problem.map_or(Ok(()), Err)
    }

    fn seal_value(
        &self,
        server: &ServerName,
        key: &str,
        value: &str,
    ) -> Result<String, StoreError> {
        self.with_key(KeyFile::MayBeMade, |cipher| {
            let mut nonce = [0; NONCE_LEN];
            SystemRandom::new().fill(&mut nonce).map_err(|_unspecified| self.no_random())?;
            let mut sealed = value.as_bytes().to_vec();
            cipher
                .seal_in_place_append_tag(
                    Nonce::assume_unique_for_key(nonce),
                    associated(server.as_str(), key),
                    &mut sealed,
                )
                .map_err(|_unspecified| self.error("a value is too long to be sealed"))?;
            let mut bytes = nonce.to_vec();
            bytes.append(&mut sealed);
            Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
        })
    }

    fn open_value(&self, server: &str, key: &str, value: &str) -> Result<String, StoreError> {
        let damaged = || StoreError::Sealed { server: server.to_owned(), key: key.to_owned() };
        let bytes = value
            .strip_prefix(PREFIX)
            .and_then(|text| URL_SAFE_NO_PAD.decode(text).ok())
            .ok_or_else(damaged)?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE_LEN>().ok_or_else(damaged)?;
        let mut sealed = sealed.to_vec();
        self.with_key(KeyFile::MustExist, |cipher| {
            let opened = cipher
                .open_in_place(
                    Nonce::assume_unique_for_key(*nonce),
                    associated(server, key),
                    &mut sealed,
                )
                .map_err(|_unspecified| damaged())?;
            String::from_utf8(opened.to_vec()).map_err(|_not_text| damaged())
        })
    }

    fn with_key<T>(
        &self,
        file: KeyFile,
        use_key: impl FnOnce(&LessSafeKey) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut slot = self.key.lock();
        if slot.is_none() {
            let bytes = match (read_key(&self.path), file) {
                (Ok(bytes), _) => bytes,
                (Err(error), KeyFile::MayBeMade) if error.kind() == io::ErrorKind::NotFound => {
                    make_key(&self.path).map_err(|source| StoreError::Files {
                        action: "create",
                        path: self.path.clone(),
                        source,
                    })?
                }
                (Err(error), KeyFile::MustExist) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(self.error("it is missing"));
                }
                (Err(source), _) => {
                    return Err(StoreError::Files {
                        action: "read",
                        path: self.path.clone(),
                        source,
                    });
                }
            };
            let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes)
                .map_err(|_unspecified| self.error("it does not hold 32 bytes"))?;
            *slot = Some(LessSafeKey::new(key));
        }
        match slot.as_ref() {
            Some(key) => use_key(key),
            None => Err(self.error("it does not hold 32 bytes")),
        }
    }

    fn error(&self, reason: &'static str) -> StoreError {
        StoreError::SealKey { path: self.path.clone(), reason }
    }

    fn no_random(&self) -> StoreError {
        self.error("the system gives no random numbers")
    }
}

#[derive(Clone, Copy)]
enum KeyFile {
    MayBeMade,
    MustExist,
}

/// Binds a sealed value to its place, so that it cannot be moved to another server or header.
/// Neither a server's nor a header's name can hold a line feed.
fn associated(server: &str, key: &str) -> Aad<Vec<u8>> {
    Aad::from(format!("{server}\n{key}").into_bytes())
}

/// Whether `value` holds text that may be secret by itself: anything beside its references to the
/// environment and the scheme word before them, and a default inside of one.
///
/// In doubt it does: sealing a text that needs none only makes it harder to read.
fn has_literal(value: &str) -> bool {
    let is_scheme = |word: &str| SCHEMES.iter().any(|scheme| word.eq_ignore_ascii_case(scheme));
    let mut rest = match value.split_once(' ') {
        Some((word, rest)) if is_scheme(word) => rest,
        _ => value,
    };
    let mut references = 0;
    while let Some((before, after)) = rest.split_once("${") {
        let Some((inside, after)) = after.split_once('}') else { return true };
        if !before.trim().is_empty() || !is_bare_reference(inside) {
            return true;
        }
        references += 1;
        rest = after;
    }
    references == 0 || !rest.trim().is_empty()
}

/// `NAME`, `NAME:?message` and `NAME:-`, the first two as they are written for people.
fn is_bare_reference(inside: &str) -> bool {
    let inside = inside.strip_prefix("env:").unwrap_or(inside);
    let (name, otherwise) = inside.split_once(':').unwrap_or((inside, "?"));
    let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    is_name && (otherwise == "-" || otherwise.starts_with('?'))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::model::TransportSpec;

    fn spec(values: &[(&str, &str)]) -> ServerSpec {
        let headers: BTreeMap<String, String> =
            values.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        ServerSpec::new(TransportSpec::Http { url: "http://localhost/".to_owned(), headers })
    }

    #[test]
    fn only_what_holds_nothing_but_references_stays_readable() {
        for (text, expected) in [
            ("${TOKEN}", false),
            ("${env:TOKEN}", false),
            ("Bearer ${TOKEN}", false),
            ("basic ${USER}", false),
            ("${A} ${B}", false),
            ("${TOKEN:-}", false),
            ("${TOKEN:?set it, it is the one from the portal}", false),
            ("${NOSUCH:-secret}", true),
            ("Bearer ${NOSUCH:-secret}", true),
            ("${A}${NOSUCH:-secret}", true),
            ("secret${TOKEN}", true),
            ("${TOKEN}secret", true),
            ("Bearer secret ${TOKEN}", true),
            ("Token ${TOKEN}", true),
            ("Bearer secret", true),
            ("Bearer ", true),
            ("$${TOKEN}", true),
            ("$$${TOKEN}", true),
            ("${TOKEN", true),
            ("${a secret}", true),
            ("${TOKEN:secret}", true),
            ("$TOKEN", true),
            ("a$", true),
            ("", true),
        ] {
            assert_eq!(has_literal(text), expected, "{text}");
        }
    }

    #[test]
    fn what_opens_is_opened_beside_what_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let sealer = Sealer::new(folder.path().join("seal.key"));
        let name = ServerName::parse("github").unwrap();
        let mut sealed = sealer.seal(&name, &spec(&[("a", "first"), ("b", "second")])).unwrap();
        for (key, value) in sealed.transport.secret_values_mut() {
            if key == "a" {
                *value = "sealed:v1:bm90aGluZw".to_owned();
            }
        }
        let opened = sealer.open("github", &mut sealed);
        assert!(matches!(opened, Err(StoreError::Sealed { key, .. }) if key == "a"));
        assert_eq!(sealed, spec(&[("a", "sealed:v1:bm90aGluZw"), ("b", "second")]));
    }

    #[test]
    fn what_is_sealed_opens_again_and_references_stay_readable() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seal.key");
        let name = ServerName::parse("github").unwrap();
        let plain = spec(&[
            ("authorization", "Bearer ghp_verysecret"),
            ("x-reference", "Bearer ${TOKEN}"),
            ("x-escaped", "cost $${5}"),
            ("x-odd", "sealed:v1:not really"),
            ("x-odd-reference", "sealed:${TOKEN}"),
            ("x-empty", ""),
        ]);
        let sealed = Sealer::new(path.clone()).seal(&name, &plain).unwrap();
        let text = serde_json::to_string(&sealed).unwrap();
        assert!(!text.contains("ghp_verysecret") && !text.contains("not really"), "{text}");
        assert!(text.contains("Bearer ${TOKEN}"), "{text}");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut opened = sealed;
        Sealer::new(path).open("github", &mut opened).unwrap();
        assert_eq!(opened, plain);
    }

    #[test]
    fn a_value_does_not_open_elsewhere_or_with_another_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seal.key");
        let name = ServerName::parse("github").unwrap();
        let sealed = Sealer::new(path.clone()).seal(&name, &spec(&[("a", "literal")])).unwrap();
        let moved = Sealer::new(path.clone()).open("other", &mut sealed.clone());
        assert!(matches!(moved, Err(StoreError::Sealed { .. })), "{moved:?}");
        fs::write(&path, [7; 32]).unwrap();
        let rekeyed = Sealer::new(path.clone()).open("github", &mut sealed.clone());
        assert!(matches!(rekeyed, Err(StoreError::Sealed { .. })), "{rekeyed:?}");
        fs::write(&path, [7; 31]).unwrap();
        let short = Sealer::new(path.clone()).open("github", &mut sealed.clone());
        assert!(matches!(short, Err(StoreError::SealKey { .. })), "{short:?}");
        fs::remove_file(&path).unwrap();
        let missing = Sealer::new(path.clone()).open("github", &mut { sealed });
        assert!(matches!(missing, Err(StoreError::SealKey { .. })), "{missing:?}");
        assert!(!path.exists(), "reading must not make a new key");
    }
}
