//! `mp-cli plan`: where each parameter lies, as a table for people and `plan.json` for programs; or the best layouts for a
//! machine; or that machine, measured.

mod html;
mod measure;
mod simulate;

use std::path::{Path, PathBuf};

use mp_plan::{cost, Cluster, Page, Ranking, Space};
use mp_train::layout::Layout;
use mp_train::memory;
use mp_train::text::vocabulary;
use mp_train::{cluster, durable};
use mp_train::{Config, Error};

use crate::args::Plan;
use crate::failure::{refused, Failure};
use crate::screen::Screen;
use crate::wire::World;

/// The plan's file name.
const FILE: &str = "plan.json";

/// Cuts the model, and says how.
///
/// # Errors
/// An input error for what cannot be cut, or a folder that cannot be written.
pub fn run(args: &Plan, world: &World) -> Result<(), Failure> {
    if let Some(file) = &args.measure {
        return measure::run(args, file, world);
    }
    if !world.is_first() {
        return Ok(());
    }
    apart(args)?;
    if args.ranks == Some(0) {
        return Err(refused("--ranks", 0, "must be at least 1").into());
    }
    let config = args.configuration.load()?;
    let tokenizer = config.data.open_tokenizer()?;
    if let Some(cluster) = &args.cluster {
        return choose(args, &config, vocabulary(&config, &tokenizer), cluster);
    }
    let ranks = args.ranks.unwrap_or(world.communicator().size());
    let layout = Layout::new(&config, vocabulary(&config, &tokenizer), ranks)?;
    let plan = layout.plan(&config);
    let mut screen = Screen::open(&args.output, true)?;
    let pictures = html::Html::open(args.html.as_deref())?;
    let path = args.out.join(FILE);
    // Before the table, which would hide the message of a folder that cannot be written.
    write(&path, &serde_json::to_string_pretty(&plan).expect("a plan is plain data"))?;
    screen.line(&plan.table());
    screen.line(&format!("written to {}", path.display()));
    pictures.write(&screen, || Ok(Page::of_layout(plan.clone(), &layout.schedule, config.train.seq)))?;
    Ok(screen.result(&plan)?)
}

/// Finds the best layouts for a machine.
fn choose(args: &Plan, config: &Config, vocab: usize, cluster: &str) -> Result<(), Failure> {
    if args.best == 0 {
        return Err(refused("--best", 0, "must be at least 1").into());
    }
    let (name, cluster) = (cluster, cluster::load(cluster)?);
    let (ranks, stated) = (args.ranks.unwrap_or(cluster.ranks()), cluster.node.count);
    let cluster = cluster.with_ranks(ranks);
    // Of so many ranks it may be none.
    cluster.check().map_err(|error| refused("--ranks", ranks, format!("such a machine cannot be: {error}")))?;
    let job = Layout::job(config, vocab)?;
    let cluster = memory::with_room(cluster, config, &job, ranks);
    let asked = config.parallel.reopened();
    let space = Space::of(&job, ranks).fixed(&asked);
    let costs = cost::of(&cluster);
    let simulated = simulate::layouts(args, &asked)?;
    let most = args.best.max(simulated.unwrap_or(0));
    let mut screen = Screen::open(&args.output, true)?;
    let pictures = html::Html::open(args.html.as_deref())?;
    let found = mp_plan::search(&job, &cluster, &*costs, &space, ranks, most).map_err(Error::from)?;
    let nodes = cluster.node.count;
    // Of a preset there are as many as anybody asks for.
    if nodes > stated && !Cluster::PRESETS.contains(&name) {
        screen.line(&format!("--ranks {ranks} take {nodes} nodes of {name}, which states node.count = {stated}\n"));
    }
    screen.line(found.table(&job, &cluster, ranks).trim_end());
    pictures.write(&screen, || Ok(Page::of_found(&job, &cluster, &*costs, &found)?))?;
    if let Some(layouts) = simulated {
        let searched = simulate::Searched { config, job: &job, cluster: &cluster, costs: &*costs, found: &found };
        return simulate::run(&mut screen, &searched, layouts);
    }
    Ok(screen.result(&Ranking::new(&job, &cluster, &found))?)
}

/// Sees that no output takes the place of a file that is read, or of another output.
fn apart(args: &Plan) -> mp_train::Result<()> {
    let place = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    // A preset is no file, nor is a pipe one that anything is lost in.
    let known = |path: &&Path| path.is_file();
    let read =
        [("--cluster", args.cluster.as_deref().map(Path::new)), ("--config", args.configuration.config.as_deref())];
    let read = read.into_iter().filter_map(|(flag, path)| Some((flag, place(path.filter(known)?))));
    let mut taken: Vec<(&str, PathBuf)> = read.collect();
    for (flag, path) in [("--json", &args.output.json), ("--html", &args.html)] {
        let Some(path) = path.as_deref().filter(|path| known(path) || !path.exists() && *path != Path::new("-")) else {
            continue;
        };
        let place = place(path);
        if let Some((other, _)) = taken.iter().find(|(_, known)| *known == place) {
            return Err(refused(
                flag,
                format!("\"{}\"", path.display()),
                format!("must be another file than that of {other}"),
            ));
        }
        taken.push((flag, place));
    }
    Ok(())
}

/// Writes the plan, and makes the folder where it is missing.
fn write(path: &Path, json: &str) -> mp_train::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).and_then(|()| durable::check(path)).map_err(|error| {
        refused("--out", format!("\"{}\"", folder.display()), format!("{FILE} cannot be written there: {error}"))
    })?;
    durable::write(path, json.as_bytes())
}
