//! The framing of a chunked body (RFC 9112 section 7.1), byte for byte: where
//! it ends, and that nothing in it could be read in two ways. The data itself
//! is not looked at.

/// The most digits of a chunk's size: those of 64 bits.
const MOST_DIGITS: u8 = 16;
/// The most bytes of a chunk's extensions, and of all trailers.
const MOST_EXTENSION_BYTES: usize = 4 * 1024;
const MOST_TRAILER_BYTES: usize = 32 * 1024;

/// Follows a chunked body as its bytes come.
#[derive(Clone, Debug)]
pub struct ChunkedBody {
    at: At,
    /// Of the extensions of this chunk, or of the trailers.
    bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Size { digits: u8, size: u64 },
    Extension { size: u64 },
    SizeEnd { size: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    LineStart,
    TrailerName,
    TrailerValue,
    TrailerEnd,
    LastLf,
    Done,
}

/// What is wrong with the framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// A size that is not 1 to 16 hexadecimal digits.
    #[error("a chunk's size is not a hexadecimal number")]
    Size,
    /// A control character in an extension, or too many bytes of them.
    #[error("a chunk's extension is malformed or too long")]
    Extension,
    /// A line that does not end in CRLF, or data longer than its size.
    #[error("a line of the chunked body does not end in CRLF")]
    LineEnd,
    /// A trailer that is no field, or too many bytes of them.
    #[error("a trailer of the chunked body is malformed or too long")]
    Trailer,
}

impl Default for ChunkedBody {
    fn default() -> Self {
        Self {
            at: At::Size { digits: 0, size: 0 },
            bytes: 0,
        }
    }
}

impl ChunkedBody {
    /// Takes in the next bytes and gives how many of them belong to the body:
    /// all of them, or fewer where it ends among them.
    ///
    /// # Errors
    /// [`ChunkError`], after which nothing more can be said.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<usize, ChunkError> {
        let mut taken = 0;
        while taken < bytes.len() && self.at != At::Done {
            if let At::Data { left } = self.at {
                let data = left.min((bytes.len() - taken) as u64);
                taken += usize::try_from(data).unwrap_or(usize::MAX);
                self.at = match left - data {
                    0 => At::DataCr,
                    left => At::Data { left },
                };
            } else {
                self.at = self.step(bytes[taken])?;
                taken += 1;
            }
        }
        Ok(taken)
    }

    /// Whether the body has ended.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.at == At::Done
    }

    /// Whether the last chunk has come, and the fields behind it are next.
    #[must_use]
    pub fn in_trailers(&self) -> bool {
        match self.at {
            At::LineStart | At::TrailerName | At::TrailerValue | At::TrailerEnd | At::LastLf => {
                true
            }
            At::Size { .. } | At::Extension { .. } | At::SizeEnd { .. } => false,
            At::Data { .. } | At::DataCr | At::DataLf | At::Done => false,
        }
    }

    /// How many of the bytes to come are data, whatever they are.
    #[must_use]
    pub fn data_left(&self) -> u64 {
        match self.at {
            At::Data { left } => left,
            _ => 0,
        }
    }

    fn step(&mut self, byte: u8) -> Result<At, ChunkError> {
        // Whatever they are made of: somebody may keep them to their end.
        if self.in_trailers() {
            self.count(MOST_TRAILER_BYTES, ChunkError::Trailer)?;
        }
        Ok(match (self.at, byte) {
            (At::Size { digits: 0, .. }, b'\r' | b';' | b' ' | b'\t') => {
                return Err(ChunkError::Size);
            }
            (At::Size { size, .. } | At::Extension { size }, b'\r') => At::SizeEnd { size },
            (At::Size { size, .. }, b';' | b' ' | b'\t') => At::Extension { size },
            (At::Size { digits, size }, digit) => {
                let value = char::from(digit).to_digit(16).ok_or(ChunkError::Size)?;
                if digits == MOST_DIGITS {
                    return Err(ChunkError::Size);
                }
                At::Size {
                    digits: digits + 1,
                    size: size << 4 | u64::from(value),
                }
            }
            (At::Extension { size }, byte) => {
                self.count(MOST_EXTENSION_BYTES, ChunkError::Extension)?;
                if is_control(byte) {
                    return Err(ChunkError::Extension);
                }
                At::Extension { size }
            }
            (At::SizeEnd { size }, b'\n') => {
                self.bytes = 0;
                match size {
                    0 => At::LineStart,
                    left => At::Data { left },
                }
            }
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::Size { digits: 0, size: 0 },
            (At::LineStart, b'\r') => At::LastLf,
            (At::LineStart, byte) if is_token(byte) => At::TrailerName,
            (At::TrailerName, b':') => At::TrailerValue,
            (At::TrailerName, byte) if is_token(byte) => At::TrailerName,
            (At::LineStart | At::TrailerName, _) => return Err(ChunkError::Trailer),
            (At::TrailerValue, b'\r') => At::TrailerEnd,
            (At::TrailerValue, byte) if is_control(byte) => return Err(ChunkError::Trailer),
            (At::TrailerValue, _) => At::TrailerValue,
            (At::TrailerEnd, b'\n') => At::LineStart,
            (At::LastLf, b'\n') => At::Done,
            (At::SizeEnd { .. } | At::DataCr | At::DataLf | At::TrailerEnd | At::LastLf, _) => {
                return Err(ChunkError::LineEnd);
            }
            // `advance` leaves these out.
            (at @ (At::Data { .. } | At::Done), _) => at,
        })
    }

    fn count(&mut self, most: usize, error: ChunkError) -> Result<(), ChunkError> {
        self.bytes += 1;
        if self.bytes > most {
            Err(error)
        } else {
            Ok(())
        }
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_control(byte: u8) -> bool {
    (byte < 0x20 && byte != b'\t') || byte == 0x7f
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same by one look, and byte by byte: what belongs to the body.
    fn end_of(bytes: &[u8]) -> Result<Option<usize>, ChunkError> {
        let mut whole = ChunkedBody::default();
        let at_once = whole
            .advance(bytes)
            .map(|taken| whole.is_done().then_some(taken));
        let mut slow = ChunkedBody::default();
        let mut taken = Ok(0);
        for byte in bytes {
            taken = taken.and_then(|before| slow.advance(&[*byte]).map(|one| before + one));
        }
        let slowly = taken.map(|taken| slow.is_done().then_some(taken));
        assert_eq!(at_once, slowly, "{:?}", String::from_utf8_lossy(bytes));
        at_once
    }

    #[test]
    fn bodies_end_where_they_say() {
        for body in [
            &b"0\r\n\r\n"[..],
            b"5\r\nhello\r\n0\r\n\r\n",
            b"0005\r\nhello\r\n000\r\n\r\n",
            b"0000000000000005\r\nhello\r\n0\r\n\r\n",
            b"a\r\nhellohello\r\n0\r\n\r\n",
            b"A\r\nhello\r\n\r\n\0\r\n0\r\n\r\n",
            b"5;a=b;c=\"d e\"\r\nhello\r\n0;last\r\n\r\n",
            b"5 ; a\r\nhello\r\n0 \r\n\r\n",
            b"2\r\nhe\r\n3\r\nllo\r\n0\r\nX-Sum: 1\r\nY:\r\n\r\n",
            b"0\r\nX: \xff\tz\r\n\r\n",
        ] {
            let shown = String::from_utf8_lossy(body);
            assert_eq!(end_of(body), Ok(Some(body.len())), "{shown:?}");
            let more = [body, b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(end_of(&more), Ok(Some(body.len())), "{shown:?} and more");
            for cut in 0..body.len() {
                assert_eq!(end_of(&body[..cut]), Ok(None), "{shown:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_an_error() {
        use ChunkError::{Extension, LineEnd, Size, Trailer};
        for (body, error) in [
            (&b"\r\n"[..], Size),
            (b";a\r\n", Size),
            (b" 5\r\n", Size),
            (b"x\r\n", Size),
            (b"-5\r\n", Size),
            (b"+5\r\n", Size),
            (b"0x5\r\n", Size),
            (b"5_0\r\n", Size),
            (b"5\0\r\n", Size),
            (b"5\n", Size),
            (b"5h\r\n", Size),
            (b"5,\r\n", Size),
            (b"\xef\xbc\x95\r\n", Size),
            (b"10000000000000005\r\n", Size),
            (b"00000000000000005\r\n", Size),
            (b"5\rh", LineEnd),
            (b"5\r\r\n", LineEnd),
            (b"5;a\nb\r\n", Extension),
            (b"5;a\0\r\n", Extension),
            (b"5;a\x7f\r\n", Extension),
            (b"5 \n", Extension),
            (b"5;a\rb\r\n", LineEnd),
            (b"4\r\nhello\r\n", LineEnd),
            (b"5\r\nhello\n", LineEnd),
            (b"5\r\nhello\rx", LineEnd),
            (b"5\r\nhello0\r\n", LineEnd),
            (b"0\r\n\n", Trailer),
            (b"0\n\r\n", Size),
            (b"0\r\n\rx", LineEnd),
            (b"0\r\nGET / HTTP/1.1\r\n", Trailer),
            (b"0\r\n folded: x\r\n", Trailer),
            (b"0\r\n: x\r\n", Trailer),
            (b"0\r\nX : y\r\n", Trailer),
            (b"0\r\nX\r\n", Trailer),
            (b"0\r\nX: y\n", Trailer),
            (b"0\r\nX: y\0\r\n", Trailer),
            (b"0\r\nX: y\rz", LineEnd),
        ] {
            let shown = String::from_utf8_lossy(body);
            assert_eq!(end_of(body), Err(error), "{shown:?}");
        }
        let long = format!("5;{}\r\n", "x".repeat(MOST_EXTENSION_BYTES + 1));
        assert_eq!(end_of(long.as_bytes()), Err(Extension));
        let many = format!(
            "0\r\n{}",
            "X: 1234567890\r\n".repeat(MOST_TRAILER_BYTES / 10)
        );
        assert_eq!(end_of(many.as_bytes()), Err(Trailer));
        let empty = format!("0\r\n{}", "X:\r\n".repeat(MOST_TRAILER_BYTES / 4 + 1));
        assert_eq!(end_of(empty.as_bytes()), Err(Trailer));
    }

    #[test]
    fn data_is_known_without_looking() {
        let mut body = ChunkedBody::default();
        assert_eq!(body.data_left(), 0);
        assert_eq!(body.advance(b"ffffffffffffffff\r\n"), Ok(18));
        assert_eq!(body.data_left(), u64::MAX);
        assert_eq!(body.advance(b"\r\n0\r\n\r\n"), Ok(7));
        assert_eq!(body.data_left(), u64::MAX - 7);
    }
}
