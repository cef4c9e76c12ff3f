//! Serves this process's progress on one port: to callers by gRPC, to scrapers as `/metrics`.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use longstrap_proto::v1alpha1::progress_server::{Progress as Service, ProgressServer as Wire};
use longstrap_proto::v1alpha1::{ProgressReport, ProgressRequest};
use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::metrics::render;
use crate::progress::Progress;

/// Prometheus' text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

#[tonic::async_trait]
impl Service for Progress {
    async fn get(&self, _: Request<ProgressRequest>) -> Result<Response<ProgressReport>, Status> {
        Ok(Response::new(self.report()))
    }
}

/// Serves `progress` on `port` until the process ends. Port 0 takes any free one of this machine
/// alone; `address_file` then gets `host:port`.
///
/// # Errors
/// When the port is taken or the file cannot be written.
pub async fn serve(progress: Progress, port: u16, address_file: Option<&Path>) -> io::Result<SocketAddr> {
    let host = if port == 0 { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
    let listener = TcpListener::bind((host, port)).await?;
    let address = listener.local_addr()?;
    let metrics = get({
        let progress = progress.clone();
        move || std::future::ready(([(CONTENT_TYPE, TEXT)], render(&progress.report())))
    });
    let routes = Routes::new(Wire::new(progress)).into_axum_router().route("/metrics", metrics);
    // Scrapers speak HTTP/1.1, gRPC is HTTP/2 without an upgrade.
    let server = Server::builder().accept_http1(true).add_routes(Routes::from(routes));
    tokio::spawn(async move {
        if let Err(error) = server.serve_with_incoming(TcpIncoming::from(listener)).await {
            tracing::warn!(%error, "progress is no longer served");
        }
    });
    if let Some(file) = address_file {
        // Renamed into place: a reader never sees half an address.
        let mut unfinished = file.as_os_str().to_owned();
        unfinished.push(".part");
        std::fs::write(&unfinished, address.to_string())?;
        std::fs::rename(&unfinished, file)?;
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use longstrap_proto::v1alpha1::progress_client::ProgressClient;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn answers_with_what_was_reported_last() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("address");
        let progress = Progress::new("uid-1", "generate");
        serve(progress.clone(), 0, Some(&file)).await.unwrap();
        let address = std::fs::read_to_string(&file).unwrap();
        let mut client = ProgressClient::connect(format!("http://{address}")).await.unwrap();
        progress.activity("summarising");
        let report = client.get(ProgressRequest {}).await.unwrap().into_inner();
        assert_eq!((report.run_uid.as_str(), report.activity.as_str()), ("uid-1", "summarising"));

        progress.work(1.0, 4.0, "samples");
        let mut scraper = TcpStream::connect(&address).await.unwrap();
        scraper.write_all(b"GET /metrics HTTP/1.1\r\nhost: pod\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        scraper.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
        for line in ["longstrap_pod_progress_ratio 0.25", "# TYPE process_resident_memory_bytes gauge"] {
            assert!(answer.lines().any(|found| found == line), "{line} is not in\n{answer}");
        }
    }
}
