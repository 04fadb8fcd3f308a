//! A DNS server (RFC 1035) that says where names are: on this machine, if they
//! end in `.test`, and elsewhere where a test says so. It remembers who was
//! asked for.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The server. It answers as long as the test's process lives.
#[derive(Clone)]
pub(crate) struct Names {
    address: SocketAddr,
    known: Arc<Mutex<Known>>,
    socket: Arc<UdpSocket>,
}

#[derive(Default)]
struct Known {
    set: HashMap<String, Vec<IpAddr>>,
    asked: Vec<String>,
    /// Queries that wait for their answer, where they are to.
    held: Option<Vec<(Vec<u8>, SocketAddr)>>,
}

const A: u16 = 1;
const AAAA: u16 = 28;

impl Names {
    /// Starts one.
    pub(crate) fn serve() -> Self {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").expect("a port"));
        let names = Self {
            address: socket.local_addr().expect("an address"),
            known: Arc::default(),
            socket: Arc::clone(&socket),
        };
        let server = names.clone();
        std::thread::spawn(move || {
            let mut query = [0; 1500];
            while let Ok((count, from)) = socket.recv_from(&mut query) {
                if let Some(held) = &mut server.known().held {
                    held.push((query[..count].to_vec(), from));
                    continue;
                }
                if let Some(answer) = server.answer(&query[..count]) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        names
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Says where a name is. No address: the name exists and has none.
    pub(crate) fn set(&self, name: &str, addresses: &[&str]) {
        let parsed = addresses
            .iter()
            .map(|text| text.parse().expect("an address"))
            .collect();
        self.known().set.insert(name.to_owned(), parsed);
    }

    /// Answers nobody from now on.
    pub(crate) fn hold(&self) {
        self.known().held.get_or_insert_default();
    }

    /// How many wait for an answer.
    pub(crate) fn held(&self) -> usize {
        self.known().held.as_ref().map_or(0, Vec::len)
    }

    /// Answers all who wait, and everybody from now on.
    pub(crate) fn release(&self) {
        let held = self.known().held.take().unwrap_or_default();
        for (query, from) in held {
            if let Some(answer) = self.answer(&query) {
                let _ = self.socket.send_to(&answer, from);
            }
        }
    }

    /// The names it was asked for, each as often as it was.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.known().asked.clone()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        let (name, kind, end) = question(query)?;
        let mut known = self.known();
        known.asked.push(name.clone());
        let here = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
        let addresses = known
            .set
            .get(&name)
            .cloned()
            .or_else(|| name.ends_with(".test").then_some(here));
        // An answer to a query that wanted recursion; 3 is "no such name".
        let code = if addresses.is_some() { 0 } else { 3 };
        let fitting: Vec<IpAddr> = addresses
            .unwrap_or_default()
            .into_iter()
            .filter(|address| kind == if address.is_ipv4() { A } else { AAAA })
            .collect();
        let count = u16::try_from(fitting.len()).ok()?;
        let mut out = query[..2].to_vec();
        out.extend_from_slice(&[0x81, 0x80 | code, 0, 1]);
        out.extend_from_slice(&count.to_be_bytes());
        out.extend_from_slice(&[0, 0, 0, 0]);
        out.extend_from_slice(&query[12..end]);
        for address in fitting {
            let data = match address {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            };
            // The name is the one in the question, at offset 12.
            out.extend_from_slice(&[0xc0, 12]);
            out.extend_from_slice(&kind.to_be_bytes());
            out.extend_from_slice(&[0, 1, 0, 0, 0, 60]);
            out.extend_from_slice(&u16::try_from(data.len()).ok()?.to_be_bytes());
            out.extend_from_slice(&data);
        }
        Some(out)
    }
}

/// The name, the type, and where the question ends.
fn question(query: &[u8]) -> Option<(String, u16, usize)> {
    let mut at = 12;
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        let label = query.get(at..at + length)?;
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    Some((labels.join("."), kind, at + 4))
}
