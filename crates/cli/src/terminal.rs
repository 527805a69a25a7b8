//! Whether a person watches, also through mpirun, which hands ranks a pipe whatever its own output is; and the way past
//! mpirun when it no longer forwards.

use std::fs::{self, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use indicatif::{ProgressDrawTarget, TermLike};

/// Columns that a bar takes where nobody says how wide the terminal is.
const WIDTH: u16 = 100;

/// Returns where a bar can be drawn, or `None` where lines should be printed.
pub fn draw_target() -> Option<ProgressDrawTarget> {
    if io::stderr().is_terminal() {
        return Some(ProgressDrawTarget::stderr());
    }
    // Ten pictures a second through mpirun's pipe are enough.
    watched_launcher().then(|| ProgressDrawTarget::term_like_with_hz(Box::new(Piped), 10))
}

/// Says whether a person can be asked: standard input is a terminal, or a launcher hands one on.
pub fn is_asked() -> bool {
    io::stdin().is_terminal() || is_terminal(launcher_stream(0))
}

/// Says whether what goes to standard error may have colours: a person watches, and has not refused them (no-color.org).
pub fn takes_colours() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|said| !said.is_empty());
    !refused && (io::stderr().is_terminal() || watched_launcher())
}

/// Says whether a launcher forwards this process's standard error to a terminal.
fn watched_launcher() -> bool {
    is_terminal(launcher_output())
}

fn is_terminal(stream: Option<PathBuf>) -> bool {
    let stream = stream.and_then(|stream| fs::read_link(stream).ok());
    stream.is_some_and(|path| path.starts_with("/dev/pts") || path.to_string_lossy().starts_with("/dev/tty"))
}

/// Prints a line on the launcher's own standard error; says whether that could be done.
///
/// From the moment that mpirun is asked to end, it no longer forwards what its ranks print.
pub fn past_the_launcher(text: &str) -> bool {
    let opened = launcher_output().and_then(|output| OpenOptions::new().append(true).open(output).ok());
    opened.is_some_and(|mut output| output.write_all(format!("{text}\n").as_bytes()).is_ok())
}

/// Finds the launcher's standard error: that of the nearest ancestor that has another one than this process, for a shell
/// between the two has the same.
fn launcher_output() -> Option<PathBuf> {
    launcher_stream(2)
}

/// Finds the launcher's stream of a number, in the same way.
fn launcher_stream(number: u8) -> Option<PathBuf> {
    if !crate::wire::launched() {
        return None;
    }
    let own = fs::read_link(format!("/proc/self/fd/{number}")).ok()?;
    let mut process = "self".to_string();
    loop {
        let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        process = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().to_string();
        let output = PathBuf::from(format!("/proc/{process}/fd/{number}"));
        if fs::read_link(&output).ok()? != own {
            return Some(output);
        }
    }
}

/// A terminal at the other end of a pipe.
#[derive(Debug)]
struct Piped;

impl Piped {
    /// Moves the cursor `n` times in the way of the escape sequence's letter.
    fn moved(&self, n: usize, letter: char) -> io::Result<()> {
        match n {
            0 => Ok(()),
            _ => self.write_str(&format!("\x1b[{n}{letter}")),
        }
    }
}

impl TermLike for Piped {
    fn width(&self) -> u16 {
        WIDTH
    }
    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.moved(n, 'A')
    }
    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.moved(n, 'B')
    }
    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.moved(n, 'C')
    }
    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.moved(n, 'D')
    }
    fn write_line(&self, text: &str) -> io::Result<()> {
        self.write_str(&format!("{text}\n"))
    }
    fn write_str(&self, text: &str) -> io::Result<()> {
        io::stderr().write_all(text.as_bytes())
    }
    fn clear_line(&self) -> io::Result<()> {
        self.write_str("\r\x1b[2K")
    }
    fn flush(&self) -> io::Result<()> {
        io::stderr().flush()
    }
}
