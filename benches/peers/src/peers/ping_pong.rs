//! One request and its answer at a time on a socket: what a lone call cannot beat.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use super::Caller;

/// Answers 16 bytes, two numbers, with 8, their sum.
pub async fn serve(listener: TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let mut request = [0; 16];
            while stream.read_exact(&mut request).await.is_ok() {
                let [a, b] = [0, 8].map(|at| number(&request, at));
                if stream.write_all(&(a + b).to_be_bytes()).await.is_err() {
                    break;
                }
            }
        });
    }
}

#[derive(Clone)]
pub struct PingPong(Arc<Mutex<TcpStream>>);

pub async fn connect(server: SocketAddr) -> io::Result<PingPong> {
    let stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    Ok(PingPong(Arc::new(Mutex::new(stream))))
}

impl Caller for PingPong {
    async fn sum(&self, a: i64, b: i64) -> i64 {
        let mut stream = self.0.lock().await;
        let mut request = [0; 16];
        request[..8].copy_from_slice(&a.to_be_bytes());
        request[8..].copy_from_slice(&b.to_be_bytes());
        stream.write_all(&request).await.expect("the server reads");
        let mut answer = [0; 8];
        stream.read_exact(&mut answer).await.expect("the server answers");
        number(&answer, 0)
    }

    async fn echo(&self, _: &Bytes) -> usize {
        unreachable!("it has one kind of call")
    }
}

fn number(bytes: &[u8], at: usize) -> i64 {
    i64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
