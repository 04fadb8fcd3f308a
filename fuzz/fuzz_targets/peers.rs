//! A file of callable agents is one or a clear error, and each agent has a host
//! in the domain and somewhere to be called.
#![no_main]

use agentport::config::PeerDirectory;
use agentport::egress::DnsName;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let domain = DnsName::parse("peers.internal").expect("a name");
    match PeerDirectory::parse(text, &domain) {
        Ok(directory) => {
            for agent in &directory.agents {
                let host = format!("{}.peers.internal", agent.name);
                assert_eq!(agent.host.as_str(), host);
                assert!(!agent.name.contains('.') && !agent.endpoints.is_empty());
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
