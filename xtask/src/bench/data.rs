//! `cargo xtask bench data`: text to tokens here and with the Python tokenizers package, alternately, and tokens to batches.
//!
//! The two meet in files only: a text, a tokenizer, and the tokens that each makes of them, which must be the same.

use anyhow::{bail, ensure, Context, Result};
use clap::Args;
use serde_json::Value;
use std::fs;
use std::process::{Command, ExitCode};

use super::shakespeare::peer_python;
use crate::process;
use crate::workspace::Workspace;

const PEER: &str = "benches/peers/encode.py";

/// Arguments of `cargo xtask bench data`.
#[derive(Args)]
pub struct Options {
    /// Megabytes of text
    #[arg(long, value_name = "N", default_value_t = 60)]
    megabytes: u64,
    /// Threads of each program
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    threads: u64,
    /// How often each program runs
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
}

/// Runs both, alternately, and prints them side by side.
pub fn command(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let python = peer_python(workspace)?;
    let folder = workspace.target()?.join(format!("bench-data-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let mut run = workspace.cargo();
        run.args(["bench", "-q", "-p", "mp-data", "--bench", "data", "--"]).arg(&folder);
        run.args([options.megabytes.to_string(), options.threads.to_string()]);
        ours.push(result(&mut run)?);
        let mut run = Command::new(&python);
        run.arg(workspace.root.join(PEER)).arg("--folder").arg(&folder);
        peers.push(result(run.args(["--threads", &options.threads.to_string()]))?);
    }
    let read = |name: &str| fs::read(folder.join(name)).with_context(|| format!("cannot read {name}"));
    same_tokens(&read("tokens.bin")?, &read("peer.bin")?)?;
    print!("{}", table(&ours, &peers)?);
    fs::remove_dir_all(&folder)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs a program and reads the JSON object that it ends with.
fn result(run: &mut Command) -> Result<Value> {
    eprintln!("{}", process::describe(run));
    let output = run.stderr(std::process::Stdio::inherit()).output().context("cannot start it")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "it ended with {}: {text}", output.status);
    let last = text.lines().rfind(|line| line.starts_with('{')).context("it printed no JSON object")?;
    Ok(serde_json::from_str(last)?)
}

/// A faster tokenizer that makes other tokens would be none.
fn same_tokens(ours: &[u8], peers: &[u8]) -> Result<()> {
    match ours.iter().zip(peers).position(|(a, b)| a != b) {
        None if ours.len() == peers.len() => Ok(()),
        None => bail!("the two made {} and {} bytes of tokens of the same text", ours.len(), peers.len()),
        Some(at) => bail!("the two made different tokens of the same text, from byte {at} on"),
    }
}

fn table(ours: &[Value], peers: &[Value]) -> Result<String> {
    let first = ours.first().context("at least one round")?;
    let number = |value: &Value, key: &str| value[key].as_f64().with_context(|| format!("no {key} in {value}"));
    let megabytes = number(first, "text_bytes")? / 1e6;
    let column = |runs: &[Value], rate: &dyn Fn(&Value) -> Result<f64>| -> Result<String> {
        let rates = runs.iter().map(|run| Ok(format!("{:.1}", rate(run)?))).collect::<Result<Vec<_>>>()?;
        Ok(rates.join("  "))
    };
    let speed = |key: &'static str| move |run: &Value| Ok(megabytes / number(run, key)?);
    let rate = |key: &'static str| move |run: &Value| number(run, key);
    Ok(format!(
        "{megabytes:.0} MB in {} documents, {} tokens of a vocabulary of {}, {} threads; the same tokens from both\n\
         mp, JSON lines to .bin and .idx     {} MB/s\n\
         Python, JSON lines to .bin          {} MB/s\n\
         Python, encode_batch alone          {} MB/s\n\
         batches of 8 x 1024 tokens          {} a second\n\
         the same within documents           {} a second\n\
         the same from the background thread {} a second\n\
         opening the token files             {:.0} microseconds\n",
        first["documents"],
        first["tokens"],
        first["vocab"],
        first["threads"],
        column(ours, &speed("tokenize_seconds"))?,
        column(peers, &speed("whole_seconds"))?,
        column(peers, &speed("encode_seconds"))?,
        column(ours, &rate("across_batches_per_second"))?,
        column(ours, &rate("within_batches_per_second"))?,
        column(ours, &rate("prefetched_batches_per_second"))?,
        number(first, "open_seconds")? * 1e6,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_rates_and_other_tokens_are_refused() {
        let ours: Value = serde_json::from_str(
            r#"{"text_bytes":1e7,"documents":3,"tokens":9,"vocab":8,"threads":2,"tokenize_seconds":0.5,"open_seconds":0.00003,
                "across_batches_per_second":7.0,"within_batches_per_second":6.0,"prefetched_batches_per_second":5.0}"#,
        )
        .unwrap();
        let peer: Value = serde_json::from_str(r#"{"encode_seconds":1.0,"whole_seconds":2.0}"#).unwrap();
        let text = table(&[ours.clone(), ours.clone()], &[peer]).unwrap();
        assert!(text.contains("20.0  20.0 MB/s") && text.contains("5.0 MB/s") && text.contains("30 micro"), "{text}");
        assert!(table(&[ours], &[Value::Null]).is_err());

        for (bytes, same) in [(&b"abcd"[..], true), (b"abxd", false), (b"ab", false)] {
            assert_eq!(same_tokens(b"abcd", bytes).is_ok(), same);
        }
    }
}
