//! QEMU's monitor, over its machine protocol (QEMU Machine Protocol: one JSON object a line). The main function is
//! [`run`]; [`crate::Emulator`] knows the socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// For an answer of a machine that may be busy.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// A path for a machine's socket, which nothing else has; short, since a socket's path holds 107 bytes.
pub(crate) fn socket(name: &str) -> PathBuf {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("pollux-{}-{number}-{name}.qmp", std::process::id()))
}

/// Carries out one command of the human monitor and gives what it printed.
pub(crate) fn run(socket: &Path, command: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    let mut lines = BufReader::new(stream.try_clone()?);
    ask(&mut stream, &mut lines, &json!({ "execute": "qmp_capabilities" }))?;
    let arguments = json!({ "command-line": command });
    let answer = ask(&mut stream, &mut lines, &json!({ "execute": "human-monitor-command", "arguments": arguments }))?;
    Ok(answer.as_str().unwrap_or_default().replace('\r', "").trim().to_owned())
}

/// Sends a request and gives the answer's value. Greeting and events, which have neither, are passed over.
fn ask(out: &mut impl Write, lines: &mut impl BufRead, request: &Value) -> Result<Value> {
    writeln!(out, "{request}")?;
    let mut line = String::new();
    while lines.read_line(&mut line)? > 0 {
        let mut answer: Value = serde_json::from_str(&line).with_context(|| format!("it said {line:?}"))?;
        if let Some(error) = answer.get("error") {
            bail!("refused: {error}");
        }
        if let Some(value) = answer.get_mut("return") {
            return Ok(value.take());
        }
        line.clear();
    }
    bail!("it hung up")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_found_between_greeting_and_events() {
        let mut sent = Vec::new();
        let mut said = "{\"QMP\":{}}\n{\"event\":\"STOP\"}\n{\"return\":\"so\"}\n".as_bytes();
        assert_eq!(ask(&mut sent, &mut said, &json!({ "execute": "x" })).unwrap(), "so");
        assert_eq!(sent, b"{\"execute\":\"x\"}\n");
        assert!(ask(&mut sent, &mut said, &json!({})).unwrap_err().to_string().contains("hung up"));
        let refused = ask(&mut sent, &mut "{\"error\":{\"desc\":\"no\"}}\n".as_bytes(), &json!({})).unwrap_err();
        assert!(refused.to_string().contains("\"no\""), "{refused}");
    }
}
