//! The words: hosts, authorities, targets, paths, addresses and agents, each
//! parsed once at the door and unmistakable after that.
//!
//! Nothing here decides, does I/O or asks the time.

mod address;
pub mod answer;
mod canonical;
mod chunked;
pub mod head;
pub mod hello;
mod host;
mod id;
pub mod json;
mod jsonrpc;
mod no_proxy;
mod path;
mod pattern;
pub mod proxy_header;
mod request;
mod target;
mod route;
mod url;

pub use address::{AddressClass, classify, embedded_ipv4};
pub use canonical::{Canonical, ConnectionWord, Edit, OpenHead, canonical, is_proxys, open_head};
pub use chunked::{ChunkError, ChunkedBody};
pub use host::{Authority, AuthorityError, DnsName, Host, HostError};
pub use id::{AgentId, IdError, RequestId, TenantId};
pub use jsonrpc::{RpcError, RpcPattern, RpcPatternError, rpc_called, rpc_methods};
pub use no_proxy::{NoProxy, NoProxyEntry};
pub use path::{PathError, PathGlob, PathGlobError, RequestPath};
pub use pattern::{AddressRange, Destination, DestinationError, HostPattern, HostPatternError};
pub use request::{Ask, EgressRequest, Subject};
pub use route::{Found, Route, RouteError, RouteTarget, RouteTargetError, is_plain_path};
pub use target::{MAX_TARGET_BYTES, RequestTarget, Scheme, TargetError};
pub use url::{HttpsUrl, UrlError};
