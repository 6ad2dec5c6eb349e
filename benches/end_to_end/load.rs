//! The load generator: minimal HTTP/1.1 with keep-alive over raw sockets, so that it costs little
//! beside what it measures. Every answer is checked: status, id, and the text that was sent.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures_util::future::{join_all, try_join_all};
use memchr::memmem;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::process;

/// Length of the text that is echoed.
pub(crate) const TEXT_BYTES: usize = 200;
const VERSION: &str = "2025-11-25";
/// Ids of this many digits keep the request's length constant.
const FIRST_ID: u64 = 1_000_000_000;
const ID_DIGITS: usize = 10;
/// A call that takes longer has failed.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// Where to call, and what.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) tool: String,
    pub(crate) session: Option<String>,
}

/// What one target did in one round.
#[derive(Debug)]
pub(crate) struct Slice {
    pub(crate) calls: u64,
    pub(crate) seconds: f64,
    /// What the load generator itself used.
    pub(crate) own_cpu_seconds: f64,
    /// Sorted.
    pub(crate) latencies_ns: Vec<u64>,
}

impl Slice {
    pub(crate) fn quantile_us(&self, quantile: f64) -> f64 {
        let last = self.latencies_ns.len().saturating_sub(1);
        let at = (last as f64 * quantile).round() as usize;
        self.latencies_ns.get(at).map_or(f64::NAN, |ns| *ns as f64 / 1e3)
    }
}

#[derive(Deserialize)]
struct Answer<'a> {
    id: u64,
    #[serde(borrow)]
    result: Option<CallResult<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CallResult<'a> {
    #[serde(borrow, default)]
    content: Vec<Content<'a>>,
    #[serde(default)]
    is_error: bool,
}

#[derive(Deserialize)]
struct Content<'a> {
    #[serde(borrow, default)]
    text: Cow<'a, str>,
}

impl Endpoint {
    pub(crate) fn new(address: SocketAddr, tool: &str) -> Self {
        Self {
            address,
            host: address.to_string(),
            path: "/mcp".to_owned(),
            tool: tool.to_owned(),
            session: None,
        }
    }

    /// From `http://ADDRESS:PORT/PATH`.
    pub(crate) fn from_url(url: &str, tool: &str) -> Result<Self> {
        let url = url::Url::parse(url).with_context(|| format!("`{url}` is not a URL"))?;
        if url.scheme() != "http" {
            bail!("`{url}`: only http is measured");
        }
        let address = url.socket_addrs(|| None)?.first().copied().context("no address")?;
        Ok(Self {
            address,
            host: format!("{}:{}", url.host_str().unwrap_or_default(), address.port()),
            path: url.path().to_owned(),
            tool: tool.to_owned(),
            session: None,
        })
    }

    /// The legacy handshake; remembers the session's id if one is given.
    pub(crate) async fn initialize(&mut self) -> Result<()> {
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"initialize","params":{{"protocolVersion":"{VERSION}","capabilities":{{}},"clientInfo":{{"name":"bench","version":"1"}}}}}}"#
        );
        let mut connection = Connection::open(self).await?;
        let answer = connection.exchange(&self.request(&body)).await?;
        if answer.status != 200 {
            bail!("initialize was answered with status {}", answer.status);
        }
        self.session = answer.session;
        let body = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        let answer = connection.exchange(&self.request(body)).await?;
        if !(200..300).contains(&answer.status) {
            bail!("notifications/initialized was answered with status {}", answer.status);
        }
        Ok(())
    }

    /// One call on a connection of its own.
    pub(crate) async fn call_once(&self) -> Result<()> {
        Caller::open(self, 0).await?.call().await
    }

    fn request(&self, body: &str) -> Vec<u8> {
        let mut head = format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\nMCP-Protocol-Version: {VERSION}\r\nContent-Length: {}\r\n",
            self.path,
            self.host,
            body.len()
        );
        if let Some(session) = &self.session {
            head.push_str("Mcp-Session-Id: ");
            head.push_str(session);
            head.push_str("\r\n");
        }
        head.push_str("\r\n");
        head.push_str(body);
        head.into_bytes()
    }
}

/// Calls over so many connections until `time` or `calls` is used up. Connections are open and have
/// answered once before the clock starts.
pub(crate) async fn run(
    endpoint: &Endpoint,
    connections: usize,
    time: Duration,
    calls: u64,
) -> Result<Slice> {
    let opened = (0..connections).map(|number| async move {
        let mut caller = Caller::open(endpoint, number as u64).await?;
        caller.call().await?;
        anyhow::Ok(caller)
    });
    let callers = try_join_all(opened).await?;
    let share = calls.div_ceil(connections as u64);
    let own_cpu = process::own_cpu_seconds();
    let started = Instant::now();
    let end = started + time;
    let done = try_join_all(callers.into_iter().map(|caller| caller.until(end, share))).await?;
    let seconds = started.elapsed().as_secs_f64();
    let own_cpu_seconds = process::own_cpu_seconds() - own_cpu;
    let mut latencies_ns: Vec<u64> = done.into_iter().flatten().collect();
    latencies_ns.sort_unstable();
    Ok(Slice { calls: latencies_ns.len() as u64, seconds, own_cpu_seconds, latencies_ns })
}

/// Calls over so many connections until they are cut off; how many were answered.
pub(crate) async fn until_cut(endpoint: &Endpoint, connections: usize) -> Result<u64> {
    let opened = (0..connections).map(|number| Caller::open(endpoint, number as u64));
    let callers = try_join_all(opened).await?;
    let answered = join_all(callers.into_iter().map(|mut caller| async move {
        let mut answered = 0;
        while caller.call().await.is_ok() {
            answered += 1;
        }
        answered
    }));
    Ok(answered.await.into_iter().sum())
}

/// One connection with a request whose id and text change from call to call.
struct Caller {
    connection: Connection,
    request: Vec<u8>,
    id_at: usize,
    text_at: usize,
    next: u64,
}

impl Caller {
    async fn open(endpoint: &Endpoint, number: u64) -> Result<Self> {
        let text = "x".repeat(TEXT_BYTES);
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":{FIRST_ID},"method":"tools/call","params":{{"name":"{}","arguments":{{"text":"{text}"}}}}}}"#,
            endpoint.tool
        );
        let request = endpoint.request(&body);
        let id = FIRST_ID.to_string();
        let id_at = memmem::find(&request, id.as_bytes()).context("no id in the request")?;
        let text_at = memmem::find(&request, text.as_bytes()).context("no text in the request")?;
        let connection = tokio::time::timeout(CALL_LIMIT, Connection::open(endpoint)).await??;
        // Distinct among the connections too: the answer of another one would be noticed.
        Ok(Self { connection, request, id_at, text_at, next: FIRST_ID + number * 10_000_000 })
    }

    async fn until(mut self, end: Instant, calls: u64) -> Result<Vec<u64>> {
        let mut latencies = Vec::with_capacity(65_536);
        let mut before = Instant::now();
        while before < end && (latencies.len() as u64) < calls {
            self.call().await?;
            let after = Instant::now();
            latencies.push((after - before).as_nanos() as u64);
            before = after;
        }
        Ok(latencies)
    }

    async fn call(&mut self) -> Result<()> {
        let id = self.next;
        self.next += 1;
        let digits = id.to_string();
        self.request[self.id_at..self.id_at + ID_DIGITS].copy_from_slice(digits.as_bytes());
        self.request[self.text_at..self.text_at + ID_DIGITS].copy_from_slice(digits.as_bytes());
        let answer = self.connection.exchange(&self.request).await?;
        let text = &self.request[self.text_at..self.text_at + TEXT_BYTES];
        check(&answer, id, text)
    }
}

fn check(answer: &Received<'_>, id: u64, text: &[u8]) -> Result<()> {
    let shown = || String::from_utf8_lossy(&answer.body[..answer.body.len().min(400)]).into_owned();
    if answer.status != 200 {
        bail!("status {}: {}", answer.status, shown());
    }
    let body = if answer.event_stream { last_event(&answer.body)? } else { answer.body.clone() };
    let parsed: Answer<'_> = serde_json::from_slice(&body).with_context(shown)?;
    let result = parsed.result.with_context(shown)?;
    let same = result.content.first().is_some_and(|content| content.text.as_bytes() == text);
    if parsed.id != id || result.is_error || !same {
        bail!("call {id} got the answer of another: {}", shown());
    }
    Ok(())
}

/// The data of the last event that has any.
fn last_event(body: &[u8]) -> Result<Cow<'_, [u8]>> {
    let text = std::str::from_utf8(body)?;
    let line = text.lines().filter_map(|line| line.strip_prefix("data:")).next_back();
    let line = line.with_context(|| format!("an event stream without data: {text}"))?;
    Ok(Cow::Borrowed(line.trim().as_bytes()))
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    filled: usize,
}

struct Received<'a> {
    status: u16,
    event_stream: bool,
    session: Option<String>,
    body: Cow<'a, [u8]>,
}

struct Head {
    status: u16,
    length: Option<usize>,
    chunked: bool,
    event_stream: bool,
    session: Option<String>,
}

impl Connection {
    async fn open(endpoint: &Endpoint) -> Result<Self> {
        let stream = TcpStream::connect(endpoint.address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; 16 * 1024], filled: 0 })
    }

    async fn exchange(&mut self, request: &[u8]) -> Result<Received<'_>> {
        self.stream.write_all(request).await?;
        self.filled = 0;
        let start = loop {
            self.fill().await?;
            if let Some(at) = memmem::find(&self.buffer[..self.filled], b"\r\n\r\n") {
                break at + 4;
            }
        };
        let head = Head::parse(&self.buffer[..start])?;
        let Head { status, event_stream, session, .. } = head;
        if head.chunked {
            let body = self.chunks(start).await?;
            return Ok(Received { status, event_stream, session, body: Cow::Owned(body) });
        }
        let length = match (head.length, status) {
            (Some(length), _) => length,
            (None, 202 | 204) => 0,
            (None, _) => bail!("an answer that only ends with the connection"),
        };
        while self.filled < start + length {
            self.fill().await?;
        }
        if self.filled > start + length {
            bail!("{} bytes too many", self.filled - start - length);
        }
        let body = Cow::Borrowed(&self.buffer[start..start + length]);
        Ok(Received { status, event_stream, session, body })
    }

    async fn fill(&mut self) -> Result<()> {
        if self.filled == self.buffer.len() {
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
        match self.stream.read(&mut self.buffer[self.filled..]).await? {
            0 => bail!("the connection was closed instead of an answer"),
            read => self.filled += read,
        }
        Ok(())
    }

    async fn chunks(&mut self, mut at: usize) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line_end = loop {
                if let Some(end) = memmem::find(&self.buffer[at..self.filled], b"\r\n") {
                    break at + end;
                }
                self.fill().await?;
            };
            let line = std::str::from_utf8(&self.buffer[at..line_end])?;
            let size = usize::from_str_radix(line.split(';').next().unwrap_or("").trim(), 16)?;
            let start = line_end + 2;
            while self.filled < start + size + 2 {
                self.fill().await?;
            }
            if size == 0 {
                return Ok(body);
            }
            body.extend_from_slice(&self.buffer[start..start + size]);
            at = start + size + 2;
        }
    }
}

impl Head {
    fn parse(bytes: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(bytes)?;
        let status = text.get(9..12).context("no status")?.parse()?;
        let mut head =
            Self { status, length: None, chunked: false, event_stream: false, session: None };
        for line in text.lines().skip(1) {
            let Some((name, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            // The length of a name tells most headers apart without comparing them.
            match name.len() {
                14 if name.eq_ignore_ascii_case("content-length") => {
                    head.length = Some(value.parse()?);
                }
                17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                    head.chunked = value.eq_ignore_ascii_case("chunked");
                }
                12 if name.eq_ignore_ascii_case("content-type") => {
                    head.event_stream = value.starts_with("text/event-stream");
                }
                14 if name.eq_ignore_ascii_case("mcp-session-id") => {
                    head.session = Some(value.to_owned());
                }
                _ => {}
            }
        }
        Ok(head)
    }
}
