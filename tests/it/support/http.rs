//! An HTTP client that sends exactly what it is told and shows exactly what came.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpStream, UnixStream};

use super::stream::Stream;

/// Longer than any answer takes; a test that hangs is one that says nothing.
const PATIENCE: Duration = Duration::from_secs(90);

#[derive(Debug, Clone)]
enum Target {
    Network(SocketAddr),
    Socket(PathBuf),
}

/// A router, as one caller sees it.
#[derive(Debug, Clone)]
pub struct Http {
    target: Target,
    key: Option<String>,
}

/// A request being put together.
#[derive(Debug)]
pub struct Call {
    target: Target,
    request: Request<Full<Bytes>>,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Http {
    pub fn network(address: SocketAddr) -> Self {
        Self { target: Target::Network(address), key: None }
    }

    pub fn socket(path: impl Into<PathBuf>) -> Self {
        Self { target: Target::Socket(path.into()), key: None }
    }

    /// The same router for the bearer of a key.
    pub fn with_key(&self, key: &str) -> Self {
        Self { target: self.target.clone(), key: Some(key.to_owned()) }
    }

    pub fn request(&self, method: &Method, path: &str) -> Call {
        let host = match &self.target {
            Target::Network(address) => address.to_string(),
            Target::Socket(_) => "localhost".to_owned(),
        };
        let request = Request::builder().method(method).uri(path).header(HOST, host);
        let call =
            Call { target: self.target.clone(), request: request.body(Full::default()).unwrap() };
        match &self.key {
            Some(key) => call.header("authorization", &format!("Bearer {key}")),
            None => call,
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.request(&Method::GET, path).send().await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.request(&Method::DELETE, path).send().await
    }

    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.request(&Method::POST, path).body(body).send().await
    }

    pub async fn put(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.request(&Method::PUT, path).body(body).send().await
    }

    /// `POST /mcp/call` with these arguments, as they are.
    pub async fn call(&self, tool: &str, arguments: &str) -> Answer {
        self.post("/mcp/call", format!(r#"{{"tool_name":"{tool}","arguments":{arguments}}}"#)).await
    }

    /// Opens an answer that does not end.
    pub async fn stream(&self, path: &str) -> Lines {
        self.request(&Method::GET, path).stream().await
    }

    /// A connection for many requests, one after the other.
    pub async fn line(&self) -> Line {
        let Target::Network(address) = self.target else { panic!("over the network only") };
        let stream = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Line { sender }
    }

    /// One server as `GET /mcp/servers` lists it.
    pub async fn server(&self, name: &str) -> Option<Value> {
        let answer = self.get("/mcp/servers").await.json();
        answer["servers"].as_array()?.iter().find(|server| server["name"] == name).cloned()
    }
}

impl Call {
    /// Adds a header, or replaces it.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name: HeaderName = name.parse().unwrap();
        self.request.headers_mut().insert(name, HeaderValue::from_str(value).unwrap());
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.request.headers_mut().remove(name);
        self
    }

    /// A JSON body, unless a content type is set already.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        *self.request.body_mut() = Full::new(body.into());
        let json = HeaderValue::from_static("application/json");
        self.request.headers_mut().entry(CONTENT_TYPE).or_insert(json);
        self
    }

    /// Sends it on a connection of its own. Dropping the future closes the connection.
    pub async fn send(self) -> Answer {
        self.try_send().await.unwrap()
    }

    /// Opens an answer that does not end.
    pub async fn stream(self) -> Lines {
        let Target::Network(address) = self.target else { panic!("over the network only") };
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let response = sender.send_request(self.request).await.unwrap();
        assert_eq!(response.status(), 200);
        Lines { body: response.into_body(), buffer: String::new(), _sender: sender }
    }

    /// Sends it and reads the answer as it comes.
    pub async fn open(self) -> Stream {
        let Target::Network(address) = self.target else { panic!("over the network only") };
        Stream::open(TcpStream::connect(address).await.unwrap(), self.request).await
    }

    /// The request alone, for a connection that is there already.
    pub fn into_request(self) -> Request<Full<Bytes>> {
        self.request
    }

    /// Waits for the status only: some answers never end. Each must have an id.
    pub async fn status(self) -> u16 {
        let Target::Network(address) = self.target else { panic!("over the network only") };
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = std::pin::pin!(connection);
        let sending = sender.send_request(self.request);
        let status = async {
            tokio::select! {
                response = sending => {
                    let response = response.unwrap();
                    assert!(response.headers().contains_key("x-request-id"), "{response:?}");
                    response.status().as_u16()
                }
                ended = connection => panic!("no answer: {ended:?}"),
            }
        };
        tokio::time::timeout(PATIENCE, status).await.expect("an answer in time")
    }

    /// The same, where the router may be away.
    pub async fn try_send(self) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let exchange = async {
            match self.target {
                Target::Network(address) => {
                    exchange(TcpStream::connect(address).await?, self.request).await
                }
                Target::Socket(path) => {
                    exchange(UnixStream::connect(path).await?, self.request).await
                }
            }
        };
        tokio::time::timeout(PATIENCE, exchange).await?
    }
}

async fn exchange<T>(
    stream: T,
    request: Request<Full<Bytes>>,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
    };
    // Both in one future, so that a dropped request closes its connection at once.
    let mut connection = std::pin::pin!(connection);
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        ended = &mut connection => {
            ended?;
            answer.await
        }
    }
}

/// A connection that is kept.
#[derive(Debug)]
pub struct Line {
    sender: http1::SendRequest<Full<Bytes>>,
}

impl Line {
    pub async fn send(&mut self, call: Call) -> Answer {
        let exchange = self.send_patiently(call);
        tokio::time::timeout(PATIENCE, exchange).await.expect("an answer in time")
    }

    /// The same for an answer that may take for ever.
    pub async fn send_patiently(&mut self, call: Call) -> Answer {
        self.sender.ready().await.unwrap();
        let (head, body) = self.sender.send_request(call.request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: head.status.as_u16(), headers: head.headers, body }
    }
}

/// An answer read line by line.
#[derive(Debug)]
pub struct Lines {
    body: hyper::body::Incoming,
    buffer: String,
    _sender: http1::SendRequest<Full<Bytes>>,
}

impl Lines {
    /// The next line that begins so.
    pub async fn next_line_with(&mut self, prefix: &str) -> String {
        let next = async {
            loop {
                while let Some((line, rest)) = self.buffer.split_once('\n') {
                    let (line, rest) = (line.to_owned(), rest.to_owned());
                    self.buffer = rest;
                    if line.starts_with(prefix) {
                        return line;
                    }
                }
                let frame = self.body.frame().await.expect("the stream goes on").unwrap();
                self.buffer += std::str::from_utf8(frame.data_ref().expect("data")).unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, next).await.expect("a line in time")
    }

    /// Everything that still comes, until the answer ends as it should.
    pub async fn rest(self) -> String {
        let rest = self.body.collect();
        let rest = tokio::time::timeout(PATIENCE, rest).await.expect("an end in time").unwrap();
        self.buffer + std::str::from_utf8(&rest.to_bytes()).unwrap()
    }
}

impl Answer {
    #[track_caller]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is text")
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        // Numbers beyond any type are fidelity's matter, and no parser here takes them.
        let text = self.text().replace("1e400", "1").replace("1E+400", "1");
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{error}: {} {:?}", self.status, self.body))
    }

    /// Checks the status and gives the answer back.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        let text = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "{}", &text[..text.len().min(2000)]);
        self
    }

    #[track_caller]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}")).to_str().unwrap()
    }

    /// The call's id.
    #[track_caller]
    pub fn id(&self) -> String {
        self.header("x-request-id").to_owned()
    }
}
