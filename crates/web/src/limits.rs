//! What callers may take.

use std::time::Duration;

/// Bounds of a server. Whoever is slow is sent away when a place is needed, the slowest first.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections in all.
    pub connections: usize,
    /// Connections of one address; of IPv6, of one /64.
    pub connections_of_peer: usize,
    /// Requests of one connection; the last one's response says that it closes.
    pub requests_of_connection: usize,
    /// Longest head of a request, bytes.
    pub head_bytes: usize,
    /// Longest body of a request, bytes.
    pub body_bytes: usize,
    /// Bytes of all bodies that are being read or answered, and of all responses that are not taken yet.
    pub bodies_bytes: usize,
    /// From one request to the first byte of the next.
    pub idle: Duration,
    /// From the first byte of a head to its end.
    pub head: Duration,
    /// For a whole body.
    pub body: Duration,
    /// For what is written to be taken.
    pub response: Duration,
    /// For requests under way when a signal comes.
    pub stop: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            connections_of_peer: 256,
            requests_of_connection: 100,
            head_bytes: 64 << 10,
            body_bytes: 16 << 20,
            bodies_bytes: 256 << 20,
            idle: Duration::from_secs(10),
            head: Duration::from_secs(10),
            body: Duration::from_secs(30),
            response: Duration::from_secs(30),
            stop: Duration::from_secs(10),
        }
    }
}
