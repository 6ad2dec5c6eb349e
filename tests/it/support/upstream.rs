//! Servers to put behind the router, good and bad ones.

use std::net::SocketAddr;

use switchyard::cli::demo_upstream::{Options, Upstream, serve_http};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;

use super::PROGRAM;

/// The bundled server in this process.
pub async fn upstream(options: Options) -> Upstream {
    upstream_at("127.0.0.1:0".parse().unwrap(), options).await
}

/// The same where another one listened before.
pub async fn upstream_at(address: SocketAddr, options: Options) -> Upstream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    let listener = socket.listen(128).unwrap();
    serve_http(listener, options, CancellationToken::new()).unwrap()
}

/// A line of `mcp_servers` for a server over stdio with these arguments.
pub fn stdio(name: &str, arguments: &[&str]) -> String {
    let arguments: String = arguments.iter().map(|argument| format!(", \"{argument}\"")).collect();
    format!("  {name}: {{command: {PROGRAM}, args: [demo-upstream, stdio{arguments}]}}\n")
}

/// `mcp_servers` with these servers over HTTP.
pub fn yaml(servers: &[(&str, &Upstream)]) -> String {
    let lines: String =
        servers.iter().map(|(name, up)| format!("  {name}: {{url: \"{}\"}}\n", up.url())).collect();
    format!("mcp_servers:\n{lines}")
}

/// An address where connections are taken and nothing is ever said.
pub async fn hanging() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            kept.push(stream);
        }
    });
    address
}

/// An address where everything is answered with what is not HTTP.
pub async fn garbage() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                let _ = stream.read(&mut buffer).await;
                let _ = stream.write_all(b"\x00\x01\xff SSH-2.0-nonsense\r\n\r\n").await;
                let _ = stream.shutdown().await;
            });
        }
    });
    address
}
