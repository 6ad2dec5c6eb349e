//! Ports that the system gives to nobody else while a test lasts.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpSocket;

/// An address where nobody listens, now or later, but whoever is told it: its port is held.
pub async fn refusing() -> SocketAddr {
    hold((Ipv4Addr::LOCALHOST, 0).into()).unwrap()
}

/// Holds the port of someone who stopped listening, for one who will again.
///
/// A socket that is bound and does not listen refuses connections. The system gives its port neither to
/// those who ask for any nor to connections that go out, and with the option below on both sides it can
/// be listened at by its number.
pub fn hold(address: SocketAddr) -> std::io::Result<SocketAddr> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let address = socket.local_addr()?;
    // Ends with the test's runtime.
    tokio::spawn(async move {
        std::future::pending::<()>().await;
        drop(socket);
    });
    Ok(address)
}
