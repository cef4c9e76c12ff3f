//! Questions to an operator's own HTTP server.

use std::net::{SocketAddr, TcpListener};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Status code and body of a GET; 0 when nobody listens.
pub async fn get(port: u16, path: &str) -> (u16, String) {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let Ok(mut stream) = TcpStream::connect(address).await else { return (0, String::new()) };
    let request = format!("GET {path} HTTP/1.0\r\nHost: operator\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    if stream.read_to_string(&mut answer).await.is_err() {
        return (0, String::new());
    }
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (code, body.to_owned())
}

/// `/debug/state`.
pub async fn state(port: u16) -> Option<Value> {
    serde_json::from_str(&get(port, "/debug/state").await.1).ok()
}

/// Sum of a counter or gauge in `/metrics` over its labels.
pub async fn metric(port: u16, name: &str) -> f64 {
    let (_, text) = get(port, "/metrics").await;
    let of = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        (series.split('{').next() == Some(name)).then(|| value.parse::<f64>().ok())?
    };
    text.lines().filter_map(of).sum()
}
