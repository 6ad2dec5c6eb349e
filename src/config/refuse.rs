//! Values that are well formed and can never work, each with what to write in its place. PURE.

use std::path::Path;

use crate::redact::Pointer;

/// Why a header cannot have this value.
pub(super) fn header_value(header: &str, value: &str) -> Option<String> {
    value.chars().any(|c| c.is_control() && c != '\t').then(|| {
        format!("the value of header `{header}` has a line break or another control character; remove it")
    })
}

/// Why a program cannot have a variable of this name.
pub(super) fn env_name(name: &str) -> Option<String> {
    (name.is_empty() || name.contains(['=', '\0']))
        .then(|| format!("`{}` cannot be the name of a variable", name.escape_debug()))
}

/// Why a program cannot be given this text.
pub(super) fn program_text(text: &str) -> Option<String> {
    text.contains('\0').then(|| "a program cannot be given a NUL character; remove it".to_owned())
}

/// Why a text names no place in a document.
pub(super) fn pointer(text: &str) -> Option<String> {
    Pointer::parse(text).err().map(|error| format!("`{text}`: {error}"))
}

/// Why no browser ever sends this origin.
pub(super) fn origin(text: &str) -> Option<String> {
    let fine = text.split_once("://").is_some_and(|(scheme, authority)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
            && is_authority(authority)
    });
    (!fine).then(|| {
        format!("`{text}` is not an origin; write SCHEME://HOST or SCHEME://HOST:PORT without a path, such as https://app.example.com")
    })
}

/// Why no request ever names this host.
pub(super) fn host(text: &str) -> Option<String> {
    (!is_authority(text)).then(|| {
        format!("`{text}` is not a host name; write HOST or HOST:PORT without scheme and path, such as router.example.com")
    })
}

fn is_authority(text: &str) -> bool {
    let (host, rest) = match text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        Some(split) => split,
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let named = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    // An IPv6 address may also stand without brackets among host names.
    let address = text.parse::<std::net::Ipv6Addr>().is_ok();
    let port = rest.is_empty() || rest.strip_prefix(':').is_some_and(|p| p.parse::<u16>().is_ok());
    let bracketed = text.starts_with('[') && host.parse::<std::net::Ipv6Addr>().is_ok();
    address || (port && !host.is_empty() && (bracketed || host.bytes().all(named)))
}

/// Why the spool cannot be there: what keeps the database from being written would keep the spool, too.
pub(super) fn spool(path: &Path, data_dir: &Path) -> Option<String> {
    is_inside(path, data_dir).then(|| {
        "`spool` lies inside `data_dir`; name a file or folder outside, best on another disk"
            .to_owned()
    })
}

fn is_inside(path: &Path, folder: &Path) -> bool {
    let absolute = |path: &Path| std::path::absolute(path).ok();
    absolute(path).zip(absolute(folder)).is_some_and(|(path, folder)| path.starts_with(folder))
}

/// Why checkpoints cannot go there: who can change the ledger could change them as well.
pub(super) fn checkpoints(folder: &Path, data_dir: &Path) -> Option<String> {
    is_inside(folder, data_dir).then(|| {
        "`checkpoints` lies inside `data_dir`; name a folder outside, best on another machine or owned by another user".to_owned()
    })
}

/// Where spans are posted when the collector is at `text`, or why it cannot be there. Never says
/// the text, which may have a password in it.
pub(super) fn collector(text: &str) -> Result<http::Uri, String> {
    let wrong = |why: &str| {
        format!(
            "`otlp_endpoint` {why}; write the address of the collector, such as http://127.0.0.1:4318"
        )
    };
    let url = url::Url::parse(text.trim()).ok().ok_or_else(|| wrong("is not an address"))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(wrong("must begin with http:// or https://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("must not have a user or password in it: put them into `otlp_headers`"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("must not have a query or a fragment"));
    }
    let base = url.as_str().trim_end_matches('/');
    // The usual mistake: the address of the signal in the place of the base.
    let address = match base.ends_with("/v1/traces") {
        true => base.to_owned(),
        false => format!("{base}/v1/traces"),
    };
    address.parse().ok().ok_or_else(|| wrong("is not an address"))
}
