//! Where values come from: preset under file under `--set`, merged as TOML tables.

use std::path::Path;

use mp_plan::ParallelKey;
use toml::{Table, Value};

use super::{preset, schema, Config};
use crate::{Error, Result};

/// The explicit layers of a configuration, before they are checked.
#[derive(Debug, Clone, Default)]
pub(super) struct Layers {
    /// The preset's keys, then the file's.
    pub written: Table,
    /// The file's keys alone.
    pub file: Table,
    /// What `--set` gave, in order.
    pub set: Table,
    /// The preset's or the file's name.
    pub label: String,
}

impl Layers {
    /// Reads all layers.
    pub fn read(file: Option<&Path>, name: Option<&str>, sets: &[String]) -> Result<Self> {
        let name = name.unwrap_or("default");
        let mut layers = Self { label: name.into(), ..Self::default() };
        merge(&mut layers.written, parse(&format!("preset `{name}`"), preset::text(name)?)?);
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })?;
            layers.file = parse(&format!("`{}`", path.display()), &text)?;
            merge(&mut layers.written, layers.file.clone());
            layers.label = label(path);
        }
        for text in sets {
            assign(&mut layers.set, text)?;
        }
        Ok(layers)
    }

    /// Returns what the user says: the file's keys and those of `--set`, not a preset's.
    pub fn said(&self) -> Table {
        let mut said = self.file.clone();
        merge(&mut said, self.set.clone());
        said
    }

    /// Lays everything over the defaults.
    pub fn resolve(&self) -> Result<Config> {
        let mut table = self.written.clone();
        merge(&mut table, self.set.clone());
        let config = self.asking(schema::read(table)?);
        Ok(Config { label: self.label.clone(), ..config }.with_absolute_paths())
    }

    /// Notes whether the planner is asked, and that what `--set` fixes is not its choice.
    pub fn asking(&self, mut config: Config) -> Config {
        config.parallel.asks = asks(&self.said());
        let set = parallel(&self.set);
        config.parallel.chosen.retain(|key| !set.is_some_and(|set| set.contains_key(key.name())));
        config
    }

    /// Says whether the user says anything of the layout.
    pub fn lay_out(&self) -> bool {
        let said = self.said();
        let keys = ParallelKey::ALL.map(ParallelKey::name);
        parallel(&said).is_some_and(|said| said.keys().any(|key| key == "split" || keys.contains(&key.as_str())))
    }
}

fn parallel(table: &Table) -> Option<&Table> {
    table.get("parallel").and_then(Value::as_table)
}

/// Says whether a key of the layout is written as open. Every how many-th layer is one that its own 0 leaves to a rule.
fn asks(said: &Table) -> bool {
    let Some(said) = parallel(said) else { return false };
    ParallelKey::ALL.into_iter().any(|key| match (key, said.get(key.name())) {
        (ParallelKey::RecomputeEvery, _) => false,
        // A stage of 0 shares nothing, and is a choice.
        (ParallelKey::Zero, Some(Value::Integer(_))) => false,
        (_, Some(value)) => *value == Value::Integer(0) || value.as_str() == Some("auto"),
        (_, None) => false,
    })
}

/// Lays `over` over `base`: tables are joined key by key, anything else is replaced.
pub(super) fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(base)), Value::Table(over)) => merge(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Parses a whole file.
pub(super) fn parse(origin: &str, text: &str) -> Result<Table> {
    text.parse::<Table>().map_err(|error| Error::Syntax { origin: origin.into(), reason: placed(text, &error) })
}

/// Writes what is no TOML in one line: where, then what. The parser's own picture of the line takes several.
pub(crate) fn placed(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().map(|span| &text[..span.start.min(text.len())]);
    let place = before.map(|before| {
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        format!("line {}, column {column}: ", before.matches('\n').count() + 1)
    });
    place.unwrap_or_default() + &error.message().replace('\n', ", ")
}

/// Reads one `section.key=value` into a table.
fn assign(table: &mut Table, text: &str) -> Result<()> {
    let refused = || Error::Assignment { text: text.into() };
    let (key, value) = text.split_once('=').ok_or_else(refused)?;
    let parts: Vec<&str> = key.trim().split('.').map(str::trim).collect();
    if parts.iter().any(|part| part.is_empty()) {
        return Err(refused());
    }
    let mut nested = literal(value.trim());
    for part in parts.into_iter().rev() {
        nested = Value::Table(Table::from_iter([(part.to_string(), nested)]));
    }
    match nested {
        Value::Table(nested) => merge(table, nested),
        _ => return Err(refused()),
    }
    Ok(())
}

/// Reads a value as TOML where it is, and as a string where it is a bare word, such as a path.
fn literal(text: &str) -> Value {
    let parsed = format!("value = {text}").parse::<Table>().ok().filter(|table| table.len() == 1);
    match parsed.and_then(|mut table| table.remove("value")) {
        // No key takes a date; a folder may well be called by one.
        None | Some(Value::Datetime(_)) => Value::String(text.into()),
        Some(value) => value,
    }
}

/// Returns what runs of a file are called: its stem, or its folder's name where it is a run's own `config.toml`.
fn label(file: &Path) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let absolute = std::path::absolute(file).unwrap_or_else(|_| file.into());
    let folder = absolute.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    match folder {
        Some(folder) if stem == "config" => crate::run_folder::without_time(&folder).to_string(),
        _ => stem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(texts: &[&str]) -> Result<Table> {
        let mut table = Table::new();
        texts.iter().try_for_each(|text| assign(&mut table, text))?;
        Ok(table)
    }

    #[test]
    fn values_are_toml_and_bare_words_strings() {
        let table = set(&[
            "a.int=3",
            "a.float=1e-3",
            "a.flag=true",
            "a.list=[0.9, 0.99]",
            "a.quoted=\"x y\"",
            "a.path=/tmp/some file.txt",
            "a.word=gpt2",
            "a.day=2024-01-31",
            "a.equation=b=c",
            "a.lines=1\nb = 2",
        ])
        .unwrap();
        let expected = "[a]\nint = 3\nfloat = 1e-3\nflag = true\nlist = [0.9, 0.99]\nquoted = \"x y\"\n\
                        path = \"/tmp/some file.txt\"\nword = \"gpt2\"\nday = \"2024-01-31\"\nequation = \"b=c\"\n\
                        lines = \"1\\nb = 2\"\n";
        assert_eq!(table, expected.parse::<Table>().unwrap());
    }

    #[test]
    fn what_is_no_assignment_is_refused() {
        for text in ["", "train.steps", "=3", "train.=3", ".steps=3", "a..b=3"] {
            assert!(matches!(set(&[text]), Err(Error::Assignment { .. })), "{text:?}");
        }
    }

    #[test]
    fn a_broken_file_is_one_line_with_its_place() {
        let error = parse("`a.toml`", "[train]\nsteps = = 3\n").unwrap_err().to_string();
        assert!(error.starts_with("`a.toml` is not valid TOML: line 2, column 9: "), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }

    #[test]
    fn later_layers_win_key_by_key() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mine.toml");
        std::fs::write(&file, "[train]\nsteps = 7\nseq = 32\n[optimizer]\nlr = 0.5\n").unwrap();
        let layers = Layers::read(Some(&file), Some("shakespeare"), &["train.seq=16".into()]).unwrap();
        let config = layers.resolve().unwrap();
        assert_eq!((config.train.steps, config.train.seq, config.train.global_batch), (7, 16, 12));
        assert_eq!((config.optimizer.lr, config.optimizer.betas), (0.5, [0.9, 0.99]));
        assert_eq!(config.label, "mine");
    }

    #[test]
    fn keys_that_are_written_as_open_ask_the_planner() {
        let asks = |preset: Option<&str>, sets: &[&str]| {
            let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
            Layers::read(None, preset, &sets).unwrap().resolve().unwrap().parallel.asks
        };
        for set in ["tp=0", "pp=0", "dp=0", "cp=0", "chunks=0", "micro_batch=0"] {
            assert!(asks(None, &[&format!("parallel.{set}")]), "{set}");
        }
        for set in ["zero=auto", "schedule=auto", "recompute=auto", "sequence_parallel=auto"] {
            assert!(asks(None, &[&format!("parallel.{set}"), "parallel.tp=2"]), "{set}");
        }
        for set in ["tp=2", "zero=0", "recompute_every=0", "bucket_bytes=0", "cluster=h100", "schedule=1f1b"] {
            assert!(!asks(None, &[&format!("parallel.{set}")]), "{set}");
        }
        for preset in preset::names() {
            assert!(!asks(Some(preset), &[]), "{preset}");
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mine.toml");
        std::fs::write(&file, "[parallel]\ntp = 0\n").unwrap();
        let resolve = |sets: &[String]| Layers::read(Some(&file), None, sets).unwrap().resolve().unwrap();
        assert!(resolve(&[]).parallel.asks);
        // The last word counts.
        assert!(!resolve(&["parallel.tp=1".into()]).parallel.asks);
        assert!(!toml::from_str::<Config>(&resolve(&[]).to_toml()).unwrap().parallel.asks);
        assert!(!resolve(&[]).to_toml().contains("tp ="), "{}", resolve(&[]).to_toml());
    }

    #[test]
    fn a_runs_own_configuration_is_called_like_the_run() {
        assert_eq!(label(Path::new("/x/runs/wide/config.toml")), "wide");
        assert_eq!(label(Path::new("/x/runs/default-20260102-030405/config.toml")), "default");
        assert_eq!(label(Path::new("/x/runs/wide/other.toml")), "other");
    }

    /// Tables of up to three levels.
    fn tables() -> impl Strategy<Value = Table> {
        let leaf = any::<i32>().prop_map(|n| Value::Integer(n.into()));
        let value = leaf.prop_recursive(2, 12, 3, |inner| {
            prop::collection::btree_map("[abc]", inner, 0..3).prop_map(|map| Value::Table(map.into_iter().collect()))
        });
        prop::collection::btree_map("[abc]", value, 0..4).prop_map(|map| map.into_iter().collect())
    }

    fn merged(mut base: Table, over: Table) -> Table {
        merge(&mut base, over);
        base
    }

    proptest! {
        #[test]
        fn merging_is_idempotent_and_has_a_neutral_element(a in tables(), b in tables()) {
            let once = merged(a.clone(), b.clone());
            prop_assert_eq!(merged(once.clone(), b), once);
            prop_assert_eq!(merged(a.clone(), Table::new()), a.clone());
            prop_assert_eq!(merged(Table::new(), a.clone()), a);
        }

        #[test]
        fn the_last_assignment_of_a_key_wins(values in prop::collection::vec(any::<i64>(), 1..5)) {
            let texts: Vec<String> = values.iter().map(|value| format!("train.steps={value}")).collect();
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            prop_assert_eq!(&set(&texts).unwrap()["train"]["steps"], &Value::Integer(*values.last().unwrap()));
        }

        #[test]
        fn assigning_keeps_the_other_keys(a in -9..9i64, b in -9..9i64, swap: bool) {
            let (first, second) = (format!("x.a={a}"), format!("x.b={b}"));
            let texts = if swap { [second.as_str(), first.as_str()] } else { [first.as_str(), second.as_str()] };
            let table = set(&texts).unwrap();
            prop_assert_eq!((table["x"]["a"].as_integer(), table["x"]["b"].as_integer()), (Some(a), Some(b)));
        }
    }
}
