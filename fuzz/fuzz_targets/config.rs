//! Any text is a configuration or a list of mistakes, and what is shown of a
//! configuration means the same.
#![no_main]

use agentport::config::{Config, Override, Purpose, Sources};
use libfuzzer_sys::fuzz_target;

/// Long enough to be one, and to be looked for in what is shown.
const SECRET: &str = "6b1f0e5d4c3b2a190817263544536271";

// Lines that begin with `--` are flags, as `--listen.egress=unix:/a`; the rest
// is the file.
fuzz_target!(|text: &str| {
    let (mut file, mut flags) = (String::new(), Vec::new());
    for line in text.lines() {
        match line
            .strip_prefix("--")
            .and_then(|flag| flag.split_once('='))
        {
            Some((key, value)) => flags.push(Override {
                flag: format!("--{key}"),
                key: key.to_owned(),
                value: value.to_owned(),
            }),
            None => {
                file.push_str(line);
                file.push('\n');
            }
        }
    }
    let sources = |text| Sources {
        file: Some(("agentport.yaml", text)),
        environment: vec![("AGENTPORT_JWKS_SECRET".into(), SECRET.into())],
        flags: Vec::new(),
    };
    let written = Sources {
        flags,
        ..sources(&file)
    };
    match Config::load(&written, Purpose::Serve) {
        Err(errors) => {
            assert!(!errors.is_empty());
            for error in errors {
                assert!(!error.to_string().is_empty());
            }
        }
        Ok(config) => {
            let shown = config.show();
            assert!(!shown.contains(SECRET) && !format!("{config:?}").contains(SECRET));
            let again = Config::load(&sources(shown), Purpose::Serve)
                .unwrap_or_else(|errors| panic!("{shown}\n{errors:?}"));
            // Where each was written is a comment, and all are in a file now.
            let settings = |text: &str| -> Vec<String> {
                text.lines()
                    .map(|line| {
                        line.split(" #")
                            .next()
                            .unwrap_or(line)
                            .trim_end()
                            .to_owned()
                    })
                    .filter(|line| !line.is_empty() && !line.starts_with('#'))
                    .collect()
            };
            assert_eq!(settings(again.show()), settings(shown));
        }
    }
});
