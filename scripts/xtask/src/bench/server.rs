//! The other end of the network measurements: a TCP server on this machine, which every guest reaches as its gateway.
//! The main type is [`Server`]; `scripts/guest/net.c` is the client.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result};

/// A server that runs until the process ends.
pub struct Server {
    port: u16,
}

impl Server {
    /// Listens on a free port of the loopback interface.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening for the network measurements")?;
        let port = listener.local_addr().context("asking for the port")?.port();
        thread::spawn(move || {
            for line in listener.incoming().flatten() {
                thread::spawn(move || serve(line));
            }
        });
        Ok(Self { port })
    }

    /// Its address as a guest on QEMU's user network sees it.
    pub fn guest_address(&self) -> String {
        format!("10.0.2.2:{}", self.port)
    }
}

/// Does what the first byte says until the client hangs up: echoes, discards, or sends.
fn serve(mut line: TcpStream) {
    let mut mode = [0];
    let mut buffer = vec![0; 64 << 10];
    if line.set_nodelay(true).is_err() || line.read_exact(&mut mode).is_err() {
        return;
    }
    loop {
        let moved = match mode[0] {
            b'e' => line.read(&mut buffer).and_then(|length| line.write_all(&buffer[..length]).map(|()| length)),
            b'd' => line.read(&mut buffer),
            _ => line.write(&buffer),
        };
        if !matches!(moved, Ok(1..)) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn echoes_and_sends() {
        let server = Server::start().unwrap();
        let mut echo = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port)).unwrap();
        echo.write_all(b"ehello").unwrap();
        let mut answer = [0; 5];
        echo.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hello");
        let mut source = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port)).unwrap();
        source.write_all(b"s").unwrap();
        source.read_exact(&mut [0; 100_000]).unwrap();
    }
}
