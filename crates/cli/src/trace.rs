//! A rank's spans in the Chrome trace event format, which Perfetto and `chrome://tracing` show as a time line.
//!
//! Each rank is a process of the picture, and time is the machine's clock, so that the files of all ranks of one machine can
//! be opened together (`jq -s add` joins them).
//!
//! # Source
//! "Trace Event Format", Google, 2016: complete events (`X`) and metadata (`M`).

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{json, Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// Writes every span that ends.
pub struct Trace {
    sink: Arc<Sink>,
    /// Where the time line begins on the machine's clock, in microseconds since 1970, and on ours.
    clock: (f64, Instant),
    rank: usize,
}

/// The file, shared by the layer and by what closes it.
struct Sink {
    path: PathBuf,
    /// `None` once it is closed.
    file: Mutex<Option<io::Result<BufWriter<File>>>>,
}

/// Completes a trace when it is dropped. What a rank that is killed has written can be shown as it is.
pub struct Closing(Arc<Sink>);

impl Trace {
    /// Makes a rank's file.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn create(folder: &Path, rank: usize) -> io::Result<(Self, Closing)> {
        let path = folder.join(format!("trace-rank{rank}.json"));
        std::fs::create_dir_all(folder)?;
        let mut file = BufWriter::new(File::create(&path)?);
        let name =
            json!({ "ph": "M", "name": "process_name", "pid": rank, "args": { "name": format!("rank {rank}") } });
        write!(file, "[\n{name}")?;
        file.flush()?;
        let sink = Arc::new(Sink { path, file: Mutex::new(Some(Ok(file))) });
        let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1e6;
        Ok((Self { sink: Arc::clone(&sink), clock: (begun, Instant::now()), rank }, Closing(sink)))
    }
}

impl Sink {
    /// Appends an event. After a failure nothing more is written: training goes on without its picture.
    fn event(&self, event: &Value) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = &mut *file {
            let written = open.as_mut().map(|open| write!(open, ",\n{event}"));
            if let Ok(Err(error)) = written {
                *open = Err(error);
            }
        }
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        let file = self.0.file.lock().unwrap_or_else(PoisonError::into_inner).take();
        let closed = file.map_or(Ok(()), |file| file.and_then(|mut file| file.write_all(b"\n]\n").and(file.flush())));
        if let Err(error) = closed {
            eprintln!("warning: `{}` is not complete: {error}", self.0.path.display());
        }
    }
}

/// The fields of a span.
struct Fields(Map<String, Value>);

/// When a span was entered last.
struct Entered(Instant);

impl<S> Layer<S> for Trace
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields(Map::new());
        attributes.record(&mut fields);
        span.extensions_mut().insert(fields);
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        span.extensions_mut().replace(Entered(Instant::now()));
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let extensions = span.extensions();
        let (Some(Entered(entered)), Some(Fields(fields))) = (extensions.get(), extensions.get()) else { return };
        let (begun, origin) = self.clock;
        let micros = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64() * 1e6;
        // Of a collective the picture says which it is.
        let name = fields.get("call").and_then(Value::as_str).unwrap_or(span.name());
        self.sink.event(&json!({
            "ph": "X",
            "name": name,
            "cat": span.metadata().target(),
            "pid": self.rank,
            "tid": thread_number(),
            "ts": begun + micros(origin, *entered),
            "dur": micros(*entered, Instant::now()),
            "args": fields,
        }));
    }
}

/// Numbers threads in the order in which their first span ends.
fn thread_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    thread_local! {
        static OWN: u64 = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    OWN.with(|own| *own)
}

impl Visit for Fields {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.insert(field.name().into(), format!("{value:?}").into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::prelude::*;

    #[test]
    fn spans_become_complete_events_with_their_fields() {
        let folder = tempfile::tempdir().unwrap();
        let (trace, closing) = Trace::create(folder.path(), 3).unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(trace), || {
            let _step = tracing::info_span!("step", step = 7u64).entered();
            let _inner = tracing::trace_span!("collective", call = "all_reduce", group = "tp", bytes = 64).entered();
        });
        drop(closing);
        let text = std::fs::read_to_string(folder.path().join("trace-rank3.json")).unwrap();
        let events: Vec<Value> = serde_json::from_str(&text).unwrap();
        let [name, inner, step] = &events[..] else { panic!("{text}") };
        assert_eq!(name["args"]["name"], "rank 3");
        assert_eq!(
            (&inner["name"], &inner["args"]["group"], &inner["args"]["bytes"]),
            (&"all_reduce".into(), &"tp".into(), &64.into())
        );
        assert_eq!((&step["name"], &step["args"]["step"], &step["pid"]), (&"step".into(), &7.into(), &3.into()));
        let [outside, inside] = [step, inner].map(|event| {
            let [start, length] = ["ts", "dur"].map(|key| event[key].as_f64().unwrap());
            start..=start + length
        });
        assert!(outside.contains(inside.start()) && outside.contains(inside.end()), "{text}");
    }

    #[test]
    fn a_full_disk_ends_the_picture_alone() {
        let Ok(full) = File::options().write(true).open("/dev/full") else { return };
        let sink = Sink { path: "/dev/full".into(), file: Mutex::new(Some(Ok(BufWriter::with_capacity(0, full)))) };
        sink.event(&json!(1));
        assert!(matches!(&*sink.file.lock().unwrap(), Some(Err(_))));
        sink.event(&json!(2));
    }
}
