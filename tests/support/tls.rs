//! ClientHellos, byte by byte, with whatever is wrong in them on purpose.

/// What a ClientHello is to have.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hello {
    names: Vec<Vec<u8>>,
    extensions: Vec<(u16, Vec<u8>)>,
    record_bytes: Option<usize>,
}

impl Hello {
    /// One without a server name.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// One for this host.
    pub(crate) fn to(name: &str) -> Self {
        Self::new().name(name)
    }

    /// With this name too, in one list with those before.
    pub(crate) fn name(mut self, name: impl AsRef<[u8]>) -> Self {
        self.names.push(name.as_ref().to_vec());
        self
    }

    /// With this extension behind the others.
    pub(crate) fn extension(mut self, kind: u16, data: impl Into<Vec<u8>>) -> Self {
        self.extensions.push((kind, data.into()));
        self
    }

    /// In records of so many bytes each (RFC 8446 section 5.1).
    pub(crate) fn in_records_of(mut self, bytes: usize) -> Self {
        self.record_bytes = Some(bytes);
        self
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut extensions = Vec::new();
        if !self.names.is_empty() {
            extensions.extend(extension(0, &server_names(&self.names)));
        }
        // What every real one has: versions 1.3 and 1.2.
        extensions.extend(extension(43, &[4, 3, 4, 3, 3]));
        for (kind, data) in &self.extensions {
            extensions.extend(extension(*kind, data));
        }
        let mut body = vec![3, 3];
        body.extend_from_slice(&[7; 32]);
        body.push(0);
        body.extend_from_slice(&[0, 2, 0x13, 1, 1, 0]);
        body.extend(with_length(&extensions));
        let length = u32::try_from(body.len()).expect("short").to_be_bytes();
        let mut message = vec![1, length[1], length[2], length[3]];
        message.extend(body);
        let mut out = Vec::new();
        for part in message.chunks(self.record_bytes.unwrap_or(1 << 14)) {
            out.extend_from_slice(&[22, 3, 1]);
            out.extend(with_length(part));
        }
        out
    }
}

/// The data of a server-name extension (RFC 6066 section 3).
pub(crate) fn server_names(names: &[Vec<u8>]) -> Vec<u8> {
    let mut list = Vec::new();
    for name in names {
        list.push(0);
        list.extend(with_length(name));
    }
    with_length(&list)
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    let mut out = kind.to_be_bytes().to_vec();
    out.extend(with_length(data));
    out
}

fn with_length(data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).expect("at most 65,535 bytes");
    let mut out = length.to_be_bytes().to_vec();
    out.extend_from_slice(data);
    out
}
