//! Lists ready to send, whole or in pages. PURE.
//!
//! Changes when the form of a list or of its cursors changes.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{BufMut as _, Bytes, BytesMut};
use ring::digest::{SHA256, digest};

/// The lists that the router offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OfferedList {
    /// `tools/list`.
    Tools,
    /// `prompts/list`.
    Prompts,
    /// `resources/list`.
    Resources,
    /// `resources/templates/list`.
    Templates,
}

impl OfferedList {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Tools, Self::Prompts, Self::Resources, Self::Templates];

    /// The method that asks for it.
    #[must_use]
    pub const fn method(self) -> &'static str {
        match self {
            Self::Tools => "tools/list",
            Self::Prompts => "prompts/list",
            Self::Resources => "resources/list",
            Self::Templates => "resources/templates/list",
        }
    }

    /// The member of the result that has its elements.
    #[must_use]
    pub const fn member(self) -> &'static str {
        match self {
            Self::Tools => "tools",
            Self::Prompts => "prompts",
            Self::Resources => "resources",
            Self::Templates => "resourceTemplates",
        }
    }

    /// The member of an element that identifies it.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::Tools | Self::Prompts => "name",
            Self::Resources => "uri",
            Self::Templates => "uriTemplate",
        }
    }

    /// What one element is called, for messages.
    #[must_use]
    pub const fn noun(self) -> &'static str {
        match self {
            Self::Tools => "tool",
            Self::Prompts => "prompt",
            Self::Resources => "resource",
            Self::Templates => "resource template",
        }
    }

    /// Its number in a cursor.
    const fn number(self) -> u8 {
        match self {
            Self::Tools => 0,
            Self::Prompts => 1,
            Self::Resources => 2,
            Self::Templates => 3,
        }
    }
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// JSON objects with commas between.
    pub items: Bytes,
    /// Where the next page begins; `None` after the last.
    pub next_cursor: Option<String>,
}

/// The cursor is not one that leads anywhere now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    /// It was never handed out for this list.
    #[error("the cursor is not one of this list's; begin again without a cursor")]
    Unknown,
    /// It was handed out for a list that is no longer the same.
    #[error("the list has changed since the cursor was given; begin again without a cursor")]
    Changed,
}

/// The first byte of a cursor: its form.
const FORM: u8 = 1;
/// Form, list, fingerprint, offset.
const CURSOR: usize = 1 + 1 + 8 + 4;

/// The elements of one list, ready to send.
#[derive(Debug, Clone, Default)]
pub(super) struct Listing {
    bytes: Bytes,
    /// Where each element begins.
    starts: Vec<usize>,
    fingerprint: [u8; 8],
}

impl Listing {
    /// Puts the elements together.
    pub(super) fn new<'a>(items: impl Iterator<Item = &'a Bytes> + Clone) -> Self {
        let size: usize = items.clone().map(|item| item.len() + 1).sum();
        let mut bytes = BytesMut::with_capacity(size);
        let mut starts = Vec::new();
        for item in items {
            if !starts.is_empty() {
                bytes.put_u8(b',');
            }
            starts.push(bytes.len());
            bytes.extend_from_slice(item);
        }
        let mut fingerprint = [0; 8];
        for (to, from) in fingerprint.iter_mut().zip(digest(&SHA256, &bytes).as_ref()) {
            *to = *from;
        }
        Self { bytes: bytes.freeze(), starts, fingerprint }
    }

    /// All elements: JSON objects with commas between.
    pub(super) const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The first eight bytes of the SHA-256 of all elements.
    pub(super) const fn fingerprint(&self) -> [u8; 8] {
        self.fingerprint
    }

    /// The page of at most `size` elements that begins at `cursor`, or the first one.
    pub(super) fn page(
        &self,
        list: OfferedList,
        cursor: Option<&str>,
        size: usize,
    ) -> Result<Page, CursorError> {
        let size = size.max(1);
        let offset = match cursor {
            None => 0,
            Some(cursor) => self.offset(list, cursor, size)?,
        };
        let next = offset.saturating_add(size);
        let start = self.starts.get(offset).copied().unwrap_or(0);
        // Before the next page's first element stands a comma.
        let end = self.starts.get(next).map_or(self.bytes.len(), |start| start.saturating_sub(1));
        let next_cursor = (next < self.starts.len()).then(|| self.cursor(list, next));
        Ok(Page { items: self.bytes.slice(start..end), next_cursor })
    }

    fn cursor(&self, list: OfferedList, offset: usize) -> String {
        let mut out = Vec::with_capacity(CURSOR);
        out.push(FORM);
        out.push(list.number());
        out.extend_from_slice(&self.fingerprint);
        out.extend_from_slice(&u32::try_from(offset).unwrap_or(u32::MAX).to_be_bytes());
        URL_SAFE_NO_PAD.encode(out)
    }

    fn offset(&self, list: OfferedList, cursor: &str, size: usize) -> Result<usize, CursorError> {
        let known =
            URL_SAFE_NO_PAD.decode(cursor).ok().filter(|bytes| bytes.len() == CURSOR).and_then(
                |bytes| {
                    let rest = bytes.strip_prefix(&[FORM, list.number()])?;
                    let (fingerprint, offset) = rest.split_first_chunk::<8>()?;
                    let offset = u32::from_be_bytes(offset.try_into().ok()?);
                    Some((*fingerprint, usize::try_from(offset).ok()?))
                },
            );
        let (fingerprint, offset) = known.ok_or(CursorError::Unknown)?;
        if fingerprint != self.fingerprint {
            return Err(CursorError::Changed);
        }
        let begins_a_page = offset > 0 && offset < self.starts.len() && offset % size == 0;
        if begins_a_page { Ok(offset) } else { Err(CursorError::Unknown) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIST: OfferedList = OfferedList::Prompts;

    fn listing(count: usize) -> (Listing, Vec<String>) {
        let items: Vec<String> = (0..count).map(|at| format!(r#"{{"n":{at}}}"#)).collect();
        let bytes: Vec<Bytes> = items.iter().map(|item| Bytes::from(item.clone())).collect();
        (Listing::new(bytes.iter()), items)
    }

    #[test]
    fn a_list_that_fits_is_one_page_without_a_copy() {
        let (listing, items) = listing(3);
        let page = listing.page(LIST, None, 3).unwrap();
        assert_eq!(page.items, items.join(","));
        assert_eq!(page.items.as_ptr(), listing.bytes().as_ptr());
        assert_eq!(page.next_cursor, None);
        let empty = Listing::default().page(LIST, None, 1000).unwrap();
        assert_eq!((empty.items.len(), empty.next_cursor), (0, None));
    }

    #[test]
    fn a_cursor_leads_nowhere_in_another_list_or_after_a_change() {
        let (before, _) = listing(10);
        let (after, _) = listing(11);
        let cursor = before.page(LIST, None, 4).unwrap().next_cursor.unwrap();
        assert!(before.page(LIST, Some(&cursor), 4).is_ok());
        assert_eq!(after.page(LIST, Some(&cursor), 4), Err(CursorError::Changed));
        assert_eq!(before.page(OfferedList::Tools, Some(&cursor), 4), Err(CursorError::Unknown));
        assert_eq!(before.page(LIST, Some(&cursor), 3), Err(CursorError::Unknown));
        assert_eq!(before.page(LIST, Some(""), 4), Err(CursorError::Unknown));
    }

    proptest! {
        #[test]
        fn walking_the_pages_gives_each_element_once(count in 0..60_usize, size in 1..70_usize) {
            let (listing, items) = listing(count);
            let (mut seen, mut cursor, mut pages) = (Vec::new(), None, 0);
            loop {
                let page = listing.page(LIST, cursor.as_deref(), size).unwrap();
                let read: Vec<serde_json::Value> = serde_json::from_slice(
                    &[b"[", page.items.as_ref(), b"]"].concat()
                ).unwrap();
                prop_assert!(read.len() <= size);
                seen.extend(read.iter().map(ToString::to_string));
                pages += 1;
                cursor = page.next_cursor;
                if cursor.is_none() {
                    break;
                }
            }
            prop_assert_eq!(seen, items);
            prop_assert_eq!(pages, count.div_ceil(size).max(1));
        }

        #[test]
        fn what_was_not_handed_out_is_refused(text in ".{0,40}", bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            let (listing, _) = listing(20);
            prop_assert!(listing.page(LIST, Some(&text), 5).is_err());
            prop_assert!(listing.page(LIST, Some(&URL_SAFE_NO_PAD.encode(bytes)), 5).is_err());
        }

        #[test]
        fn an_offset_of_ones_own_is_refused(offset in any::<u32>()) {
            let (listing, _) = listing(20);
            let cursor = listing.cursor(LIST, usize::try_from(offset).unwrap());
            let page = listing.page(LIST, Some(&cursor), 5);
            prop_assert_eq!(page.is_ok(), [5, 10, 15].contains(&offset));
        }
    }
}
