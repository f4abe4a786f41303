//! The backend: one thread on core 1 that answers every request from memory. The path says what: `/1k`, `/16k`, `/chunked`.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

/// Starts it; it lives as long as the process.
pub(crate) fn start() -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    Ok(address)
}

fn response(path: &[u8]) -> Vec<u8> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n";
    if path.starts_with(b"/chunked") {
        let mut out = format!("{head}transfer-encoding: chunked\r\n\r\n400\r\n").into_bytes();
        out.extend(std::iter::repeat_n(b'x', 1024));
        out.extend_from_slice(b"\r\n0\r\n\r\n");
        return out;
    }
    let size = if path.starts_with(b"/16k") { 16 * 1024 } else { 1024 };
    let mut out = format!("{head}content-length: {size}\r\n\r\n").into_bytes();
    out.extend(std::iter::repeat_n(b'x', size));
    out
}

fn serve(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut buffer = [0u8; 16 * 1024];
    let mut filled = 0;
    let mut ready: Option<(Vec<u8>, Vec<u8>)> = None;
    while let Ok(n) = stream.read(&mut buffer[filled..]) {
        if n == 0 {
            return;
        }
        filled += n;
        while let Some(end) = buffer[..filled].windows(4).position(|w| w == b"\r\n\r\n") {
            let path = buffer[..end].split(|b| *b == b' ').nth(1).unwrap_or_default().to_vec();
            if ready.as_ref().is_none_or(|(p, _)| *p != path) {
                ready = Some((path.clone(), response(&path)));
            }
            if let Some((_, bytes)) = &ready
                && stream.write_all(bytes).is_err()
            {
                return;
            }
            buffer.copy_within(end + 4..filled, 0);
            filled -= end + 4;
        }
    }
}
