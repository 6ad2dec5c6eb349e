//! Real listeners and children; what is counted is what the server saw.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::task::TaskTracker;

use super::*;
use crate::model::{ProtocolVersion, ServerName};
use crate::protocol::OutgoingRequest;

fn options() -> ConnectOptions {
    ConnectOptions {
        server: ServerName::parse("test").unwrap(),
        connect_timeout: Duration::from_secs(30),
        max_response_size: 65_536,
        max_events: 1000,
        stall_timeout: None,
        known_dialect: None,
        hearing: Hearing::default(),
        probe_timeout: Duration::from_secs(30),
        children: Children::default(),
    }
}

fn pool_at(address: std::net::SocketAddr) -> ConnectionPool {
    let target =
        Target::Http { url: format!("http://{address}/mcp").parse().unwrap(), headers: Vec::new() };
    ConnectionPool::new(target, HttpClient::new(), options(), TaskTracker::new())
}

fn child_pool(script: &str) -> ConnectionPool {
    let text = format!(
        r#"while IFS= read -r line; do
            id=${{line#*'"id":'}}; id=${{id%%,*}}
            case $line in
            *'"method":"server/discover"'*) printf '{{"jsonrpc":"2.0","id":%s,"result":{{"supportedVersions":["2026-07-28"]}}}}\n' "$id";;
            *'"method":"tools/call"'*) {script};;
            esac
        done"#
    );
    let target = Target::Stdio {
        command: "sh".to_owned(),
        args: vec!["-c".to_owned(), text],
        env: Vec::new(),
        cwd: None,
    };
    ConnectionPool::new(target, HttpClient::new(), options(), TaskTracker::new())
}

/// Answers every request on `listener` as a modern server does, after `delay`; counts probes.
fn serve(listener: TcpListener, delay: Duration, tasks: &TaskTracker) -> Arc<AtomicUsize> {
    let probes = Arc::new(AtomicUsize::new(0));
    let (counter, spawner) = (Arc::clone(&probes), tasks.clone());
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let counter = Arc::clone(&counter);
            spawner.spawn(async move {
                let mut buffer = vec![0; 65_536];
                while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                    let id = text.split_once(r#""id":"#).unwrap().1.split_once(',').unwrap().0;
                    if text.contains("server/discover") {
                        counter.fetch_add(1, Ordering::SeqCst);
                        tokio::time::sleep(delay).await;
                    }
                    let body = format!(
                        r#"{{"jsonrpc":"2.0","id":{id},"result":{{"supportedVersions":["2026-07-28"]}}}}"#
                    );
                    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
                    let answer = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    probes
}

async fn call(lease: &Lease) -> Result<(), TransportError> {
    let request = OutgoingRequest::new("tools/call");
    lease.request(&request, Duration::from_secs(30), None).await.map(drop)
}

/// A pool whose server just refused, and what the next caller is told. Its wait is a fifth of a second at
/// least; a machine that is busy for as long gets another pool.
async fn refused_pool(address: std::net::SocketAddr) -> (ConnectionPool, PoolError) {
    for _ in 0..20 {
        let pool = pool_at(address);
        let error = pool.lease(Urgency::Patient).await.unwrap_err();
        assert!(matches!(error, PoolError::Connect { .. }), "{error:?}");
        assert_eq!((error.failure(), error.code()), (Failure::NotSent, ErrorCode::Connection));
        let error = pool.lease(Urgency::Patient).await.unwrap_err();
        if matches!(error, PoolError::Backoff { .. }) {
            return (pool, error);
        }
    }
    panic!("nobody is told to wait");
}

async fn listen() -> (TcpListener, std::net::SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Where connections are refused until something listens there; the system gives the port to nobody.
fn held() -> (TcpSocket, std::net::SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

#[tokio::test]
async fn callers_at_once_share_one_connect_and_none_ends_it_by_leaving() {
    let (listener, address) = listen().await;
    let probes = serve(listener, Duration::from_secs(1), &TaskTracker::new());
    let pool = pool_at(address);
    assert!(matches!(pool.state(), PoolState::Idle));
    // The one that begins the connect is the one that leaves.
    let impatient = tokio::time::timeout(Duration::from_millis(20), pool.lease(Urgency::Patient));
    assert!(impatient.await.is_err());
    assert!(matches!(pool.state(), PoolState::Connecting));
    let leases = (0..50).map(|_| pool.lease(Urgency::Patient));
    for lease in futures_util::future::join_all(leases).await {
        call(&lease.unwrap()).await.unwrap();
    }
    assert_eq!(probes.load(Ordering::SeqCst), 1);
    assert_eq!(pool.connects(), 1);
    assert!(matches!(pool.state(), PoolState::Up));
    assert_eq!(pool.known_dialect(), Some(Dialect::Modern));
    assert_eq!(pool.peer().unwrap().version, ProtocolVersion::V2026_07_28);
}

#[tokio::test]
async fn a_server_that_returns_is_found_by_the_next_call_after_the_wait() {
    let (_held, address) = held();
    let (pool, error) = refused_pool(address).await;
    assert_eq!(error.failure(), Failure::NotSent);
    assert!(error.to_string().contains("refused"), "{error}");
    assert!(error.retry_after().unwrap() <= Duration::from_millis(300));
    let PoolState::Down { error: shown, .. } = pool.state() else { panic!("{:?}", pool.state()) };
    assert!(matches!(*shown, TransportError::Connect { .. }));

    let listener = TcpListener::bind(address).await.unwrap();
    serve(listener, Duration::ZERO, &TaskTracker::new());
    tokio::time::sleep(error.retry_after().unwrap()).await;
    call(&pool.lease(Urgency::Patient).await.unwrap()).await.unwrap();
    assert!(matches!(pool.state(), PoolState::Up));
}

#[tokio::test]
async fn a_reset_forgets_the_wait() {
    let (_held, address) = held();
    let (pool, _) = refused_pool(address).await;
    let listener = TcpListener::bind(address).await.unwrap();
    serve(listener, Duration::ZERO, &TaskTracker::new());
    pool.reset();
    pool.lease(Urgency::Patient).await.unwrap();
}

#[tokio::test]
async fn a_child_is_started_again_at_once_and_then_ever_later() {
    let pool = child_pool("exit 7");
    for _ in 0..2 {
        let lease = pool.lease(Urgency::Patient).await.unwrap();
        let error = call(&lease).await.unwrap_err();
        assert!(error.to_string().contains("code 7"), "{error}");
        pool.invalidate(&lease);
        pool.invalidate(&lease);
    }
    let error = pool.lease(Urgency::Patient).await.unwrap_err();
    assert!(matches!(error, PoolError::Backoff { .. }), "{error:?}");
    assert!(error.to_string().contains("code 7"), "{error}");
    assert_eq!(error.failure(), Failure::NotSent);
    assert_eq!(pool.connects(), 2);
}

#[tokio::test]
async fn a_dead_child_is_noticed_without_being_told() {
    let pool = child_pool("exit 7");
    let first = pool.lease(Urgency::Patient).await.unwrap();
    call(&first).await.unwrap_err();
    let second = pool.lease(Urgency::Patient).await.unwrap();
    assert_ne!(first.process_id(), second.process_id());
    // What the holder of the old one reports does not hit the new one.
    pool.invalidate(&first);
    assert_eq!(pool.lease(Urgency::Patient).await.unwrap().process_id(), second.process_id());
}

#[tokio::test]
async fn a_closed_pool_ends_its_child_and_opens_no_other() {
    let pool = child_pool(":");
    let lease = pool.lease(Urgency::Patient).await.unwrap();
    pool.close().await;
    assert!(lease.exit_status().is_some());
    let error = pool.lease(Urgency::Patient).await.unwrap_err();
    assert!(matches!(error, PoolError::Closed));
    assert_eq!(error.failure(), Failure::NotSent);
}

#[tokio::test]
async fn a_close_ends_a_connect_that_is_under_way() {
    let (listener, address) = listen().await;
    serve(listener, Duration::from_secs(60), &TaskTracker::new());
    let pool = pool_at(address);
    let (lease, ()) = tokio::join!(pool.lease(Urgency::Patient), async {
        while !matches!(pool.state(), PoolState::Connecting) {
            tokio::task::yield_now().await;
        }
        pool.close().await;
    });
    assert!(matches!(lease.unwrap_err(), PoolError::Closed));
}

#[tokio::test]
async fn an_unauthorised_server_refuses_and_is_not_unreachable() {
    let (listener, address) = listen().await;
    let tasks = TaskTracker::new();
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ =
                stream.write_all(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n").await;
        }
    });
    let error = pool_at(address).lease(Urgency::Patient).await.unwrap_err();
    assert_eq!((error.failure(), error.http_status()), (Failure::Refused, Some(401)));
}

#[test]
fn waits_double_up_to_a_limit_and_are_spread() {
    assert_eq!(backoff(1, LONGEST_WAIT, 0.5), Duration::from_millis(250));
    assert_eq!(backoff(2, LONGEST_WAIT, 0.5), Duration::from_millis(500));
    assert_eq!(backoff(3, LONGEST_WAIT, 0.0), Duration::from_millis(800));
    assert_eq!(backoff(3, LONGEST_WAIT, 1.0), Duration::from_millis(1200));
    for failures in [8, 100, u32::MAX] {
        assert!(
            backoff(failures, LONGEST_WAIT, 1.0) <= LONGEST_WAIT
                && backoff(failures, LONGEST_WAIT, 0.0) >= LONGEST_WAIT / 2
        );
    }
    let numbers: Vec<f64> = (0..100).map(|_| random()).collect();
    assert!(numbers.iter().all(|number| (0.0..1.0).contains(number)));
    assert!(numbers.iter().any(|number| *number < 0.4) && numbers.iter().any(|n| *n > 0.6));
}
