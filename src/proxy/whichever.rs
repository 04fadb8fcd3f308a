//! An enum of streams reads and writes by whichever it is. A `match` costs less
//! than a `Box<dyn …>` on every read and write of a tunnel.

/// [`AsyncRead`](tokio::io::AsyncRead) for an enum: each variant with what it
/// binds, and the stream in that.
macro_rules! reads {
    ($whole:ident { $($variant:ident($inner:ident) => $stream:expr,)+ }) => {
        impl tokio::io::AsyncRead for $whole {
            fn poll_read(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                match self.get_mut() {
                    $(Self::$variant($inner) => std::pin::Pin::new($stream).poll_read(cx, buf),)+
                }
            }
        }
    };
}

/// [`AsyncWrite`](tokio::io::AsyncWrite) in the same way.
macro_rules! writes {
    ($whole:ident { $($variant:ident($inner:ident) => $stream:expr,)+ }) => {
        impl tokio::io::AsyncWrite for $whole {
            fn poll_write(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                bytes: &[u8],
            ) -> std::task::Poll<std::io::Result<usize>> {
                match self.get_mut() {
                    $(Self::$variant($inner) => std::pin::Pin::new($stream).poll_write(cx, bytes),)+
                }
            }

            fn poll_flush(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                match self.get_mut() {
                    $(Self::$variant($inner) => std::pin::Pin::new($stream).poll_flush(cx),)+
                }
            }

            fn poll_shutdown(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                match self.get_mut() {
                    $(Self::$variant($inner) => std::pin::Pin::new($stream).poll_shutdown(cx),)+
                }
            }
        }
    };
}

pub(super) use {reads, writes};
