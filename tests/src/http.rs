//! A small HTTP/1.1 client (RFC 9112) that sends exactly the bytes it is told to and says whether a failed request
//! may have reached the server. One connection, kept alive. It never repeats a request that may have an effect.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Longer than any timeout of the server's: it must answer first.
const ANSWER_WITHIN: Duration = Duration::from_secs(40);

/// One connection to one node, opened when needed.
#[derive(Debug)]
pub struct Client {
    address: SocketAddr,
    answer_within: Duration,
    stream: Option<BufReader<TcpStream>>,
    connections: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// Why there is no response.
#[derive(Debug)]
pub enum Failure {
    /// No byte was sent: the request had no effect.
    NotSent(io::Error),
    /// The connection broke or the answer did not come in time: it may have had one.
    Broken(io::Error),
}

/// What a problem document says about the refused request (member `outcome`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Rejected,
    Unknown,
}

impl Client {
    pub fn new(address: SocketAddr) -> Client {
        Client { address, answer_within: ANSWER_WITHIN, stream: None, connections: 0 }
    }

    /// The node's.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn answer_within(mut self, limit: Duration) -> Client {
        self.answer_within = limit;
        self
    }

    pub fn get(&mut self, target: &str) -> Result<Response, Failure> {
        self.request("GET", target, &[], b"")
    }

    pub fn put(&mut self, target: &str, body: &[u8]) -> Result<Response, Failure> {
        self.request("PUT", target, &[], body)
    }

    pub fn delete(&mut self, target: &str) -> Result<Response, Failure> {
        self.request("DELETE", target, &[], b"")
    }

    /// Sends one request and reads its response. A GET or HEAD on a kept connection that the server has closed is
    /// repeated once on a new one (RFC 9110 §9.2.2).
    pub fn request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response, Failure> {
        let bytes = encode(method, target, headers, body);
        let reused = self.stream.is_some();
        match self.exchange(&bytes, method == "HEAD") {
            Err(Failure::Broken(_)) if reused && matches!(method, "GET" | "HEAD") => {
                self.exchange(&bytes, method == "HEAD")
            }
            result => result,
        }
    }

    /// Sends these bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let stream = self.connected().map_err(Failure::NotSent)?;
        stream.get_mut().write_all(bytes).map_err(Failure::Broken)
    }

    /// Reads the next response. Closes the connection when the server says so.
    pub fn receive(&mut self, to_head: bool) -> Result<Response, Failure> {
        let stream = self.connected().map_err(Failure::NotSent)?;
        let result = read_response(stream, to_head);
        let keep = matches!(&result, Ok(r) if !r.header("connection").is_some_and(|c| c.eq_ignore_ascii_case("close")));
        if !keep {
            self.stream = None;
        }
        result.map_err(Failure::Broken)
    }

    /// Reads the next response, if the server sends one before it closes the connection.
    ///
    /// # Panics
    /// If the server does neither in the time a request may take.
    #[track_caller]
    pub fn receive_or_close(&mut self) -> Option<Response> {
        match self.receive(false) {
            Ok(response) => Some(response),
            Err(Failure::NotSent(e) | Failure::Broken(e)) => {
                let silent = matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
                assert!(!silent, "the server neither answered nor closed the connection");
                None
            }
        }
    }

    /// How many connections it has opened so far.
    pub fn connections(&self) -> u32 {
        self.connections
    }

    /// True if the server closes the connection, without another byte, in the time a request may take.
    pub fn is_closed_by_server(&mut self) -> bool {
        let Some(stream) = &mut self.stream else { return true };
        matches!(stream.fill_buf(), Ok(&[]))
    }

    fn exchange(&mut self, bytes: &[u8], to_head: bool) -> Result<Response, Failure> {
        let stream = self.connected().map_err(Failure::NotSent)?;
        // A server may refuse a large body before it has read it: its response counts more than the write error.
        let written = stream.get_mut().write_all(bytes);
        let result = self.receive(to_head);
        match (written, result) {
            (_, Ok(response)) => Ok(response),
            (Err(e), Err(_)) => Err(Failure::Broken(e)),
            (Ok(()), Err(e)) => Err(e),
        }
    }

    fn connected(&mut self) -> io::Result<&mut BufReader<TcpStream>> {
        if self.stream.is_none() {
            let stream = TcpStream::connect_timeout(&self.address, CONNECT_WITHIN)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(self.answer_within))?;
            stream.set_write_timeout(Some(self.answer_within))?;
            self.stream = Some(BufReader::new(stream));
            self.connections += 1;
        }
        Ok(self.stream.as_mut().expect("it was just connected"))
    }
}

impl Response {
    /// The first header of this (lower-case) name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// A header that must be there and be a whole number, `ETag`'s quotes aside.
    #[track_caller]
    pub fn number(&self, name: &str) -> u64 {
        let text = self.header(name).unwrap_or_else(|| panic!("no header {name} in {self}"));
        text.trim_matches('"').parse().unwrap_or_else(|_| panic!("header {name} is no number in {self}"))
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("no JSON ({e}): {self}"))
    }

    /// What the host's problem document says; none if this is not one.
    pub fn refusal(&self) -> Option<Outcome> {
        if !self.header("content-type")?.starts_with("application/problem+json") {
            return None;
        }
        match serde_json::from_slice::<Value>(&self.body).ok()?.get("outcome")?.as_str()? {
            "rejected" => Some(Outcome::Rejected),
            "unknown" => Some(Outcome::Unknown),
            _ => None,
        }
    }

    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

impl fmt::Display for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = &self.body[..self.body.len().min(300)];
        write!(f, "{} {:?} {}", self.status, self.headers, String::from_utf8_lossy(start))
    }
}

/// A request as bytes. `Content-Length` is left out where there is no body and the method wants none.
pub fn encode(method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() || matches!(method, "PUT" | "POST" | "PATCH") {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

fn read_response(stream: &mut impl BufRead, to_head: bool) -> io::Result<Response> {
    loop {
        let (status, headers) = read_head(stream)?;
        let mut response = Response { status, headers, body: Vec::new() };
        // Interim responses (100 Continue) have no body and are not the answer.
        if (100..200).contains(&status) {
            continue;
        }
        if to_head || matches!(status, 204 | 304) {
            return Ok(response);
        }
        if response.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
            response.body = read_chunks(stream)?;
        } else if let Some(length) = response.header("content-length") {
            let length = length.parse().map_err(|_| invalid(length))?;
            response.body = vec![0; length];
            stream.read_exact(&mut response.body)?;
        } else {
            stream.read_to_end(&mut response.body)?;
        }
        return Ok(response);
    }
}

fn read_head(stream: &mut impl BufRead) -> io::Result<(u16, Vec<(String, String)>)> {
    let start = read_line(stream)?;
    let mut words = start.split(' ');
    let version = words.next().unwrap_or_default();
    let status = words.next().and_then(|s| s.parse().ok());
    let Some(status) = status.filter(|_| version.starts_with("HTTP/1.")) else { return Err(invalid(&start)) };
    let mut headers = Vec::new();
    loop {
        let line = read_line(stream)?;
        if line.is_empty() {
            return Ok((status, headers));
        }
        let (name, value) = line.split_once(':').ok_or_else(|| invalid(&line))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

fn read_chunks(stream: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = read_line(stream)?;
        let size = line.split(';').next().unwrap_or_default();
        let size = u64::from_str_radix(size, 16).map_err(|_| invalid(&line))?;
        stream.take(size).read_to_end(&mut body)?;
        // After the data of a chunk, and after the (empty) trailer, comes an empty line.
        if !read_line(stream)?.is_empty() {
            return Err(invalid("a chunk that does not end where it says"));
        }
        if size == 0 {
            return Ok(body);
        }
    }
}

fn read_line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line)?;
    let Some(line) = line.strip_suffix(b"\r\n") else {
        return Err(if line.is_empty() { io::ErrorKind::UnexpectedEof.into() } else { invalid("a line without CRLF") });
    };
    Ok(String::from_utf8_lossy(line).into_owned())
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("no HTTP/1.1 response: {what:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(bytes: &str) -> io::Result<Response> {
        read_response(&mut bytes.as_bytes(), false)
    }

    #[test]
    fn responses_are_read_to_their_end_and_no_further() {
        let sized = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nETag: \"7\"\r\nContent-Length: 3\r\n\r\nabcrest";
        let read = response(sized).unwrap();
        assert_eq!((read.status, read.body.as_slice(), read.number("etag")), (200, b"abc".as_slice(), 7));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1;x\r\nd\r\n0\r\n\r\nrest";
        assert_eq!(response(chunked).unwrap().body, b"abcd");
    }

    #[test]
    fn cut_or_foreign_bytes_are_errors() {
        for bytes in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", "SSH-2.0-x\r\n\r\n"]
        {
            assert!(response(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn problem_documents_say_the_outcome() {
        let problem = |body: &str| {
            let head = "HTTP/1.1 503 X\r\nContent-Type: application/problem+json\r\nContent-Length: ";
            response(&format!("{head}{}\r\n\r\n{body}", body.len())).unwrap().refusal()
        };
        assert_eq!(problem(r#"{"outcome":"rejected"}"#), Some(Outcome::Rejected));
        assert_eq!(problem(r#"{"outcome":"unknown"}"#), Some(Outcome::Unknown));
        assert_eq!(problem(r#"{"outcome":"perhaps"}"#), None);
    }
}
