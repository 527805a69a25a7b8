//! What a continued run takes from its folder, and what the new command may still change.

use std::path::{Path, PathBuf};

use mp_plan::ParallelConfig;
use toml::{Table, Value};

use super::layers::{merge, parse, Layers};
use super::{from, schema, Config};
use crate::run_folder;
use crate::{Error, Result};

/// The sections, and keys of `[train]`, that a continued run keeps whatever the new command says.
const KEPT_SECTIONS: [&str; 3] = ["model", "data", "lora"];
const KEPT_OF_TRAIN: [&str; 2] = ["seq", "seed"];
/// The key of them that a new command may change all the same.
const MOVES: [&str; 2] = ["model", "base"];

impl Config {
    /// Returns the folder of the run that this configuration continues, if there is a checkpoint to continue from.
    ///
    /// `file` may be the run's own `config.toml`; then it need not be named.
    pub(super) fn continued(&self, file: Option<&Path>) -> Option<PathBuf> {
        if !self.checkpoint.resume {
            return None;
        }
        let named = self.train.name.as_ref().map(|name| self.train.out.join(name));
        let own = || file.filter(|file| file.ends_with(run_folder::CONFIG)).and_then(folder_of);
        let folder = named.or_else(own)?;
        run_folder::has_checkpoint(&folder).then_some(folder)
    }
}

/// Returns the folder of a file, which may be typed without one.
fn folder_of(file: &Path) -> Option<PathBuf> {
    std::path::absolute(file).ok()?.parent().map(Path::to_path_buf)
}

/// Lays the new command over the run that it continues.
pub(super) fn over(layers: &Layers, folder: PathBuf) -> Result<Config> {
    let run = saved(&folder)?;
    refuse_changes(&run, layers, &folder)?;
    let mut table = run.clone();
    if layers.lay_out() || !chose(&run) {
        // Degrees belong to the ranks at hand. What the planner has chosen knows for how many it was.
        table.remove("parallel");
    }
    merge(&mut table, layers.written.clone());
    merge(&mut table, layers.set.clone());
    keep(&mut table, &run);
    let mut config = layers.asking(schema::read(table)?).with_absolute_paths();
    config.parallel = answered(&config, &run)?;
    // Where the model under adapters lies now is no property of the run.
    if let Some(base) = layers.set.get(MOVES[0]).and_then(|model| model.get(MOVES[1])).and_then(Value::as_str) {
        if config.lora.rank == 0 {
            return Err(from::no_adapters(Path::new(base)));
        }
        config.model.base = std::path::absolute(base).ok();
        from::follow(&mut config);
        config.model.from = config.model.base.take();
    }
    config.label.clone_from(&layers.label);
    config.train.name = folder.file_name().map(|name| name.to_string_lossy().into_owned());
    config.train.out = folder.parent().map(Path::to_path_buf).unwrap_or_default();
    let done = run_folder::newest_step(&folder).unwrap_or(0);
    if config.train.steps < done {
        let rule = format!("must be at least {done}, the steps that this run has done");
        return Err(Error::Config { key: "train.steps", value: config.train.steps.to_string(), rule });
    }
    Ok(config)
}

/// Returns the layout of a continued run: what the planner chose for it answers a command that asks the same again, and is open
/// again where it was chosen for another batch or precision.
fn answered(config: &Config, run: &Table) -> Result<ParallelConfig> {
    let run = schema::read(run.clone())?;
    let own = &config.parallel;
    let alike = (config.train.global_batch, config.train.precision) == (run.train.global_batch, run.train.precision);
    Ok(match (alike, own.chosen.is_empty()) {
        (true, _) => own.answered_by(&run.parallel).unwrap_or_else(|| own.clone()),
        (false, false) => own.reopened(),
        (false, true) => own.clone(),
    })
}

/// Says whether the planner chose a run's layout.
fn chose(run: &Table) -> bool {
    let chosen = run.get("parallel").and_then(|parallel| parallel.get("chosen"));
    chosen.and_then(Value::as_array).is_some_and(|keys| !keys.is_empty())
}

/// Reads a run's own configuration.
pub(super) fn saved(folder: &Path) -> Result<Table> {
    let path = folder.join(run_folder::CONFIG);
    let text = std::fs::read_to_string(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
    parse(&format!("`{}`", path.display()), &text)
}

/// Puts back what the run keeps.
fn keep(table: &mut Table, run: &Table) {
    for section in KEPT_SECTIONS {
        if let Some(value) = run.get(section) {
            table.insert(section.into(), value.clone());
        }
    }
    let (Some(Value::Table(train)), Some(Value::Table(kept))) = (table.get_mut("train"), run.get("train")) else {
        return;
    };
    for key in KEPT_OF_TRAIN {
        if let Some(value) = kept.get(key) {
            train.insert(key.into(), value.clone());
        }
    }
}

/// Refuses a `--set` that would change what the run keeps.
fn refuse_changes(run: &Table, layers: &Layers, folder: &Path) -> Result<()> {
    let mut changed = run.clone();
    merge(&mut changed, layers.set.clone());
    let (run, changed) = (kept_values(run)?, kept_values(&changed)?);
    let differs = changed.iter().find(|(key, value)| run.iter().find(|(k, _)| k == key).map(|(_, v)| v) != Some(value));
    let Some((key, value)) = differs else { return Ok(()) };
    let was = run.iter().find(|(k, _)| k == key).map_or_else(|| "unset".into(), |(_, value)| value.clone());
    let problem = format!(
        "holds a run with `{key}` = {was}, which `--set {key}={value}` cannot change half-way; leave it out, or begin \
         another run (`train.name`) from its weights with `model.from`"
    );
    Err(Error::RunFolder { path: folder.into(), problem })
}

/// Lists the values that a run keeps, as the tree of values writes them.
fn kept_values(table: &Table) -> Result<Vec<(String, String)>> {
    let config = schema::read(table.clone())?.with_absolute_paths();
    let table = Table::try_from(&config).expect("a tree of plain values is TOML");
    let sections = table.iter().filter_map(|(section, value)| Some((section, value.as_table()?)));
    let values = sections.flat_map(|(section, entries)| entries.iter().map(move |entry| (section, entry)));
    Ok(values
        .filter(|(section, (key, _))| [section.as_str(), key.as_str()] != MOVES)
        .filter(|(section, (key, _))| {
            KEPT_SECTIONS.contains(&section.as_str()) || (*section == "train" && KEPT_OF_TRAIN.contains(&key.as_str()))
        })
        .map(|(section, (key, value))| (format!("{section}.{key}"), value.to_string()))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that looks like a run of `sets` with a checkpoint.
    fn run(sets: &[&str]) -> (tempfile::TempDir, PathBuf) {
        let out = tempfile::tempdir().unwrap();
        let folder = out.path().join("old");
        std::fs::create_dir_all(folder.join("checkpoints/step-00000010")).unwrap();
        let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
        let config = Config::load(None, None, &sets).unwrap();
        std::fs::write(folder.join("config.toml"), config.to_toml()).unwrap();
        (out, folder)
    }

    fn load(out: &Path, sets: &[&str]) -> Result<Config> {
        let mut all = vec![format!("train.out={}", out.display()), "train.name=old".into()];
        all.push("checkpoint.resume=true".into());
        all.extend(sets.iter().map(|set| set.to_string()));
        Config::load(None, None, &all)
    }

    #[test]
    fn a_continued_run_keeps_its_model_and_takes_new_degrees() {
        let (out, _) = run(&["model.hidden=64", "train.seed=9", "train.steps=77", "parallel.tp=2", "optimizer.lr=0.5"]);
        let config = load(out.path(), &["train.steps=99"]).unwrap();
        assert_eq!((config.model.hidden, config.train.seed, config.train.steps), (64, 9, 99));
        assert_eq!((config.parallel.tp, config.optimizer.lr), (0, 0.5));
        assert!(config.checkpoint.resume);
    }

    #[test]
    fn what_the_planner_chose_stands_on_as_many_ranks_until_the_command_says_otherwise() {
        let (out, folder) = run(&["parallel.tp=2", "parallel.dp=2", "parallel.micro_batch=4", "parallel.zero=1"]);
        let file = folder.join("config.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        let chosen = "[parallel]\nchosen = [\"dp\", \"micro_batch\", \"zero\"]\n";
        std::fs::write(&file, text.replacen("[parallel]\n", chosen, 1)).unwrap();
        let config = load(out.path(), &["parallel.cluster=cpu"]).unwrap();
        assert_eq!((config.parallel.tp, config.parallel.dp, config.parallel.cluster.as_str()), (2, 2, "cpu"));
        assert_eq!(config.for_ranks(4), config);
        let open = config.for_ranks(8).parallel;
        assert_eq!((open.tp, open.dp, open.micro_batch, open.zero), (2, 0, 0, mp_plan::Switch::Auto));
        assert!(open.asks && open.chosen.is_empty());
        // A command that asks what was asked is answered; another question is not.
        let asked = load(out.path(), &["parallel.tp=2", "parallel.dp=0", "parallel.cluster=cpu"]).unwrap();
        assert_eq!(asked.parallel, config.parallel);
        for other in [&["parallel.tp=1", "parallel.dp=0"], &["parallel.tp=0", "parallel.dp=0"]] {
            let asking = load(out.path(), other).unwrap().parallel;
            assert!(asking.asks && asking.chosen.is_empty() && asking.micro_batch == 0, "{other:?}: {asking:?}");
        }
        // For another batch or precision it is chosen again.
        for other in ["train.global_batch=32", "train.precision=bf16"] {
            let open = load(out.path(), &[other]).unwrap().parallel;
            assert_eq!((open.asks, open.tp, open.dp, open.micro_batch), (true, 2, 0, 0), "{other}");
        }
        // The command's own words win.
        let config = load(out.path(), &["parallel.pp=2"]).unwrap();
        assert_eq!((config.parallel.pp, config.parallel.dp, config.parallel.chosen.len()), (2, 0, 0));
        // Over the run's own file they are no choice of the planner's.
        let sets = ["checkpoint.resume=true", "parallel.dp=4"].map(String::from);
        let config = Config::load(Some(&file), None, &sets).unwrap();
        assert_eq!((config.parallel.dp, config.parallel.chosen.len()), (4, 2));
        assert_eq!(config.for_ranks(8).parallel.micro_batch, 4);
    }

    #[test]
    fn fewer_steps_than_are_done_are_refused() {
        let (out, _) = run(&["model.hidden=64"]);
        let error = load(out.path(), &["train.steps=9"]).unwrap_err().to_string();
        assert!(error.contains("`train.steps` is 9, but must be at least 10"), "{error}");
        assert_eq!(load(out.path(), &["train.steps=10"]).unwrap().train.steps, 10);
    }

    #[test]
    fn a_file_says_nothing_about_the_model_of_a_continued_run() {
        let (out, _) = run(&["model.hidden=64", "train.seq=32"]);
        let file = out.path().join("new.toml");
        let text =
            format!("[model]\nhidden = 32\n[train]\nseq = 16\nsteps = 15\nout = {:?}\nname = \"old\"\n", out.path());
        std::fs::write(&file, text).unwrap();
        let config = Config::load(Some(&file), None, &["checkpoint.resume=true".into()]).unwrap();
        assert_eq!((config.model.hidden, config.train.seq, config.train.steps), (64, 32, 15));
    }

    #[test]
    fn a_set_against_the_run_is_refused_and_the_same_value_is_not() {
        let (out, _) = run(&["model.hidden=64", "data.path=a.txt"]);
        let error = load(out.path(), &["model.hidden=32"]).unwrap_err().to_string();
        assert!(error.contains("`model.hidden` = 64, which `--set model.hidden=32` cannot change"), "{error}");
        load(out.path(), &["model.hidden=64", "data.path=a.txt"]).unwrap();
    }

    #[test]
    fn the_runs_own_file_names_the_run() {
        let (_out, folder) = run(&["model.hidden=64"]);
        let file = folder.join("config.toml");
        let config = Config::load(Some(&file), None, &["checkpoint.resume=true".into()]).unwrap();
        assert_eq!(config.train.name.as_deref(), Some("old"));
        assert_eq!(Some(config.train.out.as_path()), folder.parent());
        let fresh = Config::load(Some(&file), None, &[]).unwrap();
        assert_eq!((fresh.train.name, fresh.label.as_str()), (None, "old"));
    }

    #[test]
    fn without_a_checkpoint_the_new_command_decides() {
        let (out, folder) = run(&["model.hidden=64"]);
        std::fs::remove_dir_all(folder.join("checkpoints")).unwrap();
        let config = load(out.path(), &["model.hidden=32"]).unwrap();
        assert_eq!(config.model.hidden, 32);
    }
}
