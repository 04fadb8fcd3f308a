//! The wire: listeners, connections, CONNECT, tunnels and forwarded requests.
