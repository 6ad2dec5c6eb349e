//! From a server's specification to what connections are opened with.
//!
//! Changes when a specification says more of how a server is reached.

use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::config::{Environment, expand};
use crate::model::{
    Dialect, Secret, ServerName, ServerSettings, ServerSpec, TransportKind, TransportSpec,
};
use crate::pool::{Children, ConnectOptions, Hearing, Target};

/// How long a server may think about the first message in the modern era before it is taken for
/// one that does not know it.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// How connections of a server are opened.
#[must_use]
pub fn connect_options(
    name: &ServerName,
    spec: &ServerSpec,
    settings: &ServerSettings,
    known_dialect: Option<Dialect>,
    children: Children,
) -> ConnectOptions {
    ConnectOptions {
        server: name.clone(),
        connect_timeout: opening(spec, settings),
        max_response_size: settings.max_response_size,
        max_events: settings.max_events,
        stall_timeout: settings.stall_timeout,
        known_dialect,
        hearing: Hearing::default(),
        probe_timeout: PROBE_TIMEOUT,
        children,
    }
}

/// How long a step of the opening may take.
fn opening(spec: &ServerSpec, settings: &ServerSettings) -> Duration {
    // A child may have to be fetched and unpacked before it answers; its first answer has as
    // long as any other.
    match spec.transport.kind() {
        TransportKind::Stdio => settings.connect_timeout.max(settings.timeout),
        TransportKind::Http | TransportKind::Sse | TransportKind::Jsonrpc => {
            settings.connect_timeout
        }
    }
}

/// Whether connections of a server with the one specification and its settings are what the other
/// asks for, too. All that [`connect_options`], [`target`] and isolated sessions are made by counts.
pub(super) fn same_way(
    (old, before): (&ServerSpec, &ServerSettings),
    (new, now): (&ServerSpec, &ServerSettings),
) -> bool {
    let numbers = |spec: &ServerSpec, settings: &ServerSettings| {
        (
            opening(spec, settings),
            settings.max_response_size,
            settings.max_events,
            settings.stall_timeout,
            settings.max_sessions,
            settings.session_idle_timeout,
        )
    };
    old.transport == new.transport
        && old.sessions == new.sessions
        && numbers(old, before) == numbers(new, now)
}

/// The specification with every reference expanded; lives in memory only.
///
/// # Errors
/// A text that says what cannot be used.
pub fn target(spec: &ServerSpec, environment: &Environment) -> Result<Target, String> {
    let expand = |text: &str| expand::expand(text, environment).map_err(|error| error.to_string());
    let headers = |written: &std::collections::BTreeMap<String, String>| {
        written
            .iter()
            .map(|(name, value)| {
                let parsed = HeaderName::from_bytes(name.as_bytes())
                    .ok()
                    .ok_or_else(|| format!("`{name}` is not a header name"))?;
                let mut value = HeaderValue::from_str(&expand(value)?).ok().ok_or_else(|| {
                    format!(
                        "the value of header `{name}` has characters that a header must not have"
                    )
                })?;
                value.set_sensitive(true);
                Ok((parsed, value))
            })
            .collect::<Result<Vec<_>, String>>()
    };
    let url = |written: &str| {
        let expanded = expand(written)?;
        let url =
            url::Url::parse(&expanded).map_err(|error| format!("the url is not one: {error}"))?;
        match url.scheme() {
            "http" | "https" if url.has_host() => Ok(url),
            scheme => Err(format!("the url begins with `{scheme}:`; http and https are spoken")),
        }
    };
    Ok(match &spec.transport {
        TransportSpec::Http { url: written, headers: list } => {
            Target::Http { url: url(written)?, headers: headers(list)? }
        }
        TransportSpec::Sse { url: written, headers: list } => {
            Target::Sse { url: url(written)?, headers: headers(list)? }
        }
        TransportSpec::Jsonrpc { url: written, headers: list } => {
            Target::Jsonrpc { url: url(written)?, headers: headers(list)? }
        }
        TransportSpec::Stdio { command, args, env, cwd } => Target::Stdio {
            command: expand(command)?,
            args: args.iter().map(|arg| expand(arg)).collect::<Result<_, _>>()?,
            env: env
                .iter()
                .map(|(name, value)| Ok((name.clone(), Secret::new(expand(value)?))))
                .collect::<Result<_, String>>()?,
            cwd: cwd.as_deref().map(|cwd| expand(cwd).map(Into::into)).transpose()?,
        },
    })
}
