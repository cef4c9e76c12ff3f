//! The smoke example's generator: `scripted_chat [ADDRESS]` answers until it is stopped.

use longstrap_tests::chat::{ChatServer, Manner};

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:18080".to_owned());
    let server = ChatServer::listen(std::net::TcpListener::bind(&address)?, Manner::Helpful);
    println!("answers on http://{}/v1", server.address);
    loop {
        std::thread::park();
    }
}
