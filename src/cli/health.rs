//! `agentport health`: exit code 0 where the gateway is up. Needs no shell
//! and no curl, so that an image without either can have a health check.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;

use crate::config::{Listener, Purpose, parse_duration};

use super::SettingsArgs;

#[derive(Args)]
pub(super) struct HealthArgs {
    /// Ask whether it may take traffic, not only whether it is up
    #[arg(long)]
    ready: bool,
    /// Where to ask [default: the configured admin listener, else the first egress listener]
    #[arg(long, value_name = "ADDRESS", value_parser = super::address)]
    address: Option<SocketAddr>,
    /// How long to wait; a bare number is of seconds
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = wait)]
    timeout: Duration,
}

fn wait(text: &str) -> Result<Duration, String> {
    let time = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => parse_duration(text)?,
    };
    // No time at all would be for ever to a socket.
    Ok(time.max(Duration::from_millis(1)))
}

pub(super) fn health(settings: &SettingsArgs, args: &HealthArgs) -> anyhow::Result<ExitCode> {
    let path = if args.ready { "/ready" } else { "/health" };
    let listener = match args.address {
        Some(address) => Listener::Tcp(address),
        None => {
            let config = super::load(settings, Purpose::Command)?;
            let egress = config.listen.egress.first().cloned();
            config
                .listen
                .admin
                .clone()
                .or(egress)
                .context("the configuration has no listener")?
        }
    };
    let answer = ask(&listener, path, args.timeout)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the answer is not HTTP")?;
    super::give(body);
    let up = head.split(' ').nth(1) == Some("200");
    Ok(if up {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn ask(listener: &Listener, path: &str, timeout: Duration) -> anyhow::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    match listener {
        Listener::Tcp(address) => {
            let mut address = *address;
            // Bound to every address means reachable by loopback.
            if address.ip().is_unspecified() {
                address.set_ip(if address.is_ipv4() {
                    [127, 0, 0, 1].into()
                } else {
                    std::net::Ipv6Addr::LOCALHOST.into()
                });
            }
            let stream = TcpStream::connect_timeout(&address, timeout)
                .with_context(|| format!("{address} does not answer"))?;
            stream.set_read_timeout(Some(timeout))?;
            exchange(stream, &request)
        }
        Listener::Unix(path) => {
            let stream = UnixStream::connect(path)
                .with_context(|| format!("{} does not answer", path.display()))?;
            stream.set_read_timeout(Some(timeout))?;
            exchange(stream, &request)
        }
    }
}

fn exchange(mut stream: impl Read + Write, request: &str) -> anyhow::Result<String> {
    const MOST: u64 = 64 * 1024;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.take(MOST).read_to_string(&mut answer)?;
    if answer.is_empty() {
        bail!("the connection was closed without an answer");
    }
    Ok(answer)
}
